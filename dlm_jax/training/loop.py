"""Training masked diffusion models: loss, step, and a loop that resumes exactly.

Nothing here knows a task: a function of the step number gives the batch, so a run that
was interrupted continues with the very batches and masks it would have seen.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from tqdm import tqdm

from dlm_jax.core.canvas import HostArray
from dlm_jax.core.keys import check_seed
from dlm_jax.errors import InputError
from dlm_jax.training import files as training_files

_Model = TypeVar("_Model", bound=nnx.Module)


class Batch(NamedTuple):
    """Training examples.

    Attributes:
      tokens: int32 [b, l]; the clean text.
      is_maskable: bool [b, l]; tokens to learn. The rest is prompt: always shown.
      is_valid: bool [b, l]; False at padding.
    """

    tokens: HostArray
    is_maskable: HostArray
    is_valid: HostArray


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
      num_steps: optimiser steps of the whole run; the learning rate ends at zero.
      learning_rate: its peak, after warmup_steps of linear growth; then cosine decay.
      weight_decay: of AdamW, decoupled; matrices only.
      beta2: of AdamW.
      clip_norm: largest global norm of a gradient.
      ema_decay: per step, of the averaged parameters that are kept as the result.
      min_ratio: smallest probability with which a row's tokens are masked.
      focus_power: how the probability is drawn once focus_step is reached, see
        `corrupt`: above 1, hard rows (mostly masked) come more often. It pays once the
        others are learned and teach nothing; 1 is LLaDA's uniform draw.
      focus_step: until then the draw is uniform.
      seed: of the masks.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      log_every: steps between lines of the curve.
    """

    num_steps: int
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    min_ratio: float = 0.02
    focus_power: float = 1.0
    focus_step: int = 0
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 50

    def __post_init__(self):
        check_seed(self.seed)
        if not 0 <= self.warmup_steps < self.num_steps:
            raise InputError(
                f"warmup_steps ({self.warmup_steps}) must be in "
                f"[0, num_steps={self.num_steps})"
            )
        if not 0 < self.min_ratio <= 1:
            raise InputError(f"min_ratio ({self.min_ratio}) must be in (0, 1]")
        if self.focus_power <= 0:
            raise InputError(f"focus_power ({self.focus_power}) must be above 0")
        for name in ("checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} ({getattr(self, name)}) must be at least 1")


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 []; steps taken.
      params: the parameters.
      ema: their moving average.
      opt_state: the optimiser's state.
    """

    step: PyTree
    params: PyTree
    ema: PyTree
    opt_state: PyTree


def corrupt(
    key: Key[Array, ""],
    is_maskable: Bool[Array, "b l"],
    min_ratio: float,
    power: float | Float[Array, ""] = 1.0,
) -> tuple[Bool[Array, "b l"], Float[Array, "b"]]:
    """Draws which tokens are masked: each with its row's own probability.

    The probability is 1 - (1 - min_ratio) * u^power with u uniform over [0, 1]. The
    draws of u are stratified: b rows cut the interval into b equal parts and each takes
    one, which lowers the variance of the loss (arXiv:2107.00630, appendix I.1).

    Args:
      key: the random key.
      is_maskable: tokens that may be masked.
      min_ratio: the smallest probability.
      power: 1 is uniform over [min_ratio, 1]; larger ones favour high probabilities.

    Returns:
      The masked tokens, a subset of is_maskable, and the probability of each row.
    """
    key_offset, key_order, key_mask = jax.random.split(key, 3)
    b = is_maskable.shape[0]
    u = (jax.random.uniform(key_offset) + jnp.arange(b) / b) % 1
    # 1 - u rather than u: at power 1 the probability then grows with u.
    u = 1 - jax.random.permutation(key_order, u)
    ratio = 1 - (1 - min_ratio) * u**power
    draw = jax.random.uniform(key_mask, is_maskable.shape)
    return is_maskable & (draw < ratio[:, None]), ratio


def diffusion_loss(
    logits: Float[Array, "b l v"],
    tokens: Int[Array, "b l"],
    is_masked: Bool[Array, "b l"],
    is_maskable: Bool[Array, "b l"],
    ratio: Float[Array, "b"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """LLaDA's fine-tuning objective (arXiv:2502.09992, equation 5), per maskable token.

    Args:
      logits: the model's output for the masked text; position i predicts token i.
      tokens: the clean text.
      is_masked: what the model did not see.
      is_maskable: what could have been masked; its number normalises a row.
      ratio: the probability with which a row's tokens were masked.

    Returns:
      The mean over rows of sum_masked(-log p) / (ratio * number of maskable tokens), an
      upper bound in nats per token, and the plain mean of -log p over masked tokens.
    """
    nll = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), tokens
    )
    nll = jnp.where(is_masked, nll, 0)
    num_maskable = jnp.maximum(is_maskable.sum(1), 1)
    loss = jnp.mean(nll.sum(1) / (ratio * num_maskable))
    return loss, nll.sum() / jnp.maximum(is_masked.sum(), 1)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW with clipping, linear warm-up and cosine decay to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.num_steps
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map_with_path(_is_matrix, params),
        ),
    )


def _is_matrix(path: tuple[Any, ...], weight: Array) -> bool:
    """Whether a parameter is a matrix, or a stack of them over layers."""
    # A stack of vectors has a matrix's rank, so its name decides.
    name = jax.tree_util.keystr(path)
    return weight.ndim > 1 and "norm" not in name and "bias" not in name


def make_train_step(
    graphdef: nnx.GraphDef,
    mask_id: int,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The pure step, to be jitted: state, batch -> state, scalars `loss` and `nll`."""

    def train_step(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        tokens = jnp.asarray(batch.tokens)
        is_maskable = jnp.asarray(batch.is_maskable & batch.is_valid)
        power = jnp.where(state.step < config.focus_step, 1.0, config.focus_power)
        is_masked, ratio = corrupt(key, is_maskable, config.min_ratio, power)

        def loss_fn(params: PyTree) -> tuple[Array, Array]:
            shown = jnp.where(is_masked, mask_id, tokens)
            logits = nnx.merge(graphdef, params)(shown, batch.is_valid)
            return diffusion_loss(logits, tokens, is_masked, is_maskable, ratio)

        (loss, nll), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The average follows closely at first, else it would remember the start.
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        state = TrainState(state.step + 1, params, ema, opt_state)
        return state, {"loss": loss, "nll": nll}

    return train_step


def _place(
    params: PyTree, optimizer: optax.GradientTransformation
) -> tuple[TrainState, jax.NamedSharding]:
    """The first state, on every device, and where batches are split."""
    devices = jax.make_mesh(
        (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    everywhere = jax.NamedSharding(devices, jax.P())

    def start(params: PyTree) -> TrainState:
        # Two copies: the step is given its input's memory, and may not get one twice.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))

    # Parameters from a checkpoint are bound to one device, which jit does not change.
    params = jax.device_put(params, everywhere)
    state = jax.jit(start, out_shardings=everywhere)(params)
    return state, jax.NamedSharding(devices, jax.P("data"))


def train(
    model: _Model,
    batch_at: Callable[[int], tuple[HostArray, HostArray, HostArray]],
    config: TrainConfig,
    workdir: str | os.PathLike,
    *,
    mask_id: int,
    made_by: Mapping[str, Any] | None = None,
    stop_at: int | None = None,
    is_quiet: bool = False,
) -> _Model:
    """Trains a model, continuing from the newest checkpoint in workdir if there is one.

    Batches are split over all devices, parameters are on each of them.

    Args:
      model: called as model(tokens, is_valid) -> logits; its parameters are the start.
      batch_at: step -> the three arrays of a `Batch`, a pure function; the batch size
        must be the same at all steps, and a multiple of the number of devices.
      config: how to train; a resumed run must have the same one.
      workdir: gets `checkpoints/` and `curve.jsonl`.
      mask_id: the token that hides another.
      made_by: what else the run depends on, such as the description of its data, as
        JSON; a resumed run must have the same.
      stop_at: leave after this many steps, as an interruption would.
      is_quiet: no progress bar.

    Returns:
      A model with the averaged parameters.

    Raises:
      InputError: if workdir holds a run of another configuration, batch size, model
        or made_by, naming what differs; or more steps than stop_at.
    """
    workdir = pathlib.Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    graphdef, params = nnx.split(model)
    batch_size = len(batch_at(0)[0])
    if batch_size % jax.device_count():
        raise InputError(
            f"batch size ({batch_size}) must be a multiple of the number of devices "
            f"({jax.device_count()})"
        )
    record = training_files.record(
        params,
        **dataclasses.asdict(config),
        batch_size=batch_size,
        mask_id=mask_id,
        made_by=dict(made_by or {}),
    )
    # The first state and the compiled step.
    optimizer = make_optimizer(config)
    state, by_row = _place(params, optimizer)
    train_step = jax.jit(
        make_train_step(graphdef, mask_id, optimizer, config), donate_argnums=0
    )
    # From the newest checkpoint, step by step.
    with training_files.Checkpoints(workdir / "checkpoints") as saved:
        state = saved.restore(state, record)
        first = int(state.step)
        if stop_at is not None and first > stop_at:
            raise InputError(
                f"stop_at ({stop_at}) must be at least the {first} steps that are done"
            )
        last = config.num_steps if stop_at is None else min(stop_at, config.num_steps)
        curve = training_files.Curve(workdir / "curve.jsonl", first)
        bar = tqdm(
            range(first, last), initial=first, total=config.num_steps, disable=is_quiet
        )
        for step in bar:
            batch = Batch(*batch_at(step))
            state, metrics = train_step(state, jax.device_put(batch, by_row))
            curve.add(metrics, batch.tokens.size)
            if (step + 1) % config.log_every == 0 or step + 1 == last:
                bar.set_postfix(curve.write(step + 1))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == last:
                saved.save(int(state.step), state, record)
    return nnx.merge(graphdef, state.ema)
