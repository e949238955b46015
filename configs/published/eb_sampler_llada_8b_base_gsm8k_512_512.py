r"""EB-Sampler on GSM8K with LLaDA-8B-Base: one token a forward against gamma.

    python -m experiments.evaluate \
        --config=configs/published/eb_sampler_llada_8b_base_gsm8k_512_512.py \
        --checkpoint=LLaDA-8B-Base --dtype=bfloat16 --data=GSM8K \
        --workdir=runs/published/eb_sampler_llada_8b_base_gsm8k_512_512

CHECKPOINT is the directory of the published weights (GSAI-ML/LLaDA-8B-Base).

Expected: for some gamma, an NFE ratio of 2 to 3 without loss of accuracy. So the paper
says of GSM8K, MATH, HumanEval and MBPP; with --task and --num_examples the others are
asked. Its lengths and gammas are not known here: the lengths are those of a row of
LLaDA's own table, which has 70.8 % for one token a forward.

5-shot text, temperature 0. The gammas are values in use.
Source: EB-Sampler, arXiv:2505.24857; ML-GSAI/LLaDA, EVAL.md.
"""

from ml_collections import ConfigDict

from configs.published.setting import setting


def get_config() -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`."""
    return setting(
        task="gsm8k",
        prompt_style="harness",
        gen_length=512,
        block_length=512,
        sampler=(
            "low_confidence(schedule=fixed(k=1))",
            "entropy_bound(gamma=0.001)",
            "entropy_bound(gamma=0.01)",
            "entropy_bound(gamma=0.1)",
        ),
    )
