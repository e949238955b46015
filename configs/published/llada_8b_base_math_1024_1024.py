r"""MATH with LLaDA-8B-Base: 1024 blanks in blocks of 1024.

    python -m experiments.evaluate \
        --config=configs/published/llada_8b_base_math_1024_1024.py \
        --checkpoint=LLaDA-8B-Base --dtype=bfloat16 --data=MATH \
        --workdir=runs/published/llada_8b_base_math_1024_1024

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-8B-Base).

Expected: 31.4 % (lm-evaluation-harness).

4-shot text, one token a forward, temperature 0.
Source: ML-GSAI/LLaDA, EVAL.md.
"""

from ml_collections import ConfigDict

from configs.published.setting import setting


def get_config() -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`."""
    return setting(
        task="math",
        prompt_style="harness",
        gen_length=1024,
        block_length=1024,
    )
