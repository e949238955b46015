"""What `experiments.evaluate` does where no flag says otherwise.

    python -m experiments.evaluate --task=sudoku --workdir=runs/evaluate/sudoku

asks the shipped model of a task 1,000 validation examples with four samplers.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Defaults of the flags of the same names."""
    return ConfigDict(
        {
            "task": "sudoku",
            # Of a published task: where its problems are, and how they are written.
            "data": config_dict.placeholder(str),
            "prompt_style": config_dict.placeholder(str),
            # With or without the chat template, where the task does not decide.
            "chat": config_dict.placeholder(bool),
            "sampler": ("low_confidence", "threshold", "entropy_bound", "saber"),
            # Each sampler runs with each cache: none, prefix, dual(refresh_every=8).
            "cache": ("none",),
            "seeds": (0,),
            # valid, where a task has it, or else its first.
            "split": config_dict.placeholder(str),
            # The first 1000, or all where there are fewer.
            "num_examples": config_dict.placeholder(int),
            "example_seed": 0,
            # Of the task, where none are given.
            "gen_length": config_dict.placeholder(int),
            "block_length": config_dict.placeholder(int),
            "temperature": 0.0,
            "guidance": 0.0,
            "suppress_eos": False,
            "defer_stops": False,
            "early_stop": True,
            "precision": "highest",
            "batch_size": 32,
            # Rows of one call: slots are idle only at its end. Samplers take turns,
            # call by call.
            "queue_length": 256,
        }
    )
