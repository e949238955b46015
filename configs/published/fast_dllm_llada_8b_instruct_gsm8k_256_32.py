r"""GSM8K with LLaDA-8B-Instruct: 256 blanks in blocks of 32.

    python -m experiments.evaluate \
        --config=configs/published/fast_dllm_llada_8b_instruct_gsm8k_256_32.py \
        --checkpoint=LLaDA-8B-Instruct --dtype=bfloat16 --data=GSM8K \
        --workdir=runs/published/fast_dllm_llada_8b_instruct_gsm8k_256_32

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-8B-Instruct).

Expected: 79.3 % (lm-evaluation-harness, without a cache).

5-shot text, one token a forward, temperature 0.
Source: Fast-dLLM, arXiv:2505.22618, which uses no chat template here.
"""

from ml_collections import ConfigDict

from configs.published.setting import setting


def get_config() -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`."""
    return setting(
        task="gsm8k",
        prompt_style="harness",
        gen_length=256,
        block_length=32,
    )
