"""A low-confidence sampler as a user's own PyTorch file: the subject of a recording.

LLaDA's rule (arXiv:2502.09992): a block of m masks and s steps commits m // s tokens a
step, the first m % s steps one more, the most confident first.
"""

import torch


def generate(
    model,
    prompt,
    attention_mask=None,
    steps=16,
    gen_length=32,
    block_length=32,
    cfg_scale=0.0,
    mask_id=299,
):
    """Returns the prompt and gen_length generated tokens, [1, p + gen_length]."""
    start = prompt.shape[1]
    row = torch.full((1, start + gen_length), mask_id, dtype=torch.long)
    row[:, :start] = prompt
    num_blocks = gen_length // block_length
    block_steps = steps // num_blocks
    for block in range(num_blocks):
        first = start + block * block_length
        share, extra = divmod(block_length, block_steps)
        for step in range(block_steps):
            if cfg_scale:
                blind = row.clone()
                blind[:, :start] = mask_id
                mask = attention_mask.new_ones(2, row.shape[1])
                both = model(torch.cat([row, blind]), attention_mask=mask).logits
                logits = both[1:] + (cfg_scale + 1) * (both[:1] - both[1:])
            else:
                logits = model(row).logits
            confidence, token = logits[0].softmax(-1).max(-1)
            is_mask = row[0] == mask_id
            is_mask[first + block_length :] = False
            confidence = torch.where(is_mask, confidence, -torch.inf)
            chosen = confidence.topk(share + (step < extra)).indices
            row[0, chosen] = token[chosen]
    return row
