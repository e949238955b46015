r"""MBPP with LLaDA-1.5: 512 blanks in blocks of 32.

    python -m experiments.evaluate \
        --config=configs/published/llada_1_5_mbpp_512_32.py \
        --checkpoint=LLaDA-1.5 --dtype=bfloat16 --data=MBPP \
        --workdir=runs/published/llada_1_5_mbpp_512_32

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-1.5).

Expected: 42.6 % (OpenCompass; 42.8 by the authors' internal toolkit).

3-shot conversation, one token a forward, temperature 0. EOS and EoT have confidence 0.
Source: ML-GSAI/LLaDA, EVAL.md.
"""

from ml_collections import ConfigDict

from configs.published.setting import setting


def get_config() -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`."""
    return setting(
        task="mbpp",
        prompt_style="opencompass",
        gen_length=512,
        block_length=32,
        defer_stops=True,
    )
