"""The breaks that `mutations` makes, one by one."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One break.

    Attributes:
      name: what it does.
      file: below the repository's root.
      old: text that stands once in the file.
      new: what takes its place.
      tests: files or node ids that are to notice, the likeliest first.
      equivalent: why nothing changes, if nothing does.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""


LOOP, ROW = "dlm_jax/core/loop.py", "dlm_jax/core/row.py"
DECIDE = "dlm_jax/core/decide.py"
SLOTS, NOISE = "dlm_jax/core/slots.py", "dlm_jax/core/noise.py"
PREDICT, SUMMARY = "dlm_jax/core/predict.py", "dlm_jax/core/summary.py"
SELECT, SCHEDULES = "dlm_jax/samplers/select.py", "dlm_jax/samplers/schedules.py"
SABER = "dlm_jax/samplers/saber.py"
FORWARD, STACK = "dlm_jax/core/forward.py", "dlm_jax/models/stack.py"
ATTENTION = "dlm_jax/models/attention.py"
APPROXIMATE, BLOCK = "dlm_jax/caches/approximate.py", "dlm_jax/caches/block.py"
T_LOOP = ("tests/core/test_generate.py", "tests/core/test_decisions.py")
T_SLOTS = ("tests/core/test_decisions.py", "tests/core/test_queue.py")
T_PREDICT = ("tests/core/test_predict.py", "tests/core/test_predict_rounding.py")
T_SELECT = ("tests/samplers/test_select.py",)
T_CACHE = ("tests/core/test_cache.py", "tests/core/test_cache_contract.py")
T_CHECKS = ("tests/core/test_checks.py",)
T_ATTENTION = ("tests/models/test_attention.py",)
T_EDITS = ("tests/core/test_edits.py",)
T_CONTRACT = ("tests/core/test_cache_contract.py",)
T_SABER = ("tests/samplers/test_saber.py",)

MUTATIONS = (
    # The loop.
    Mutation(
        "the draw and the rule share a key",
        LOOP,
        "_DRAW, _RULE = range(2)",
        "_DRAW, _RULE = 0, 0",
        ("tests/core/test_decisions.py",),
    ),
    Mutation(
        "every step has the same key",
        LOOP,
        "keys = jax.vmap(jax.random.fold_in)(jobs.keys, rows.step)",
        "keys = jobs.keys",
        ("tests/core/test_temperature.py", "tests/core/test_contract.py"),
    ),
    Mutation(
        "rows are taken as given, not fullest first",
        LOOP,
        "jnp.where(rows.is_done, 1, -num_blanks)",
        "jnp.where(rows.is_done, 1, 0 * num_blanks)",
        ("tests/core/test_queue.py",),
    ),
    Mutation(
        "guidance: halves are swapped",
        LOOP,
        "lambda x, y: jnp.concatenate([x, y])",
        "lambda x, y: jnp.concatenate([y, x])",
        T_LOOP,
    ),
    Mutation(
        "the queue pauses one iteration early",
        LOOP,
        "carry.iteration < until",
        "carry.iteration + 1 < until",
        ("tests/core/test_queue.py",),
        equivalent="where the loop pauses changes no result",
    ),
    Mutation(
        "full precision for bfloat16 only",
        "dlm_jax/core/denoiser.py",
        ".dtype.itemsize >= 4",
        ".dtype.itemsize < 4",
        ("tests/core/test_generate.py",),
    ),
    # A row.
    Mutation(
        "a row stops although masks stand before its EOS",
        ROW,
        "(frame.rank > stop) & is_clear",
        "(frame.rank > stop)",
        ("tests/core/test_generate.py",),
    ),
    Mutation(
        "stop ids in a prompt count",
        ROW,
        "is_stop &= frame.is_editable & ~is_mask & frame.can_stop",
        "is_stop &= ~is_mask & frame.can_stop",
        ("tests/core/test_generate.py",),
        equivalent="a prompt's positions have rank g, which is no stop",
    ),
    Mutation(
        "an undecided position stops",
        ROW,
        "is_stop &= frame.is_editable & ~is_mask & frame.can_stop",
        "is_stop &= frame.is_editable & frame.can_stop",
        ("tests/core/test_generate.py",),
        equivalent="undecided positions hold mask_id, which is no stop id",
    ),
    Mutation(
        "all rows stop",
        ROW,
        "is_stop &= frame.is_editable & ~is_mask & frame.can_stop",
        "is_stop &= frame.is_editable & ~is_mask",
        ("tests/core/test_generate.py",),
    ),
    Mutation(
        "the stop itself is overwritten",
        ROW,
        "(frame.rank > stop) & is_clear",
        "(frame.rank >= stop) & is_clear",
        ("tests/core/test_generate.py",),
    ),
    Mutation(
        "guidance hides the prompt before the blanks only",
        ROW,
        "is_prompt = frame.is_valid & ~frame.is_editable",
        "is_prompt = frame.is_valid & (jnp.cumsum(frame.is_editable) == 0)",
        ("tests/core/test_generate.py",),
    ),
    Mutation(
        "guidance hides what a view appends",
        ROW,
        "view.tokens.shape[0] - is_prompt.shape[0]))",
        "view.tokens.shape[0] - is_prompt.shape[0]), constant_values=True)",
        ("tests/core/test_generate.py",),
    ),
    Mutation(
        "commits are not kept to open positions",
        ROW,
        "is_free = canvas.is_open & prediction.is_known & ~has_nan",
        "is_free = prediction.is_known & ~has_nan",
        ("tests/core/test_decisions.py", "tests/core/test_generate.py"),
    ),
    Mutation(
        "commits are not kept to predicted positions",
        ROW,
        "is_free = canvas.is_open & prediction.is_known & ~has_nan",
        "is_free = canvas.is_open & ~has_nan",
        ("tests/core/test_decisions.py",),
    ),
    Mutation(
        "a row with a NaN goes on writing",
        ROW,
        "is_free = canvas.is_open & prediction.is_known & ~has_nan",
        "is_free = canvas.is_open & prediction.is_known",
        ("tests/core/test_generate.py",),
    ),
    Mutation(
        "a NaN does not end its row",
        ROW,
        "        | has_nan\n",
        "",
        ("tests/core/test_generate.py",),
    ),
    Mutation(
        "the mask token is written",
        DECIDE,
        "commit &= written != canvas.mask_id",
        "commit &= written == written",
        ("tests/core/test_decisions.py",),
    ),
    Mutation(
        "undecided positions are taken back",
        DECIDE,
        "remask = decision.remask & is_free & (commit | ~canvas.is_mask)",
        "remask = decision.remask & is_free",
        ("tests/core/test_decisions.py",),
    ),
    Mutation(
        "deferred candidates do not wait",
        DECIDE,
        "is_eligible = jnp.where(jnp.any(is_ready), is_ready, is_eligible)",
        "is_eligible = jnp.where(jnp.any(is_ready), is_eligible, is_eligible)",
        ("tests/core/test_decisions.py",),
    ),
    Mutation(
        "deferred candidates wait for ever",
        DECIDE,
        "is_eligible = jnp.where(jnp.any(is_ready), is_ready, is_eligible)",
        "is_eligible = is_ready",
        ("tests/core/test_decisions.py",),
    ),
    Mutation(
        "unpredicted positions are eligible",
        DECIDE,
        "is_eligible = canvas.is_eligible & prediction.is_known",
        "is_eligible = canvas.is_eligible",
        ("tests/core/test_decisions.py",),
    ),
    Mutation(
        "blocks end one position late",
        ROW,
        "block_of = count // options.block_length - first",
        "block_of = (count - 1) // options.block_length - first",
        ("tests/core/test_generate.py",),
    ),
    Mutation(
        "a block's steps go on counting in the next",
        ROW,
        "block_step=jnp.where(is_over, 0, row.block_step + decides)",
        "block_step=row.block_step + decides",
        ("tests/samplers/test_schedules.py", "tests/core/test_contract.py"),
    ),
    Mutation(
        "a done row goes on",
        FORWARD,
        "predict(part), ~is_done, kind, cache",
        "predict(part), jnp.ones_like(is_done), kind, cache",
        ("tests/core/test_generate.py", "tests/core/test_contract.py"),
    ),
    Mutation(
        "what is taken back keeps its commit step",
        ROW,
        "commit_step = jnp.where(is_mask, -1, commit_step)",
        "commit_step = jnp.where(is_mask & ~remask, -1, commit_step)",
        ("tests/core/test_decisions.py",),
    ),
    # Slots.
    Mutation(
        "a refilled slot keeps the old row's sampler state",
        SLOTS,
        "slots=where(is_new, _take(rows, new_ids), queue.slots)",
        "slots=dataclasses.replace(where(is_new, _take(rows, new_ids), queue.slots),"
        " state=queue.slots.state)",
        T_SLOTS,
    ),
    Mutation(
        "a refilled slot keeps the old row's keys and numbers",
        SLOTS,
        "jobs=where(is_new, _take(todo.jobs, new_ids), queue.jobs)",
        "jobs=queue.jobs",
        ("tests/core/test_queue.py",),
    ),
    Mutation(
        "the last waiting row gets no slot",
        SLOTS,
        "place < todo.num_open",
        "place < todo.num_open - 1",
        ("tests/core/test_queue.py",),
    ),
    # Statistics.
    Mutation(
        "log-probabilities lose digits near 1",
        PREDICT,
        'value = (logit - summary["max"]) - log_sum',
        'value = logit - (summary["max"] + log_sum)',
        T_PREDICT,
    ),
    Mutation(
        "the best token's mass is in the sum",
        PREDICT,
        'log_sum = jnp.log1p(summary["rest"])',
        'log_sum = jnp.log(1 + summary["rest"])',
        T_PREDICT,
    ),
    Mutation(
        "the best token's mass counts twice",
        SUMMARY,
        "jnp.where(is_best, -jnp.inf, counted) - highest[..., None]",
        "counted - highest[..., None]",
        T_PREDICT,
    ),
    Mutation(
        "the right slice wins a tie",
        SUMMARY,
        "is_better = right[decisive] > left[decisive]",
        "is_better = right[decisive] >= left[decisive]",
        T_PREDICT,
    ),
    Mutation(
        "the mask token is a candidate",
        SUMMARY,
        "candidates = exclude(logits, token_ids, (mask_id,))",
        "candidates = logits",
        T_PREDICT,
    ),
    Mutation(
        "a deferred candidate's entropy is what is left",
        PREDICT,
        "jnp.where(is_deferred, jnp.inf, entropy)",
        "entropy",
        T_PREDICT,
    ),
    Mutation(
        "guidance is one weaker",
        PREDICT,
        "_round((guidance + 1) * difference, logits_dtype)",
        "_round(guidance * difference, logits_dtype)",
        T_PREDICT,
    ),
    Mutation(
        "guidance is rounded once",
        PREDICT,
        "difference = _round(logits[0] - logits[1], logits_dtype)",
        "difference = logits[0] - logits[1]",
        T_PREDICT,
    ),
    Mutation(
        "noise does not depend on the position",
        NOISE,
        "own = jax.random.fold_in(key, position)",
        "own = jax.random.fold_in(key, 0)",
        ("tests/core/test_noise.py",),
    ),
    Mutation(
        "a CPU draws all tiles at once",
        NOISE,
        "cpu=functools.partial(tile_by_tile, width=width, dtype=dtype)",
        "cpu=functools.partial(all_tiles, width=width, dtype=dtype)",
        ("tests/core/test_noise.py",),
    ),
    Mutation(
        "logits that fit the budget to the byte are computed in two pieces",
        PREDICT,
        "if most >= vocab_size:",
        "if most > vocab_size:",
        T_PREDICT,
    ),
    Mutation(
        "unrolled slices do not wait for each other",
        PREDICT,
        "hidden, positions = _after(running, hidden, positions)",
        "pass",
        ("tests/core/test_predict_memory.py",),
    ),
    Mutation(
        "the slice behind a loop begins with the loop's last",
        PREDICT,
        "running = add(running, head[start:], start)",
        "running = add(running, head[start - size :], start - size)",
        T_PREDICT,
    ),
    Mutation(
        "temperature is applied twice",
        SUMMARY,
        "perturbed = candidates + temperature * noise(",
        "perturbed = candidates + temperature**2 * noise(",
        ("tests/core/test_temperature.py",),
    ),
    # Selection.
    Mutation(
        "one position too many",
        SELECT,
        "jnp.arange(score.shape[0]) < k",
        "jnp.arange(score.shape[0]) <= k",
        T_SELECT,
    ),
    Mutation(
        "the best may be a NaN",
        SELECT,
        "is_number = is_eligible & ~jnp.isnan(score)",
        "is_number = is_eligible",
        T_SELECT,
    ),
    Mutation(
        "the best is none among NaNs",
        SELECT,
        "is_best = jnp.where(jnp.any(is_number), is_best, is_eligible)",
        "is_best = is_best",
        T_SELECT,
    ),
    Mutation(
        "a threshold is compared as a probability",
        "dlm_jax/samplers/threshold.py",
        "commit = select.above(prediction.log_prob, canvas.is_eligible, bound)",
        "commit = select.above(jnp.exp(prediction.log_prob), canvas.is_eligible, "
        "jnp.exp(bound))",
        ("tests/samplers/test_dynamic.py",),
    ),
    Mutation(
        "a threshold is exceeded, not reached",
        SELECT,
        "passed = is_eligible & (score >= threshold)",
        "passed = is_eligible & (score > threshold)",
        T_SELECT,
    ),
    Mutation(
        "the entropy bound counts the largest entropy",
        SELECT,
        "rest = jnp.concatenate([jnp.zeros_like(rest, shape=1), rest])",
        "rest = jnp.cumsum(ranked)",
        T_SELECT,
    ),
    Mutation(
        "the entropy bound may commit nothing",
        SELECT,
        "is_taken.at[0].set(True)",
        "is_taken",
        T_SELECT,
        equivalent="the first prefix's sum without its maximum is 0, and gamma >= 0",
    ),
    Mutation(
        "doubts are differences of probabilities",
        SELECT,
        "return -jnp.expm1(log_prob)",
        "return 1 - jnp.exp(log_prob)",
        ("tests/samplers/test_saber.py",),
    ),
    Mutation(
        "the factor rule starts at rank 0",
        SELECT,
        "n = jnp.arange(1, doubt.shape[0] + 1)",
        "n = jnp.arange(doubt.shape[0])",
        T_SELECT,
    ),
    # Samplers and schedules.
    Mutation(
        "Saber's mean keeps what was taken back",
        SABER,
        "mean = jnp.sum(state.committed, where=is_committed) / num_committed",
        "was = is_committed | (state.committed < 1)\n"
        "        mean = jnp.sum(state.committed, where=was) / jnp.sum(was)",
        T_SABER,
    ),
    Mutation(
        "Saber takes back as many as it commits",
        SABER,
        "jnp.minimum(num_back, num_drafted - 1)",
        "jnp.minimum(num_back, num_drafted)",
        T_SABER,
    ),
    Mutation(
        "Saber takes back what gained most",
        SABER,
        "drop = held - state.previous",
        "drop = state.previous - held",
        T_SABER,
    ),
    Mutation(
        "Saber takes back the least confident",
        SABER,
        "drop = held - state.previous",
        "drop = held",
        T_SABER,
    ),
    Mutation(
        "Saber always predicts the active block only",
        SABER,
        "canvas.blanks if self.backtracking else super().region(canvas)",
        "super().region(canvas)",
        T_SABER,
    ),
    Mutation(
        "Saber drafts at tau itself",
        SABER,
        "above = canvas.is_eligible & (doubt < bound)",
        "above = canvas.is_eligible & (doubt <= bound)",
        T_SABER,
    ),
    Mutation(
        "tau has no upper bound",
        SABER,
        "jnp.where(num_committed > 0, jnp.maximum(mean, least), least)",
        "jnp.where(num_committed > 0, mean, least)",
        T_SABER,
        equivalent="no candidate exceeds a tau above the best one, bounded or not",
    ),
    Mutation(
        "the margin is a ratio",
        "dlm_jax/samplers/margin.py",
        "return -select.doubt(best) - jnp.exp(runner_up)",
        "return best - runner_up",
        (
            "tests/samplers/test_specs.py",
            "tests/core/test_contract.py",
            "tests/parity/test_replay.py",
        ),
    ),
    Mutation(
        "a linear schedule's remainder comes last",
        SCHEDULES,
        "is_early = canvas.block_step < canvas.block_masks % steps",
        "is_early = canvas.block_step >= steps - canvas.block_masks % steps",
        ("tests/samplers/test_schedules.py",),
    ),
    Mutation(
        "a cosine schedule is one step behind",
        SCHEDULES,
        "progress = (canvas.block_step + 1) / steps",
        "progress = canvas.block_step / steps",
        ("tests/samplers/test_schedules.py",),
    ),
    # Caches.
    Mutation(
        "a served row is not refreshed",
        FORWARD,
        "is_refreshed = jnp.zeros(b, bool).at[ids]",
        "is_refreshed = jnp.zeros(b, bool).at[ids - 1]",
        # The loop does not end; a quick test tells so sooner.
        ("tests/core/test_cache.py::test_plans_differ_on_this_model",),
    ),
    Mutation(
        "a refresh does not write the cache",
        FORWARD,
        'lambda x, y: x.at[both].set(y, mode="drop"), cache, new',
        "lambda x, y: x, cache, new",
        T_CACHE,
    ),
    Mutation(
        "a step does not write the cache",
        FORWARD,
        "hidden, cache = denoiser.denoise(params, windows, tile(places), cache)",
        "hidden, _ = denoiser.denoise(params, windows, tile(places), cache)",
        T_CACHE,
    ),
    Mutation(
        "rows that wait take part",
        FORWARD,
        "return Forward(prediction, is_refreshed | is_window, kind, cache)",
        "return Forward(prediction, ~is_done, kind, cache)",
        T_CACHE,
    ),
    Mutation(
        "all positions count as known",
        FORWARD,
        "Part(None, seen, is_seen, apart(hidden))",
        "Part(None, seen, jnp.ones_like(is_seen), apart(hidden))",
        T_CACHE,
    ),
    Mutation(
        "a refreshed row keeps its window's output",
        FORWARD,
        'lambda x, y: x.at[ids].set(y, mode="drop"), prediction, predict(part)',
        "lambda x, y: x, prediction, predict(part)",
        T_CACHE,
    ),
    Mutation(
        "whole rows draw with the first rows' keys",
        LOOP,
        "lambda x: x[part.ids], (jobs, rows, canvas, tokens)",
        "lambda x: x[: part.ids.shape[0]], (jobs, rows, canvas, tokens)",
        T_CONTRACT,
    ),
    Mutation(
        "whole rows predict the first rows' positions",
        FORWARD,
        'asked = region.at[ids].get(mode="clip")',
        "asked = region[: ids.shape[0]]",
        T_CACHE,
    ),
    Mutation(
        "the head reads all that a sampler asks for",
        FORWARD,
        "if region.shape[1] <= columns.shape[1]:",
        "if True:",
        T_CONTRACT,
    ),
    Mutation(
        "a window's output is read at the region's places",
        FORWARD,
        "is_known = jnp.any(is_source, axis=1)\n",
        "is_known = jnp.any(is_source, axis=2)[:, : columns.shape[1]]\n",
        T_CACHE,
    ),
    Mutation(
        "finished blocks may be revised beside a cache that holds them",
        "dlm_jax/core/checks.py",
        "if size > options.block_length:",
        "if False:",
        T_CONTRACT,
    ),
    Mutation(
        "a row of keys is a mask for each query",
        "dlm_jax/core/sampler.py",
        "visibility, sees_first=True)",
        "visibility)",
        T_ATTENTION,
    ),
    Mutation(
        "block-causal models see the first keys",
        "dlm_jax/models/denoiser.py",
        "sees_first=view.sees_first and not self.is_block_causal",
        "sees_first=view.sees_first",
        T_ATTENTION,
    ),
    Mutation(
        "padding in training comes last",
        "dlm_jax/models/family.py",
        "sees_first = is_valid is None and not self.is_block_causal",
        "sees_first = not self.is_block_causal",
        T_ATTENTION,
    ),
    Mutation(
        "the last key is counted twice",
        ATTENTION,
        "num = jnp.sum(visibility[:, 0], axis=1, dtype=jnp.int32)",
        "num = 1 + jnp.sum(visibility[:, 0], axis=1, dtype=jnp.int32)",
        T_ATTENTION,
    ),
    Mutation(
        "padding alone sees no key",
        ATTENTION,
        "jnp.maximum(num, 1)",
        "num",
        T_ATTENTION,
    ),
    Mutation(
        "the first keys are taken on trust",
        "dlm_jax/core/checks.py",
        "not (seen[..., 1:] & ~seen[..., :-1]).any()",
        "True",
        T_CHECKS,
    ),
    Mutation(
        "the first keys may differ by query",
        "dlm_jax/core/checks.py",
        "is_first = seen.shape[1] == 1 and",
        "is_first =",
        T_CHECKS,
    ),
    Mutation(
        "guidance: both views refresh the first cache",
        FORWARD,
        "ids + i * b, num_views * b",
        "ids, num_views * b",
        ("tests/core/test_cache.py", "tests/models/test_windows.py"),
    ),
    Mutation(
        "waiting rows are counted from the first on",
        FORWARD,
        "order = (jnp.arange(b, dtype=jnp.int32) + turn) % b",
        "order = jnp.arange(b, dtype=jnp.int32)",
        T_CACHE,
        equivalent="which waiting rows are served first changes no result",
    ),
    Mutation(
        "a block's first forward is a step",
        APPROXIMATE,
        "is_stale = canvas.block_step % period == 0",
        "is_stale = canvas.block_step % period == 1",
        T_CACHE,
    ),
    Mutation(
        "a row that a step tells nothing waits",
        FORWARD,
        "kind = jnp.where(is_stuck, Kind.REFRESH, kind)",
        "kind = jnp.where(is_stuck, Kind.STEP, kind)",
        T_CACHE,
    ),
    Mutation(
        "what a row of NaNs wrote stays",
        LOOP,
        "jnp.any(is_broken), lambda c: _wiped(c, is_broken)",
        "jnp.any(is_broken), lambda c: c",
        T_CACHE,
    ),
    Mutation(
        "deferred candidates count as stale",
        LOOP,
        "prediction.is_known & jnp.isfinite(prediction.log_prob)",
        "prediction.is_known",
        T_CACHE,
    ),
    Mutation(
        "refresh_every is ignored",
        APPROXIMATE,
        "period = jnp.where(self.refresh_every > 0, self.refresh_every, 2**30)",
        "period = 2**30 + 0 * self.refresh_every",
        T_CACHE,
    ),
    Mutation(
        "prefix: only the block is recomputed",
        "dlm_jax/caches/prefix.py",
        "jnp.arange(canvas.blanks.shape[0])",
        "jnp.arange(canvas.block_length)",
        T_CACHE,
    ),
    Mutation(
        "dual: one blank less",
        "dlm_jax/caches/dual.py",
        "return canvas.block_blanks",
        "return canvas.block_blanks[1:]",
        T_CACHE,
    ),
    Mutation(
        "exact: no prefill",
        BLOCK,
        "is_new = (canvas.num_forwards == 0)",
        "is_new = (canvas.num_forwards < 0)",
        T_CACHE,
    ),
    Mutation(
        "exact: a prefill without a whole block",
        BLOCK,
        "& (canvas.block_column > 0)",
        "& (canvas.block_column >= 0)",
        T_CACHE,
    ),
    Mutation(
        "exact: the window starts at the first blank",
        BLOCK,
        "canvas.block_column + jnp.arange",
        "canvas.blanks[0] + jnp.arange",
        T_CACHE,
    ),
    Mutation(
        "blocks are over before they are stored",
        ROW,
        "is_over &= kind == Kind.STORE",
        "is_over &= kind >= 0",
        T_CACHE,
    ),
    Mutation(
        "a full block ends though its rule goes on",
        ROW,
        "is_final &= jnp.where(decides, decision.is_finished, row.is_final)",
        "is_final &= True",
        T_EDITS,
    ),
    Mutation(
        "a store asks the rule whether the block may end",
        ROW,
        "is_final &= jnp.where(decides, decision.is_finished, row.is_final)",
        "is_final &= decision.is_finished",
        T_EDITS,
    ),
    Mutation(
        "a new block is as final as the one before",
        ROW,
        "is_final=jnp.where(is_over, ~jnp.any(is_mask & is_open), is_final)",
        "is_final=is_final",
        T_EDITS,
    ),
    Mutation(
        "a full block that is edited counts as stuck",
        FORWARD,
        "(kind == Kind.STEP) & has_eligible & ~is_useful",
        "(kind == Kind.STEP) & ~is_useful",
        T_EDITS,
    ),
    Mutation(
        "a full block is stored though its rule goes on",
        BLOCK,
        "jnp.where(canvas.is_final,",
        "jnp.where(~jnp.any(canvas.is_mask & canvas.is_open),",
        T_EDITS,
    ),
    Mutation(
        "a row whose edits are cut off is complete",
        LOOP,
        "is_complete=~rows.is_mask.any(axis=-1) & rows.is_final",
        "is_complete=~rows.is_mask.any(axis=-1)",
        T_EDITS,
    ),
    Mutation(
        "a row without blanks is not complete",
        ROW,
        "is_final=num_blanks == 0",
        "is_final=jnp.bool_(False)",
        ("tests/core/test_edits.py", "tests/core/test_generate.py"),
    ),
    Mutation(
        "a stop at the last blank is no stop",
        ROW,
        "has_stopped = jnp.any(is_stop) & is_clear",
        "has_stopped = jnp.any(frame.is_editable & (frame.rank > stop)) & is_clear",
        ("tests/core/test_cache.py",),
    ),
    Mutation(
        "what the last store of a row broke stays in the slot",
        LOOP,
        "is_broken = rows.is_done & outputs.is_served & is_nan",
        "is_broken = rows.has_nan & outputs.is_served & is_nan",
        ("tests/core/test_cache.py",),
    ),
    Mutation(
        "a rule that goes on needs no bound",
        DECIDE,
        "if decision.is_finished is not None and not has_bound:",
        "if False:",
        ("tests/core/test_decisions.py",),
    ),
    Mutation(
        "a region is compared with the blocks of the row itself",
        "dlm_jax/core/checks.py",
        "options, gen_length=options.gen_length + options.block_length",
        "options, gen_length=options.gen_length",
        T_CACHE,
    ),
    Mutation(
        "edits have no steps of their own",
        "dlm_jax/core/checks.py",
        "max_steps += sampler.extra_steps(num_blocks)",
        "max_steps += 0",
        T_EDITS,
    ),
    Mutation(
        "blocks of columns are counted as blocks of blanks",
        "dlm_jax/core/checks.py",
        "if denoiser.is_block_causal:",
        "if False:",
        T_EDITS,
    ),
    Mutation(
        "a prefill counts as a step of the sampler",
        ROW,
        "step=row.step + decides",
        "step=row.step + 1",
        T_CACHE,
    ),
    Mutation(
        "the sampler decides after a prefill",
        ROW,
        "& ~has_nan & decides",
        "& ~has_nan",
        T_CACHE,
    ),
    Mutation(
        "block-causal blocks count blanks",
        ROW,
        "count = column if denoiser.is_block_causal else rank",
        "count = rank",
        T_CACHE,
    ),
    Mutation(
        "blocks without blanks are visited without a cache",
        ROW,
        "following = jnp.maximum(following, row.block + 1)",
        "following = row.block + 1",
        T_CACHE,
    ),
    Mutation(
        "an unfinished block ends with its stop",
        ROW,
        "is_tail &= is_over & (frame.block_of > row.block)",
        "is_tail &= frame.block_of > row.block",
        T_CACHE,
    ),
    Mutation(
        "what follows the stop in its block is filled",
        ROW,
        "is_tail &= is_over & (frame.block_of > row.block)",
        "is_tail &= is_over",
        T_CACHE,
    ),
    Mutation(
        "forwards of a part count as whole",
        ROW,
        "row.num_whole + Kind.is_whole(kind)",
        "row.num_whole + 1",
        T_CACHE,
    ),
    Mutation(
        "keys of a window are not written",
        STACK,
        'return cached.at[rows, columns].set(new.astype(cached.dtype), mode="drop")',
        "return cached",
        ("tests/models/test_windows.py",),
    ),
    Mutation(
        "unrolled blocks all have the first weights",
        STACK,
        "return jax.tree.map(lambda w: w[i], weights)",
        "return jax.tree.map(lambda w: w[0], weights)",
        ("tests/models/test_windows.py",),
    ),
    Mutation(
        "Saber forgets what a step does not tell",
        SABER,
        "jnp.where(prediction.is_known, seen, state.previous)",
        "seen",
        T_SABER,
    ),
)
