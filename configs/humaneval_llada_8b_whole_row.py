r"""HumanEval with LLaDA-8B in one block of 256: Saber's baselines as released.

    python -m experiments.evaluate --config=configs/humaneval_llada_8b_whole_row.py \
        --task=humaneval --checkpoint=LLaDA-8B-Instruct \
        --workdir=runs/humaneval_llada_8b_whole_row

The baselines `margin` and `entropy` of the paper on Saber (arXiv:2510.18165) ignore the
blocks' ends in its released code (github.com/zhaoyMa/Saber, commit 49579a9). At every
step they rank all masks of the answer. A block only sets how many are committed: the
masks in it when it starts, spread evenly over its steps. The HumanEval config released
with that code sets one block of 256, for every method, and the steps default to 256:
one token a step, the best of the whole answer. That is what is run here.

With blocks of 128 the released code of these two commits the same tokens in the same
order, but fewer. Its second block commits as many as its half has masks left when it
starts. If the first block wrote k tokens past its end, the answer ends with k masks
left. That is not run here. Whether the paper's table was made with blocks of 128 or
with the released config is not known here, nor are the table's numbers for these two.

`low_confidence` and `saber_released` keep to blocks, in the released code too. They are
here as its config runs them, and in blocks of 128 in configs/humaneval_llada_8b.py.

What else differs from the released evaluation, in both configs:

- It asks in other words, and starts the answer with the function's head.
- It goes on behind EOS. Here a row stops there, so that it takes fewer forwards.
- Its `margin`, `entropy` and Saber compare probabilities in bfloat16, so that more of
  them are equal, and torch.topk picks any of those. Here they are float32, and the
  first position is picked.
"""

from ml_collections import ConfigDict

from configs import humaneval_llada_8b


def get_config() -> ConfigDict:
    """Defaults of the flags of `experiments.evaluate`."""
    config = humaneval_llada_8b.get_config()
    config.sampler = (
        "low_confidence(schedule=fixed(k=1))",
        "margin",
        "entropy",
        "saber_released",
    )
    config.block_length = config.gen_length
    return config
