"""A small tokenizer with LLaDA's special tokens and chat template, and its model."""

from dlm_jax.models.llada import LLaDAConfig
from dlm_jax.text.characters import character_tokenizer

# LLaDA's special tokens, in another order than its ids.
BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
HEADER, HEADER_END, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
LETTERS = "\n abcdefghijklmnopqrstuvwxyz.é"
VOCABULARY = (BOS, EOS, *LETTERS, MASK, HEADER, HEADER_END, EOT)
IDS = {token: i for i, token in enumerate(VOCABULARY)}
# LLaDA-8B-Instruct's format: bos, the messages, and always the assistant's header.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
CONFIG = LLaDAConfig(
    d_model=8,
    n_heads=2,
    n_kv_heads=2,
    n_layers=1,
    mlp_hidden_size=8,
    vocab_size=len(VOCABULARY),
    embedding_size=40,
    max_sequence_length=128,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    weight_tying=False,
    mask_token_id=IDS[MASK],
    eos_token_id=IDS[EOS],
    pad_token_id=IDS[EOS],
)


def make_tokenizer():
    """One token per character, and the special ones; without the template."""
    return character_tokenizer(VOCABULARY, bos=BOS, eos=EOS, mask=MASK)
