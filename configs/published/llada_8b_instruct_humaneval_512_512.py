r"""HumanEval with LLaDA-8B-Instruct: 512 blanks in blocks of 512.

    python -m experiments.evaluate \
        --config=configs/published/llada_8b_instruct_humaneval_512_512.py \
        --checkpoint=LLaDA-8B-Instruct --dtype=bfloat16 \
        --workdir=runs/published/llada_8b_instruct_humaneval_512_512

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-8B-Instruct).

Expected: 47.0 % (OpenCompass; 49.4 by the authors' internal toolkit).

0-shot, one token a forward, temperature 0. The logit of EOS is -inf.
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
        block_length=512,
        suppress_eos=True,
    )
