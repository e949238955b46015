"""What the settings of this folder share: a published evaluation as a config."""

from ml_collections import ConfigDict

# Examples of the published test sets.
SIZES = {"gsm8k": 1319, "math": 5000, "humaneval": 164, "mbpp": 500}


def setting(
    task: str,
    prompt_style: str,
    gen_length: int,
    block_length: int,
    *,
    suppress_eos: bool = False,
    defer_stops: bool = False,
    sampler: tuple[str, ...] = ("low_confidence(schedule=fixed(k=1))",),
) -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`.

    Args:
      task: of `dlm_jax.tasks`, with its whole test set.
      prompt_style: of the task.
      gen_length: blanks; as many forwards, one token each, by the default sampler.
      block_length: tokens per block.
      suppress_eos: the logit of EOS is -inf (`logits_eos_inf`).
      defer_stops: EOS and EoT have confidence 0 (`confidence_eos_eot_inf`).
      sampler: specs.

    Returns:
      Temperature 0, without guidance and cache, one row at a time as published. More
      rows (--batch_size=8) are faster and change results at most by rounding.
    """
    return ConfigDict(
        {
            "task": task,
            "prompt_style": prompt_style,
            "sampler": sampler,
            "cache": ("none",),
            "seeds": (0,),
            "split": "test",
            "num_examples": SIZES[task],
            "example_seed": 0,
            "gen_length": gen_length,
            "block_length": block_length,
            "temperature": 0.0,
            "guidance": 0.0,
            "suppress_eos": suppress_eos,
            "defer_stops": defer_stops,
            "early_stop": True,
            "batch_size": 1,
            "queue_length": 64,
        }
    )
