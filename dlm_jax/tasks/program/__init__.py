"""Small Python functions, written from a description."""

from dlm_jax.tasks.program.task import LongProgram, Program

__all__ = ["LongProgram", "Program"]
