"""The Monte Carlo estimate of an answer's log-likelihood."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from chat_checkpoint import VOCABULARY, break_letter, make_chat_checkpoint
from helpers import DATA, TableDenoiser, equations, finish, start_python

import dlm_jax as dlm
from dlm_jax import checkpoints, likelihood
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.options import Options
from dlm_jax.core.score import Noised, score
from dlm_jax.devices import runner
from dlm_jax.errors import InputError
from dlm_jax.text.prompts import Encoded

NAMES = ("tiny_kv2_seed3", "tiny_kv4_seed0")
FAIR = ("stratified", "independent", "antithetic")
RULES = (*FAIR, "stratified_released")
CHECKPOINT = DATA / "checkpoints" / NAMES[0]
# The exactly known joint is one of so many binary tokens; 2 is the mask.
LENGTH, MASK = 6, 2
CELLS = np.array(list(itertools.product((0, 1), repeat=LENGTH)))


def row_of(prompt, answer):
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    return Encoded(tokens, np.arange(tokens.size) >= len(prompt), is_infill=False)


def random_rows(lengths, seed=0):
    """Rows of random tokens, of (prompt, answer) lengths."""
    rng = np.random.default_rng(seed)
    return [
        row_of(rng.integers(3, 290, p), rng.integers(3, 290, a)) for p, a in lengths
    ]


@pytest.fixture(scope="module")
def tiny():
    return runner.load(CHECKPOINT, "float32").parallel


# Against released code, and against a computation with all logits.


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_masks_give_the_recorded_estimate(name):
    recorded = np.load(DATA / "likelihood" / f"{name}.npz")
    prompt, answer, noised = (recorded[x] for x in ("prompt", "answer", "noised"))
    parallel = runner.load(DATA / "checkpoints" / name, "float32").parallel
    is_mask = noised[:, :, prompt.size :] == parallel.denoiser.mask_id
    size = is_mask.shape[1]
    drawn = likelihood.Drawn(is_mask, np.full(size, 1 / size))
    (found,) = likelihood.estimate_masks(parallel, [row_of(prompt, answer)], [drawn])
    expected = float(recorded["log_likelihood"])
    assert found.log_likelihood == pytest.approx(expected, rel=1e-4)
    assert (found.num_samples, found.num_batches, found.num_tokens) == (64, 4, 14)
    # The numbers of masked tokens are those of the rule, from the recorded first one.
    rule = likelihood.StratifiedReleased()
    for counts in is_mask.sum(axis=2):
        np.testing.assert_array_equal(counts, rule.counts(counts[0], 14, size))


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_all_masks_of_a_short_answer_by_hand(tiny, guidance):
    (row,) = random_rows([(7, 3)])
    model = checkpoints.load(CHECKPOINT, "float32")
    # Every mask of the three last tokens, and what the model says of each.
    masks = np.array(list(itertools.product((False, True), repeat=3))[1:])
    canvases = np.tile(row.tokens, (7, 1))
    canvases[:, 7:][masks] = tiny.denoiser.mask_id
    logits = np.asarray(model(jnp.asarray(canvases)), np.float64)
    if guidance:
        canvases[:, :7] = tiny.denoiser.mask_id
        without = np.asarray(model(jnp.asarray(canvases)), np.float64)
        logits = without + (guidance + 1) * (logits - without)
    log_prob = scipy.special.log_softmax(logits, axis=-1)[:, range(10), row.tokens]
    expected = 0.0
    for mask, values in zip(masks, log_prob[:, 7:], strict=True):
        k = mask.sum()
        expected += 3 / k * values[mask].sum() / (3 * math.comb(3, k))
    # By default, since 7 masks are no more than 128.
    (found,) = likelihood.estimate_rows(tiny, [row], guidance=guidance)
    assert found.log_likelihood == pytest.approx(expected, rel=1e-5)
    assert (found.standard_error, found.num_samples) == (0.0, 7)


def test_one_token_takes_one_forward():
    table = jax.random.normal(jax.random.key(0), (4, 8))
    denoiser = TableDenoiser(mask_id=7)
    tokens = np.array([[1, 2, 3, 4]], np.int32)
    prompts = Prompts(tokens, np.arange(4)[None] == 2, np.ones((1, 4), bool))
    for masks in (None, *RULES):
        (found,) = likelihood.estimate(denoiser, table, prompts, masks=masks)
        expected = float(jax.nn.log_softmax(table[2])[3])
        assert found.log_likelihood == pytest.approx(expected, rel=1e-6)
        assert found.standard_error == pytest.approx(0, abs=1e-9)
    # 128 equal masks are one canvas.
    assert {shape for shape, _ in denoiser.traces} == {1}


def test_logits_exist_at_the_answer_only(tiny):
    b, length, region, vocabulary = 2, 64, 16, 320
    rows = Noised(
        tokens=np.ones((b, length), np.int32),
        is_valid=np.ones((b, length), bool),
        is_prompt=np.ones((b, length), bool),
        region=np.full((b, region), length, np.int32),
        truth=np.zeros((b, region), np.int32),
    )
    denoiser, params = dlm.as_denoiser(checkpoints.load(CHECKPOINT, "float32"))
    options = Options(1, temperature=None, guidance=None)
    jaxpr = jax.make_jaxpr(lambda p: score(denoiser, p, rows, options))(params)
    sizes = [
        math.prod(value.aval.shape[:-1])
        for _, equation in equations(jaxpr.jaxpr)
        for value in equation.outvars
        if value.aval.shape and value.aval.shape[-1] == vocabulary
    ]
    assert max(sizes) == b * region


# Against a joint distribution that is known exactly.


@dataclasses.dataclass(frozen=True)
class Conditionals:
    """A perfect model of a joint of binary tokens; params are its probabilities."""

    mask_id: int = MASK
    eos_id: int = 0
    max_length: int = 64
    model_axis: None = None
    is_block_causal: bool = False

    def init_cache(self, params, batch_size, length):
        return ()

    def sources(self, region):
        return region

    def denoise(self, params, view, region, cache):
        cells = jnp.asarray(CELLS)
        shown = view.tokens[:, None, :LENGTH]
        is_possible = ((shown == MASK) | (shown == cells)).all(-1)
        marginal = jnp.einsum("bo,olv->blv", is_possible * params, jnp.eye(3)[cells])
        marginal /= marginal.sum(-1, keepdims=True)
        log_prob = jnp.maximum(jnp.log(marginal), -80.0)
        return jnp.take_along_axis(log_prob, region[..., None], 1, mode="clip"), cache

    def head(self, params):
        return jnp.eye(3)


JOINT = np.random.default_rng(0).dirichlet(np.full(len(CELLS), 0.1))
# One token of prompt, five of answer; the third likeliest outcome.
TOKENS = CELLS[np.argsort(JOINT)[-3]]
TRUTH = math.log(
    JOINT[(CELLS == TOKENS).all(1)].sum() / JOINT[CELLS[:, 0] == TOKENS[0]].sum()
)


def estimate_joint(seed, masks, num_samples=128):
    prompts = Prompts(
        tokens=TOKENS[None].astype(np.int32),
        is_blank=np.arange(LENGTH)[None] > 0,
        is_valid=np.ones((1, LENGTH), bool),
    )
    (found,) = likelihood.estimate(
        Conditionals(),
        jnp.asarray(JOINT, jnp.float32),
        prompts,
        num_samples=num_samples,
        seed=seed,
        masks=masks,
    )
    return found


@pytest.fixture(scope="module")
def repeated():
    """200 estimates by every rule."""
    return {rule: [estimate_joint(seed, rule) for seed in range(200)] for rule in RULES}


def test_all_masks_give_the_known_value():
    found = estimate_joint(0, "exhaustive")
    assert found.log_likelihood == pytest.approx(TRUTH, rel=1e-5)
    assert found.standard_error == 0 and found.num_samples == 31
    assert estimate_joint(0, None) == found


@pytest.mark.parametrize("rule", FAIR)
def test_the_estimate_is_unbiased_and_its_error_right(repeated, rule):
    values = np.array([x.log_likelihood for x in repeated[rule]])
    errors = np.array([x.standard_error for x in repeated[rule]])
    # The mean of all, and most single ones, inside three standard errors.
    spread = values.std(ddof=1)
    assert abs(values.mean() - TRUTH) < 3 * spread / math.sqrt(values.size)
    # 95 % intervals hold the truth in 95 % of the repetitions: of 200, 190 +- 3 sd.
    freedom = repeated[rule][0].num_batches - 1
    quantile = scipy.stats.t.ppf(0.975, freedom)
    covered = (abs(values - TRUTH) <= quantile * errors).sum()
    assert 181 <= covered <= 199
    # Errors are neither too large nor too small: 20 % is four sd of the quotient.
    assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.2)


def test_dependent_masks_have_less_variance(repeated):
    variance = {
        rule: np.var([x.log_likelihood for x in found], ddof=1)
        for rule, found in repeated.items()
    }
    # Measured: 3.0 times. An F test at 1 % takes 1.4. Other joints: 1.0 to 4.6.
    assert variance["independent"] / variance["antithetic"] > 2
    assert variance["independent"] / variance["stratified"] > 2


# How masks are drawn.


@pytest.mark.parametrize("rule", FAIR)
@pytest.mark.parametrize("length", [1, 5, 14])
def test_each_mask_is_fair(rule, length):
    rng = np.random.default_rng(0)
    drawn = likelihood.parse(rule).draw(rng, length, 128 * 64)
    is_mask = drawn.is_mask.reshape(-1, length)
    counts = is_mask.sum(axis=1)
    frequency = np.bincount(counts, minlength=length + 1)
    assert frequency[0] == 0
    # Samples of a batch help each other, so this is less than chance would give.
    expected = counts.size / length
    assert abs(frequency[1:] - expected).max() < 4.5 * math.sqrt(2 * expected)
    share = is_mask.mean(axis=0)
    assert abs(share - (length + 1) / (2 * length)).max() < 0.03
    assert drawn.weight.sum() == pytest.approx(1)


def test_the_released_rounding_has_too_few_odd_numbers():
    counts = {}
    for rule in (likelihood.Stratified(), likelihood.StratifiedReleased()):
        all_first = [rule.counts(first, 14, 16) for first in range(1, 15)]
        counts[type(rule)] = np.bincount(np.ravel(all_first), minlength=15)[1:]
    assert (counts[likelihood.Stratified] == 16).all()
    assert (counts[likelihood.StratifiedReleased] == [14, 18] * 7).all()


def test_pairs_share_one_token():
    drawn = likelihood.Antithetic().draw(np.random.default_rng(0), 9, 64)
    assert drawn.is_mask.any(axis=1).all()
    assert (drawn.is_mask.all(axis=1).sum(axis=1) == 1).all()


def test_numbers_of_a_batch_are_spread_evenly():
    rng = np.random.default_rng(0)
    drawn = likelihood.Stratified(batch_size=32).draw(rng, 8, 128)
    assert drawn.is_mask.shape == (4, 32, 8)
    for counts in drawn.is_mask.sum(axis=2):
        assert (np.bincount(counts)[1:] == 4).all()
    # Fewer samples than a batch are one batch, which has no error.
    assert math.isnan(estimate_joint(0, "stratified", num_samples=5).standard_error)


# Rows in batches.


@pytest.mark.parametrize("masks", [None, "antithetic"])
def test_padding_batch_and_order_change_nothing(tiny, masks):
    rows = random_rows([(9, 14), (1, 2), (30, 20), (0, 5), (12, 1)])
    settings = {"num_samples": 32, "seed": 3, "masks": masks}
    found = likelihood.estimate_rows(tiny, rows, **settings)
    alone = [likelihood.estimate_rows(tiny, [row], **settings)[0] for row in rows]
    small = likelihood.estimate_rows(tiny, rows[::-1], batch_size=7, **settings)
    for others in (alone, small[::-1]):
        for one, other in zip(found, others, strict=True):
            values = one.log_likelihood, one.standard_error
            close = pytest.approx(values, rel=2e-5, abs=1e-6)
            assert (other.log_likelihood, other.standard_error) == close
    # Another seed has other masks.
    other = likelihood.estimate_rows(tiny, rows[:1], **settings | {"seed": 4})[0]
    assert other.log_likelihood != found[0].log_likelihood


def test_arrays_with_padding_are_the_same_as_rows(tiny):
    rows = random_rows([(4, 14), (6, 3)])
    denoiser, params = dlm.as_denoiser(checkpoints.load(CHECKPOINT, "float32"))
    prompts = Prompts(
        tokens=np.zeros((2, 25), np.int32),
        is_blank=np.zeros((2, 25), bool),
        is_valid=np.zeros((2, 25), bool),
    )
    for i, row in enumerate(rows):
        n = row.tokens.size
        prompts.tokens[i, :n], prompts.is_blank[i, :n] = row.tokens, row.is_blank
        prompts.is_valid[i, :n] = True
    expected = likelihood.estimate_rows(tiny, rows)
    found = likelihood.estimate(denoiser, params, prompts)
    for one, other in zip(found, expected, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=2e-5)


def on_devices():
    """Estimates on all devices of this process: whole models, and in pairs."""
    rows = random_rows([(9, 14), (1, 2), (20, 5)])
    found = []
    for num_sharing in (None, 2):
        parallel = runner.load(CHECKPOINT, "float64", num_sharing).parallel
        estimates = likelihood.estimate_rows(
            parallel, rows, num_samples=32, batch_size=6, guidance=0.5
        )
        found.append([parallel.num_groups, [x.log_likelihood for x in estimates]])
    return found


def test_on_several_devices_and_with_shared_weights(tiny):
    code = "import json, test_likelihood as t; print(json.dumps(t.on_devices()))"
    (said,) = finish([start_python(["-c", code], 4, JAX_ENABLE_X64="true")])
    (whole_groups, whole), (pairs, shared) = json.loads(said.splitlines()[-1])
    assert (whole_groups, pairs) == (4, 2)
    np.testing.assert_allclose(whole, shared, rtol=1e-10)
    rows = random_rows([(9, 14), (1, 2), (20, 5)])
    here = likelihood.estimate_rows(tiny, rows, num_samples=32, guidance=0.5)
    np.testing.assert_allclose(whole, [x.log_likelihood for x in here], rtol=2e-5)


# Text.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return dlm.load(make_chat_checkpoint(tmp_path_factory.mktemp("chat")))


def test_text_and_tokens_are_the_same(model):
    prompt, answer = "Is 7 prime?", "Yes"
    (row,) = model.codec.encode_answers([prompt], [answer], is_chat=False)
    start = row.tokens[~row.is_blank]
    by_text = model.log_likelihood(prompt, answer, chat=False)
    by_tokens = model.log_likelihood(start, row.tokens[row.is_blank].tolist())
    assert by_text == by_tokens and by_text.num_tokens == 3
    assert by_text.is_greedy is None and by_text.log_likelihood < 0
    listed = model.log_likelihood([prompt, start], [answer, "Yes"], chat=False)
    assert [type(x) for x in listed] == [dlm.likelihood.Likelihood] * 2
    assert listed[0].log_likelihood == pytest.approx(by_text.log_likelihood, rel=1e-5)
    # The chat template is another prompt, and the default.
    chat = model.log_likelihood(prompt, answer)
    assert chat.log_likelihood != pytest.approx(by_text.log_likelihood, rel=1e-5)
    assert model.log_likelihood([], []) == []
    # Without any prompt.
    alone = model.log_likelihood(np.zeros(0, int), answer)
    assert math.isfinite(alone.log_likelihood)


def test_the_greedy_answer_is_greedy(model):
    prompts = ["Is 7 prime?", "Is 8?"]
    outputs = model.generate(
        prompts, "low_confidence", gen_length=5, stop_ids=(), early_stop=False
    )
    answers = [out.tokens for out in outputs]
    prompts, answers = [*prompts, prompts[1]], [*answers, answers[1] - 1]
    found = model.log_likelihood(prompts, answers, greedy=True)
    assert [x.is_greedy for x in found] == [True, True, False]


def test_a_nan_is_of_its_answer_only(model, tmp_path, monkeypatch):
    directory = break_letter(model.checkpoint, tmp_path / "broken", "q")
    broken = dlm.load(directory)
    prompts, answers = ["Is 7 prime?", "Is 7 quite prime?", "Is 8?"], ["Yes"] * 3
    found = broken.log_likelihood(prompts, answers, chat=False, greedy=True)
    expected = model.log_likelihood(prompts, answers, chat=False, greedy=True)
    assert [x.has_nan for x in found] == [False, True, False]
    assert math.isnan(found[1].log_likelihood) and found[1].is_greedy is None
    assert not any(x.has_nan or x.is_greedy is None for x in expected)
    for place in (0, 2):
        value = expected[place].log_likelihood
        assert found[place].log_likelihood == pytest.approx(value, rel=1e-5)
    # Greedy decoding may meet a canvas that no mask gives.
    monkeypatch.setattr(likelihood, "are_greedy", lambda *a, **k: [True, None])
    found = model.log_likelihood(prompts[:2], answers[:2], chat=False, greedy=True)
    assert [x.has_nan for x in found] == [False, True]
    assert math.isfinite(found[1].log_likelihood)


MASK_TEXT = "<|mdm_mask|>"


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("a", ""), {}, "answer 0 is empty"),
        (("a", []), {}, "answer 0 is empty"),
        (("a", np.ones(2)), {}, r"answer 0 \(.*\) must be a text or token ids"),
        (("a", [2**40]), {}, "answer 0 must be token ids of 32 bits"),
        ((["a", "b"], "cd"), {}, "answers must be a list, one for each of the prompts"),
        ((["a", "b"], ["c"]), {}, r"answers \(1\) must be as many as prompts \(2\)"),
        (("a", MASK_TEXT), {}, r"answer 0 holds the mask token"),
        (("a", [len(VOCABULARY) + 999]), {}, "row 0: token .* must be an id from 0 to"),
        (("a", "b" * 5000), {}, r"with the answer's tokens \(5000\) that is 5024"),
        (("a", "b"), {"num_samples": 0}, r"num_samples \(0\) must be at least 1"),
        (("a", "b"), {"seed": -1}, r"seed \(-1\) must be an integer"),
        (("a", "b"), {"batch_size": 0}, r"batch_size \(0\) must be at least 1"),
        (("a", "b"), {"guidance": -1.0}, r"guidance \(-1.0\) must be at least 0"),
        (("a", "b"), {"gen_length": 3}, "gen_length must be among the settings num_s"),
        (("a", "b"), {"masks": "odd"}, r"masks \(odd\) must be one of stratified, "),
        (("a", "b"), {"masks": 3}, r"masks \(3\) must be one of stratified, "),
        (
            ("a", "b"),
            {"masks": "stratified(batch_size=0)"},
            r"stratified: batch_size \(0\) must be at least 1",
        ),
        (
            ("a", "b"),
            {"masks": "stratified", "num_samples": 20},
            r"num_samples \(20\) must be a multiple of the 8 masks that "
            r"stratified\(batch_size=8\) draws together",
        ),
        (
            ("a", "b" * 20),
            {"masks": "exhaustive"},
            r"masks \(exhaustive\) must be for answers of at most 16 tokens, not 20",
        ),
    ],
)
def test_bad_input_is_named(model, arguments, settings, message):
    with pytest.raises(InputError, match=message):
        model.log_likelihood(*arguments, **settings)


def test_block_causal_models_are_refused():
    parallel = runner.load(DATA / "checkpoints" / "sdar_a").parallel
    with pytest.raises(InputError, match="this one is block-causal"):
        likelihood.estimate_rows(parallel, random_rows([(3, 2)]))
