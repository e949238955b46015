"""The program in a model's answer: candidates, and the choice between them.

An answer is code among other things: fences, drafts, examples of use, tests, prose, a
second definition that the length cut off. What is around the code must not decide, so
every place that may hold the function is a candidate, and the last that is whole
wins. Imports, constants and helpers come along from wherever they are; what only uses
the function (tests, examples) is left out. Nothing is executed, and the work is linear
in the answer.
"""

from dlm_jax.tasks.extraction.search import Extracted, extract, statements_of

__all__ = ["Extracted", "extract", "statements_of"]
