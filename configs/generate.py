"""What `experiments.generate` does where no flag says otherwise.

    python -m experiments.generate

fills 8 held-out puzzles with three samplers, side by side.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Defaults of the flags of the same names, and the puzzles."""
    return ConfigDict(
        {
            # Shipped model that is used without --checkpoint.
            "zoo": "sudoku",
            # What is solved without --prompt or --prompts_file: puzzles of a split of
            # `tasks.sudoku.examples` (test, hard or valid), and how many are printed.
            "split": "test",
            "num_puzzles": 8,
            "num_shown": 8,
            "sampler": ("saber", "entropy_bound", "low_confidence"),
            # Those of LLaDA's released chat script; infilling knows its own length and
            # is one block unless --block_length is given.
            "gen_length": 128,
            "block_length": 32,
            "temperature": 0.0,
            "seed": 0,
            "batch_size": 8,
        }
    )
