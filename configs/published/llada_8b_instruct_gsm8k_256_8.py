r"""GSM8K with LLaDA-8B-Instruct: 256 blanks in blocks of 8.

    python -m experiments.evaluate \
        --config=configs/published/llada_8b_instruct_gsm8k_256_8.py \
        --checkpoint=LLaDA-8B-Instruct --dtype=bfloat16 --data=GSM8K \
        --workdir=runs/published/llada_8b_instruct_gsm8k_256_8

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-8B-Instruct).

Expected: 78.9 % (OpenCompass; 78.6 by the authors' internal toolkit).

4-shot conversation, one token a forward, temperature 0.
Source: ML-GSAI/LLaDA, EVAL.md.
"""

from ml_collections import ConfigDict

from configs.published.setting import setting


def get_config() -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`."""
    return setting(
        task="gsm8k",
        prompt_style="opencompass",
        gen_length=256,
        block_length=8,
    )
