r"""MATH with LLaDA-8B-Instruct: 512 blanks in blocks of 512.

    python -m experiments.evaluate \
        --config=configs/published/llada_8b_instruct_math_512_512.py \
        --checkpoint=LLaDA-8B-Instruct --dtype=bfloat16 --data=MATH \
        --workdir=runs/published/llada_8b_instruct_math_512_512

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-8B-Instruct).

Expected: 29.6 % (OpenCompass; 31.9 by the authors' internal toolkit).

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
        gen_length=512,
        block_length=512,
        defer_stops=True,
    )
