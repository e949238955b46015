r"""MATH with LLaDA-1.5: 1024 blanks in blocks of 128.

    python -m experiments.evaluate \
        --config=configs/published/llada_1_5_math_1024_128.py \
        --checkpoint=LLaDA-1.5 --dtype=bfloat16 --data=MATH \
        --workdir=runs/published/llada_1_5_math_1024_128

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-1.5).

Expected: 42.3 % (OpenCompass; 42.6 by the authors' internal toolkit).

0-shot, one token a forward, temperature 0. EOS and EoT have confidence 0.
Source: ML-GSAI/LLaDA, EVAL.md.
"""

from ml_collections import ConfigDict

from configs.published.setting import setting


def get_config() -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`."""
    return setting(
        task="math",
        prompt_style="opencompass",
        gen_length=1024,
        block_length=128,
        defer_stops=True,
    )
