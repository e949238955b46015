"""The front door: text in, outputs out, by the same loop as the scripts'."""

import csv
import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_checkpoint import VOCABULARY, make_chat_checkpoint
from helpers import DATA, TableDenoiser, prompts_of

import dlm_jax as dlm
from dlm_jax import checkpoints
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import BLANK

QUESTION = "How many primes are below 50?"
EOS = VOCABULARY.index("<|endoftext|>")
EOT = VOCABULARY.index("<|eot_id|>")
MASK = VOCABULARY.index("<|mdm_mask|>")
RULES = '''
"""A rule of one's own."""

import jax.numpy as jnp

import dlm_jax as dlm


class Confident(dlm.Sampler):
    """Commits what is confident."""

    threshold: float = 0.9

    def step(self, key, state, canvas, prediction):
        confidence = jnp.exp(prediction.log_prob)
        commit = dlm.select.above(confidence, canvas.is_eligible, self.threshold)
        return state, dlm.Decision(commit)
'''


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return dlm.load(checkpoint)


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """A module my_rules in the current folder, as a user has one."""
    (tmp_path / "my_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_rules:Confident(threshold=0.3)"
    sys.modules.pop("my_rules", None)


def same(left, right):
    """Equal but for the time they took, and rounding of what another shape gives."""
    np.testing.assert_array_equal(left.tokens, right.tokens)
    np.testing.assert_array_equal(left.commit_step, right.commit_step)
    np.testing.assert_allclose(left.confidence, right.confidence, rtol=1e-4)
    assert left.text == right.text and left.nfe == right.nfe
    return True


def test_the_snippet_of_the_front_page_prints_what_the_script_prints(
    checkpoint, run_script, tmp_path
):
    model = dlm.load(checkpoint, dtype="float32")
    out = model.generate(
        QUESTION, dlm.EntropyBound(gamma=0.1), gen_length=128, block_length=32
    )
    status, printed, _ = run_script(
        "generate",
        f"--checkpoint={checkpoint}",
        f"--prompt={QUESTION}",
        "--sampler=entropy_bound(gamma=0.1)",
        "--gen_length=128",
        "--block_length=32",
        "--dtype=float32",
        f"--output={tmp_path / 'answers.jsonl'}",
    )
    assert status == 0 and out.text and out.text in printed
    record = json.loads((tmp_path / "answers.jsonl").read_text())
    assert record["text"] == out.text
    assert record["nfe"] == out.nfe
    assert record["tokens"] == out.tokens.tolist()
    prompts = [QUESTION, "And below 60?", "Why?"]
    streamed = dict(model.stream(prompts, "saber(n=2, mu=8)", batch_size=64))
    assert sorted(streamed) == [0, 1, 2]
    listed = model.generate(prompts, dlm.Saber(n=2, mu=8))
    assert all(same(streamed[i], listed[i]) for i in range(3))


def test_an_output_tells_what_was_written(model):
    out = model.generate(QUESTION, "low_confidence", gen_length=12, trajectory=True)
    n = out.tokens.size
    assert out.tokens.dtype == np.int32 and out.num_tokens == n <= 12
    assert out.commit_step.shape == out.confidence.shape == (n,)
    assert (out.confidence > 0).all() and (out.confidence <= 1).all()
    assert out.is_complete and not out.has_nan and out.seconds > 0
    assert out.text == model.codec.tokenizer.decode(
        out.tokens.tolist(), skip_special_tokens=True
    )
    # The steps are the row's own, without padding, and end in what was written.
    steps = out.trajectory
    (encoded,) = model.codec.encode_chat([QUESTION], 12)
    length = encoded.tokens.size
    assert steps.canvas.shape == (out.nfe + 1, length)
    assert steps.commit.shape == steps.remask.shape == (out.nfe, length)
    np.testing.assert_array_equal(steps.canvas[0], encoded.tokens)
    np.testing.assert_array_equal(steps.canvas[-1, length - 12 :][:n], out.tokens)
    for place in range(n):
        step, column = out.commit_step[place], length - 12 + place
        assert steps.commit[step, column] and not steps.commit[step + 1 :, column].any()
        probability = np.exp(steps.log_prob[step, column])
        assert out.confidence[place] == pytest.approx(probability, rel=1e-5)
    assert model.generate(QUESTION, "low_confidence", gen_length=4).trajectory is None


def test_conversations_and_lists_of_them(model):
    user = {"role": "user", "content": QUESTION}
    settings = {"gen_length": 6}
    text = model.generate(QUESTION, "threshold", **settings)
    chat = model.generate([user], "threshold", **settings)
    assert isinstance(chat, dlm.Output) and same(text, chat)
    history = [user, {"role": "assistant", "content": "15"}, {**user, "content": "?"}]
    mixed = model.generate([QUESTION, history, [user]], "threshold", **settings)
    assert [type(out) for out in mixed] == [dlm.Output] * 3
    assert same(mixed[0], mixed[2]) and same(mixed[0], text)
    assert same(mixed[1], model.generate(history, "threshold", **settings))
    assert model.generate([], "threshold") == []
    plain = model.generate(QUESTION, "threshold", chat=False, **settings)
    (row,) = model.codec.encode([QUESTION], 6)
    assert row.tokens.size < model.codec.encode_chat([QUESTION], 6)[0].tokens.size
    assert plain.nfe >= 1


@pytest.mark.parametrize("cache", ["none", "dual", "prefix"])
def test_an_empty_text_is_continued_from_nothing(model, cache):
    settings = {"gen_length": 6, "chat": False, "stop_ids": (), "cache": cache}
    settings["block_length"] = 3
    # Not by confidence: a canvas of masks alone looks the same at every position.
    alone = model.generate("", "left_to_right", **settings)
    assert alone.is_complete and alone.nfe == alone.tokens.size == 6
    # As an infilling of nothing but blanks.
    if cache == "none":
        blanks = model.infill(model.mask_text * 6, "left_to_right", block_length=3)
        assert alone.tokens.tolist() == blanks.tokens.tolist()
    both = model.generate([QUESTION, ""], "left_to_right", **settings)
    assert same(both[1], alone)


def test_infilling(model):
    mask = model.mask_text
    texts = [f"a{mask}b{mask}{mask}", f"{mask}x"]
    one = model.infill(texts[0], "left_to_right", trajectory=True)
    assert one.text[0] == "a" and one.text[2] == "b" and mask not in one.text
    assert one.nfe == one.tokens.size == 3
    assert one.trajectory.canvas.shape == (4, 5)
    both = model.infill(texts, "left_to_right")
    assert same(both[0], one) and both[1].nfe == 1
    # Stops do not cut a text with given tokens behind its blanks.
    every = tuple(range(len(VOCABULARY)))
    assert model.infill(texts[0], "left_to_right", stop_ids=every).nfe == 3
    # Blocks of two blanks.
    blocks = model.infill(texts[0], "random", block_length=2, seed=3)
    assert blocks.commit_step[2] == 2


def test_settings_reach_the_loop(model):
    def tokens(**settings):
        out = model.generate("Hi", "low_confidence", gen_length=24, **settings)
        return out.tokens.tolist()

    plain = tokens()
    assert tokens(seed=5) == plain
    hot = tokens(temperature=2.0, seed=5)
    assert hot == tokens(temperature=2.0, seed=5) != tokens(temperature=2.0, seed=6)
    assert tokens(guidance=2.0) != plain
    banned = tuple(set(plain))
    assert not set(tokens(suppressed_ids=banned)) & set(banned)
    assert EOS not in tokens(suppress_eos=True, stop_ids=())
    assert tokens(stop_ids=(plain[3],)) == plain[: plain.index(plain[3])]
    short = model.generate("Hi", "low_confidence", gen_length=24, max_steps=5)
    assert short.nfe == 5 and not short.is_complete
    assert short.num_tokens == (short.tokens != MASK).sum() == 5
    assert (short.commit_step[short.tokens == MASK] == -1).all()


def test_deferred_stops_come_last(model):
    """What the checkpoint's stop ids are, and more, named by the caller."""
    common = {"gen_length": 16, "stop_ids": ()}
    plain = model.generate("Hi", "threshold(threshold=0.0)", **common)
    ids = tuple(set(plain.tokens.tolist()[:4]))
    later = model.generate(
        "Hi", "threshold(threshold=0.0)", deferred_ids=ids, defer_stops=True, **common
    )
    assert plain.nfe == 1
    is_deferred = np.isin(later.tokens, (*ids, *model.stop_ids))
    if is_deferred.any() and not is_deferred.all():
        first = later.commit_step[is_deferred].min()
        assert first > later.commit_step[~is_deferred].min()
    options = model.options(16, {"defer_stops": True, "suppress_eos": True})
    assert set(options.deferred_ids) == set(model.stop_ids) == {EOS, EOT}
    assert options.suppressed_ids == (EOS,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.generate("Hi", "sabre"),
            r"sampler \(sabre\) must be one of .*, or module:Class of your own$",
        ),
        (lambda m: m.generate("Hi", "saber", gen_len=4), "gen_len must be among"),
        (lambda m: m.generate("Hi", "saber", gen_length=0), r"gen_length \(0\)"),
        (lambda m: m.generate("Hi", "saber", seed=-1), r"seed \(-1\) must be"),
        (lambda m: m.generate("Hi", "saber", batch_size=0), r"batch_size \(0\)"),
        (lambda m: m.generate("Hi", "saber", block_length=7), "multiple of block_len"),
        (lambda m: m.generate("", "saber"), "prompt 0 is empty"),
        (lambda m: m.generate(["Hi", ""], "saber"), "prompt 1 is empty"),
        (
            lambda m: m.generate("é", "saber"),
            "prompt 0 cannot be written in the tokenizer's vocabulary: it has no 'é'",
        ),
        (lambda m: m.generate([{"role": "user"}], "saber"), "prompt 0: a message"),
        (lambda m: m.stream("Hi", "saber"), "prompts must be a list"),
        (lambda m: m.stream(["Hi"], "saber", temperature=-1.0), "temperature"),
        (lambda m: m.infill("Hi", "saber"), "prompt 0 has no blank"),
        (lambda m: m.generate("Hi", "no_such:Rule"), "no_such is not on Python's path"),
        (lambda m: m.generate("Hi", dlm.Saber), r"\(Saber\) must be an object: write"),
        (lambda m: m.generate("Hi", 3), r"sampler \(3\) must be a Sampler or a spec"),
        (lambda m: m.generate("H" * 600, "saber", gen_len=4), "gen_len must be among"),
    ],
)
def test_bad_arguments_are_named_at_once(model, call, message):
    with pytest.raises(dlm.InputError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_a_tokenizer_is_named_before_its_weights(
    checkpoint, tmp_path
):
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(dlm.InputError, match=r"holds no tokenizer\.json"):
        dlm.load(tmp_path)


def test_a_rule_of_ones_own_is_an_object_and_a_spec(model, rules, run_script, tmp_path):
    import my_rules

    own = my_rules.Confident(threshold=0.3)
    assert dlm.to_spec(own) == rules and dlm.parse(rules) == own
    by_object, by_spec, builtin = (
        model.generate(QUESTION, sampler, gen_length=16)
        for sampler in (own, rules, "threshold(threshold=0.3)")
    )
    assert same(by_object, by_spec) and same(by_object, builtin)
    # In the scripts, whose records and tables name it.
    workdir = tmp_path / "records"
    status, out, _ = run_script(
        "evaluate",
        "--task=sudoku",
        "--num_examples=2",
        "--batch_size=2",
        "--queue_length=2",
        f"--sampler={rules}",
        f"--workdir={workdir}",
    )
    assert status == 0 and "my_rules:Confident(threshold=0.3)" in out
    lines = (workdir / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["sampler"] for line in lines] == [rules] * 2


SMALL = "--preset=tiny --gen_lengths=8 --batch_sizes=1 --rows_per_slot=1 --num_pairs=1"


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (
            "sweep",
            "--task=sudoku --num_examples=2 --batch_size=2 --queue_length=2 "
            "--workdir=swept --sampler=my_rules:Confident(threshold=0.7)",
        ),
        ("benchmark", f"{SMALL} --reference=none"),
        ("compare", f"--traces={DATA}/traces --only=threshold --dtype=float64"),
    ],
)
def test_scripts_take_a_rule_of_ones_own(script, flags, rules, run_script):
    """What `evaluate` and `generate` do is above and in their own tests."""
    status, out, err = run_script(script, *flags.split(), f"--sampler={rules}")
    assert status == (script == "compare"), err
    # The recorded runs are of a threshold of 0.9, and compared all the same.
    expected = "matched 0 of" if script == "compare" else "my_rules:Confident"
    assert expected in out
    if script == "sweep":
        with pathlib.Path("swept/sweep.csv").open() as file:
            points = list(csv.DictReader(file))
        # Both points are of one curve.
        assert [point["curve"] for point in points] == ["my_rules:Confident"] * 2
        assert [point["sampler"] for point in points][1] == rules
    else:
        assert rules in out


@pytest.mark.parametrize(
    ("written", "spec", "message"),
    [
        ("import nothing_there", "my_bad:A", "my_bad does not import: No module named"),
        ("1 / 0", "my_bad:A", "my_bad does not import: ZeroDivisionError"),
        ("A = 3", "my_bad:A", r"my_bad:A\) must be a class of my_bad derived from"),
        ("", "my_bad:A", r"my_bad:A\) must be a class of my_bad derived from"),
        ("", "my_bad:", "must be a name or a call"),
    ],
)
def test_a_bad_module_is_one_line(tmp_path, monkeypatch, written, spec, message):
    (tmp_path / "my_bad.py").write_text(written)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(dlm.InputError, match=message) as error:
            dlm.parse(spec)
    finally:
        sys.modules.pop("my_bad", None)
    assert "\n" not in str(error.value)


def test_the_shipped_model_solves_a_puzzle_from_python():
    model = dlm.load(dlm.zoo.path("sudoku"))
    task = sudoku.Sudoku()
    (example,) = task.examples("test", 1)
    text = example.prompt.replace(BLANK, model.mask_text)
    slow, fast = (model.infill(text, s) for s in ("low_confidence", "entropy_bound"))
    assert task.verdict(example, slow.text).is_correct
    assert task.verdict(example, fast.text).is_correct
    assert fast.nfe < slow.nfe == slow.tokens.size


def test_sample_is_the_door_for_arrays():
    denoiser = TableDenoiser(mask_id=11, eos_id=1)
    table = jax.random.normal(jax.random.key(0), (8, 12))
    prompts = prompts_of([2, 4], 4, vocab_size=9)
    result = dlm.sample(denoiser, table, "threshold", prompts, dlm.Options(4))
    best = np.asarray(jnp.argmax(table[:, :11], axis=1))
    assert isinstance(result, dlm.Generation) and result.is_complete.all()
    np.testing.assert_array_equal(result.tokens[0, 2:6], best[2:6])
    # A module of Flax, as a denoiser.
    module = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3")
    result = dlm.sample(
        *dlm.as_denoiser(module), dlm.Saber(), prompts_of([3], 5), dlm.Options(5), 7
    )
    assert result.is_complete.all()


def test_every_public_name_is_there_and_nothing_else_is_loaded():
    """In a process of its own: what an import costs and brings."""
    code = (
        "import sys, time, jax, flax; before = set(sys.modules);"
        "start = time.process_time(); import dlm_jax; new = set(sys.modules) - before;"
        "print(time.process_time() - start, [m for m in ('orbax', 'transformers',"
        " 'absl.flags', 'matplotlib', 'scipy.stats', 'torch') if m in new])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    seconds, _, loaded = run.stdout.strip().partition(" ")
    assert loaded == "[]"
    # Of processor time, so that what else runs does not count: 0.4 s.
    assert float(seconds) < 1.5
    for name in dlm.__all__:
        assert getattr(dlm, name) is not None
    assert len(dlm.__all__) == len(set(dlm.__all__))
    # Every published rule has a name; what else there is stays small.
    rules = (dlm.Sampler, dlm.Schedule)
    found = [getattr(dlm, name) for name in dlm.__all__]
    others = [x for x in found if not (isinstance(x, type) and issubclass(x, rules))]
    assert len(others) <= 30


def test_public_fields_of_results_are_documented():
    for cls in (dlm.Output, dlm.Options, dlm.Prompts, dlm.Generation, dlm.Canvas):
        for field in dataclasses.fields(cls):
            assert f"  {field.name}: " in cls.__doc__, (cls, field.name)
