r"""GSM8K with LLaDA-1.5: 256 blanks in blocks of 16.

    python -m experiments.evaluate \
        --config=configs/published/llada_1_5_gsm8k_256_16.py \
        --checkpoint=LLaDA-1.5 --dtype=bfloat16 --data=GSM8K \
        --workdir=runs/published/llada_1_5_gsm8k_256_16

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-1.5).

Expected: 83.6 % (OpenCompass; 83.8 by the authors' internal toolkit).

4-shot conversation, one token a forward, temperature 0. EOS and EoT have confidence 0.
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
        block_length=16,
        defer_stops=True,
    )
