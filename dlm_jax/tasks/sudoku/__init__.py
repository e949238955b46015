"""9x9 Sudoku."""

from dlm_jax.tasks.sudoku.task import (
    EOS_ID,
    MASK_ID,
    VOCABULARY,
    Sudoku,
    encode,
    to_text,
)

__all__ = ["EOS_ID", "MASK_ID", "VOCABULARY", "Sudoku", "encode", "to_text"]
