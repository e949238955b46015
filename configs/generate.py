"""What `experiments.generate` does where no flag says otherwise.

    python -m experiments.generate

solves 8 held-out puzzles with three samplers, side by side.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Defaults of the flags of the same names, and the puzzles."""
    return ConfigDict(
        {
            # What is solved without --prompt or --prompts_file, by the shipped model of
            # the same name without --checkpoint: a task, one of its splits (Sudoku has
            # test, hard and valid), how many examples, and how many are printed.
            "task": "sudoku",
            "split": "test",
            "num_examples": 8,
            "num_shown": 8,
            "sampler": ("saber", "entropy_bound", "low_confidence"),
            # Those of LLaDA's released chat script; infilling knows its own length and
            # is one block unless --block_length is given.
            "gen_length": 128,
            "block_length": 32,
            "temperature": 0.0,
            "guidance": 0.0,
            "suppress_eos": False,
            "defer_stops": False,
            "early_stop": True,
            "precision": "highest",
            # Or prefix, dual(refresh_every=8); block for block-causal models.
            "cache": "none",
            "seed": 0,
            "batch_size": 8,
        }
    )
