r"""HumanEval with LLaDA-1.5: 512 blanks in blocks of 32.

    python -m experiments.evaluate \
        --config=configs/published/llada_1_5_humaneval_512_32.py \
        --checkpoint=LLaDA-1.5 --dtype=bfloat16 \
        --workdir=runs/published/llada_1_5_humaneval_512_32

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-1.5).

Expected: 51.2 % (OpenCompass; 52.4 by the authors' internal toolkit).

0-shot, one token a forward, temperature 0. EOS and EoT have confidence 0.
Source: ML-GSAI/LLaDA, EVAL.md.
"""

from ml_collections import ConfigDict

from configs.published.setting import setting


def get_config() -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`."""
    return setting(
        task="humaneval",
        prompt_style="opencompass",
        gen_length=512,
        block_length=32,
        defer_stops=True,
    )
