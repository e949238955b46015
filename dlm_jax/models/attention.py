"""Softmax attention without a causal mask, by the kernel that fits the backend.

A denoiser holds one of these functions (`llada.LLaDA.attention`), `best` by default:

    model.attention = attention.batched
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Widest head of cuDNN's kernel on every GPU that it runs on.
_CUDNN_HEAD_DIM = 128
# Lanes of a TPU's registers: lengths are padded to a multiple of it, and heads that are
# narrower waste what is left.
_TPU_LANES = 128
# Keys and queries that the TPU's kernel holds at once, where there are as many.
_TPU_BLOCK = 512


# Signature shared by all attention kernels. Query head i of h reads key head
# i // (h / g). Queries and keys are rotated already. visibility is True where a query
# may see a key. The bool, sees_first, says that all queries see the same keys, and that
# those come before all hidden ones: their number is then as good as the mask. Returns
# the attended values in query's dtype. A query that sees no key gets some mean of
# values instead of NaN, so that rows of padding alone stay finite.
Attention = Callable[
    [
        Float[Array, "b q h d"],
        Float[Array, "b k g d"],
        Float[Array, "b k g d"],
        Bool[Array, "b #q k"],
        bool,
    ],
    Float[Array, "b q h d"],
]


def best(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visibility: Bool[Array, "b #q k"],
    sees_first: bool = False,
) -> Float[Array, "b q h d"]:
    """The kernel for JAX's default backend, where it takes these shapes and this dtype.

    That is `cudnn` on a GPU for bfloat16 and float16, `flash` on a TPU for wide heads,
    at least 128 queries and keys that all of them see alike, and `batched` everywhere
    else.

    Args: see `Attention`.
    """
    return _choose(jax.default_backend(), query, key, value, visibility, sees_first)


@functools.cache
def best_on(backend: str) -> Attention:
    """`best` of a backend that is not JAX's default, to compile for it.

    Args:
      backend: "cpu", "gpu" or "tpu".
    """
    return functools.partial(_choose, backend)


def _choose(
    backend: str,
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visibility: Bool[Array, "b #q k"],
    sees_first: bool = False,
) -> Float[Array, "b q h d"]:
    head_dim = query.shape[-1]
    kernel = batched
    if backend == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16):
        if head_dim % 8 == 0 and head_dim <= _CUDNN_HEAD_DIM:
            kernel = cudnn
    elif backend == "tpu" and visibility.shape[1] == 1 and head_dim % _TPU_LANES == 0:
        # Fewer queries would be padded, and keys and values of a cache copied into the
        # kernel's order of axes (docs/aot.md).
        kernel = flash if query.shape[1] >= _TPU_LANES else batched
    return kernel(query, key, value, visibility, sees_first)


def cudnn(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visibility: Bool[Array, "b #q k"],
    sees_first: bool = False,
) -> Float[Array, "b q h d"]:
    """Flash attention of cuDNN, on NVIDIA GPUs: scores never leave the chip.

    It reads a mask of [b, 1, q, k] beside queries and keys, or the number of keys.

    Args: see `Attention`; bfloat16 or float16, heads of a multiple of 8 up to 128.
    """
    attend = functools.partial(
        jax.nn.dot_product_attention, query, key, value, implementation="cudnn"
    )
    if sees_first:
        # A row that sees none, which nobody reads, is shown one: it stays finite.
        num = jnp.sum(visibility[:, 0], axis=1, dtype=jnp.int32)
        return attend(key_value_seq_lengths=jnp.maximum(num, 1))
    seen = jnp.broadcast_to(visibility, (*query.shape[:2], key.shape[1]))
    return attend(mask=seen[:, None])


def flash(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visibility: Bool[Array, "b 1 k"],
    sees_first: bool = False,
) -> Float[Array, "b q h d"]:
    """JAX's Pallas kernel of flash attention, on TPUs: scores never leave the chip.

    Args: see `Attention`; all queries see the same keys.
    """
    # Registers the TPU's compiler, which nothing else needs.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    num_repeats = query.shape[2] // key.shape[2]
    length = query.shape[1]
    # Tokens see those of their own segment. Queries are in the one of visible keys.
    segments = kernel.SegmentIds(
        q=_pad(jnp.ones(query.shape[:2], jnp.int32), axis=1),
        kv=_pad(visibility[:, 0].astype(jnp.int32), axis=1),
    )
    query, key, value = (
        _pad(x.swapaxes(1, 2), axis=2)
        for x in (
            query,
            jnp.repeat(key, num_repeats, axis=2),
            jnp.repeat(value, num_repeats, axis=2),
        )
    )
    block = _block_size(math.gcd(query.shape[2], key.shape[2]))
    blocks = {field.name for field in dataclasses.fields(kernel.BlockSizes)}
    out = kernel.flash_attention(
        query,
        key,
        value,
        segment_ids=segments,
        sm_scale=query.shape[-1] ** -0.5,
        block_sizes=kernel.BlockSizes(
            block_b=1, **dict.fromkeys(blocks - {"block_b"}, block)
        ),
    )
    return out[:, :, :length].swapaxes(1, 2)


def _pad(x: Array, axis: int) -> Array:
    """Zeros behind x, up to whole lanes."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % _TPU_LANES)
    return jnp.pad(x, widths)


def _block_size(length: int) -> int:
    """The largest multiple of the lanes that divides a padded length, up to a block."""
    sizes = range(_TPU_LANES, min(length, _TPU_BLOCK) + 1, _TPU_LANES)
    return max(size for size in sizes if length % size == 0)


def batched(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visibility: Bool[Array, "b #q k"],
    sees_first: bool = False,
) -> Float[Array, "b q h d"]:
    """Attention through XLA, on any backend and in any dtype.

    Written as a batched matrix product over [b, g, h/g * q, d], without repeated keys.
    On two CPU cores a whole forward with an einsum over [b, q, h, d] takes 1.1 to 1.5
    times as long, with `jax.nn.dot_product_attention` 1.02 to 1.25 times (float32, jax
    0.10.2, medians of pairs, four shapes from 1 x 90 to 8 x 256 tokens).

    Args: see `Attention`.
    """
    b, q, h, d = query.shape
    g = key.shape[2]
    query = query.transpose(0, 2, 1, 3).reshape(b, g, (h // g) * q, d)
    key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
    out = _attend(query, key, value, visibility)
    return out.reshape(b, h, q, d).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _attend(
    query: Float[Array, "b g q d"],
    key: Float[Array, "b g d k"],
    value: Float[Array, "b g k d"],
    visibility: Bool[Array, "b #p k"],
) -> Float[Array, "b g q d"]:
    """Attention of q = h/g * p queries per key head; see `_attend_backward`."""
    return _attend_forward(query, key, value, visibility)[0]


def _attend_forward(
    query: Float[Array, "b g q d"],
    key: Float[Array, "b g d k"],
    value: Float[Array, "b g k d"],
    visibility: Bool[Array, "b #p k"],
) -> tuple[Float[Array, "b g q d"], tuple[Array, ...]]:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.matmul(query, key, preferred_element_type=wide)
    scores = scores * query.shape[-1] ** -0.5
    # Added, not selected: no score is large enough to change the lowest number, and on
    # CPUs XLA makes one loop of a sum and the softmax. Selecting takes a tenth of a
    # forward (two cores, float32, jax 0.10.2, 32 x 90 tokens, medians of 25 pairs).
    is_seen = _by_query(visibility, query.shape[2])
    scores = scores + jnp.where(is_seen, 0, jnp.finfo(wide).min).astype(wide)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.matmul(weights, value)
    return out, (query, key, value, visibility, weights, out)


def _by_query(visibility: Bool[Array, "b #p k"], q: int) -> Bool[Array, "b 1 #q k"]:
    """What the q queries of a key head see; h/g heads lie behind each other."""
    p = visibility.shape[1]
    if p > 1:
        visibility = jnp.tile(visibility, (1, q // p, 1))
    return visibility[:, None]


def _attend_backward(
    saved: tuple[Array, ...], d_out: Float[Array, "b g q d"]
) -> tuple[Float[Array, "..."] | None, ...]:
    """The gradients from the weights and the output alone.

    A softmax's gradient needs sum(weights * d_weights) over keys, which is sum(out *
    d_out) over d (arXiv:2205.14135, appendix B). Autodiff would keep and read again the
    scores and several more arrays of their size: a tenth of a training step on two CPU
    cores (0.87 s instead of 0.78 s, 48 x 112 tokens, blocks recomputed either way).
    """
    query, key, value, visibility, weights, out = saved
    wide = jnp.promote_types(query.dtype, jnp.float32)
    d_value = jnp.matmul(weights.swapaxes(-1, -2), d_out)
    d_weights = jnp.matmul(d_out, value.swapaxes(-1, -2), preferred_element_type=wide)
    mean = jnp.sum(out.astype(wide) * d_out, axis=-1, keepdims=True)
    d_scores = weights * (d_weights - mean) * query.shape[-1] ** -0.5
    d_scores = jnp.where(_by_query(visibility, query.shape[2]), d_scores, 0)
    d_scores = d_scores.astype(query.dtype)
    d_query = jnp.matmul(d_scores, key.swapaxes(-1, -2))
    d_key = jnp.matmul(query.swapaxes(-1, -2), d_scores)
    return d_query, d_key, d_value, None


_attend.defvjp(_attend_forward, _attend_backward)
