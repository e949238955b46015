r"""MBPP with LLaDA-8B-Instruct: 256 blanks in blocks of 256.

    python -m experiments.evaluate \
        --config=configs/published/llada_8b_instruct_mbpp_256_256.py \
        --checkpoint=LLaDA-8B-Instruct --dtype=bfloat16 --data=MBPP \
        --workdir=runs/published/llada_8b_instruct_mbpp_256_256

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-8B-Instruct).

Expected: 39.6 % (OpenCompass; 41.0 by the authors' internal toolkit).

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
        gen_length=256,
        block_length=256,
        defer_stops=True,
    )
