"""dlm_jax as a model of lm-evaluation-harness, by its classes and its command line."""

import json
import logging
import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
from chat_checkpoint import break_letter
from tokenizers import processors

import dlm_jax as dlm
from dlm_jax.errors import InputError

# Read when `datasets` is imported.
os.environ["HF_DATASETS_OFFLINE"] = "1"
pytest.importorskip("lm_eval", reason="needs the extra eval")

import datasets
from lm_eval import simple_evaluate
from lm_eval.__main__ import cli_evaluate as command_of_lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.tasks import TaskManager

import dlm_jax.harness
from dlm_jax.harness import arguments
from dlm_jax.harness.adapter import DlmJax
from dlm_jax.outline import read_outline
from dlm_jax.tasks import countdown

ROOT = pathlib.Path(__file__).parents[2]
QUESTIONS = ["Why?", "How many primes are below 50?  ", "a b\nc", "Name one prime."]
SAMPLER = "saber(n=2, mu=8)"


@pytest.fixture(scope="module")
def lm(checkpoint):
    return DlmJax(
        checkpoint=str(checkpoint), sampler=SAMPLER, batch_size=4, num_samples=8
    )


@pytest.fixture(scope="module")
def model(lm):
    return lm.model


def asked(kind, *args, repeats=1, first=0):
    """Requests as lm_eval makes them: one per document, each as often as it repeats."""
    found = [
        Instance(kind, {}, arg, 0, ("task", first + i, repeats))
        for i, arg in enumerate(args)
    ]
    return [one for one in found for _ in range(repeats)]


def with_seed(lm, **changed):
    """The same loaded model with other arguments."""
    other = object.__new__(DlmJax)
    other.__dict__ |= lm.__dict__
    other.arguments = arguments.read({**lm.arguments.given, **changed})
    return other


# Generation.


def test_answers_are_those_of_generate_cut_at_their_own_stops(lm, model):
    lengths = [16, 8, 16, 8]
    whole = dict(zip(QUESTIONS, [""] * 4, strict=True))
    for length, chosen in ((16, QUESTIONS[::2]), (8, QUESTIONS[1::2])):
        outputs = model.generate(
            chosen, SAMPLER, gen_length=length, chat=False, batch_size=4
        )
        whole |= {q: x.text for q, x in zip(chosen, outputs, strict=True)}
    texts = [whole[question] for question in QUESTIONS]
    assert texts == [
        ".M+..MMQK+f...EK",
        "+.....+.",
        ".......+.....+.",
        "Q.....Q.",
    ]
    # Each request has its own stops; the earliest in the text counts.
    stops = [["Q", "+."], "+", ["f"], []]
    requests = asked(
        "generate_until",
        *(
            (question, {"max_gen_toks": length, "until": until})
            for question, length, until in zip(QUESTIONS, lengths, stops, strict=True)
        ),
    )
    found = lm.generate_until(requests, disable_tqdm=True)
    assert found == [".M", "", ".......+.....+.", "Q.....Q."]
    # Neither the order nor the batch matters.
    assert lm.generate_until(requests[::-1], disable_tqdm=True) == found[::-1]
    assert lm.generate_until(requests[:1], disable_tqdm=True) == found[:1]


def test_a_stop_that_is_a_special_token_ends_the_row(lm, model):
    header = "<|start_header_id|>"
    ids = {model.codec.tokenizer.convert_tokens_to_ids(header)}
    seen = []

    def stream_rows(rows, rule, options, settings, ids):
        seen.append(options.stop_ids)
        return iter(())

    other = with_seed(lm)
    other.model = object.__new__(type(model))
    other.model.__dict__ |= model.__dict__ | {"stream_rows": stream_rows}
    other.generate_until(
        asked("generate_until", ("a", {"until": [header, "\n"], "max_gen_toks": 4})),
        disable_tqdm=True,
    )
    assert set(seen[0]) == ids | set(model.stop_ids)


def test_draws_depend_on_the_document_and_its_repetition_only(lm):
    kwargs = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 8}
    requests = asked("generate_until", *[(q, kwargs) for q in QUESTIONS[:2]], repeats=2)
    found = lm.generate_until(requests, disable_tqdm=True)
    assert found[0] != found[1]
    limited = lm.generate_until(requests[2:4], disable_tqdm=True)
    assert limited == found[2:4]
    turned = lm.generate_until(requests[2:] + requests[:2], disable_tqdm=True)
    assert turned == found[2:] + found[:2]
    other = with_seed(lm, seed=1).generate_until(requests, disable_tqdm=True)
    assert other != found


def test_a_context_that_is_too_long_is_refused_or_cut(lm, model):
    text = "abcdefgh" * 64
    request = asked("generate_until", (text, {"max_gen_toks": 8}))
    message = "request 0: a context of 512 tokens and 8 more exceed .*truncate=true"
    with pytest.raises(InputError, match=message):
        lm.generate_until(request)
    cut = with_seed(lm, truncate=True)
    tokens = model.codec.encode([text[8:]], 8)[0].tokens[:-8]
    assert cut._context("generate_until", 0, text, 8).tolist() == tokens.tolist()
    with pytest.raises(InputError, match="and 512 more exceed the model's context"):
        cut._context("generate_until", 0, text, 512)
    with pytest.raises(InputError, match="holds the mask token"):
        lm.generate_until(
            asked("generate_until", ("a<|mdm_mask|>", {"max_gen_toks": 8}))
        )


# Chat.


def test_special_tokens_of_the_template_are_not_doubled(lm, model):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why? "},
    ]
    own = model.codec.encode_chat([messages], 4)[0]
    template = lm.chat_template(True)
    assert template == lm.tokenizer.chat_template
    text = lm.apply_chat_template(messages)
    # A tokenizer that adds BOS to what has none, as many do.
    adding = with_seed(lm)
    tokenizer = lm.tokenizer.backend_tokenizer
    bos = lm.tokenizer.bos_token_id
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", bos)]
    )
    try:
        assert adding.tok_encode("a")[0] == bos
        assert adding.tok_encode(text) == own.tokens[~own.is_blank].tolist()
        assert adding.tok_encode(text).count(bos) == 1
        assert with_seed(lm, add_special_tokens=False).tok_encode("a")[0] != bos
        assert with_seed(lm, add_special_tokens=True).tok_encode(text).count(bos) == 2
    finally:
        tokenizer.post_processor = None


def test_the_beginning_of_an_answer_stays_in_the_assistant_s_turn(lm):
    history = [
        {"role": "user", "content": "Write f."},
        {"role": "assistant", "content": "def f"},
    ]
    text = lm.apply_chat_template(history, add_generation_prompt=False)
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\ndef f")


def test_a_template_that_is_not_there_or_refuses_is_one_line(lm):
    with pytest.raises(InputError, match=r"chat template refuses .* \(user\)"):
        lm.apply_chat_template([{"role": "user"}], add_generation_prompt=False)
    powerful = with_seed(lm)
    powerful._template = "{{ 9 ** 9 ** 9 ** 9 }}"
    with pytest.raises(InputError, match=r"must not have the operator \*\*"):
        powerful.apply_chat_template([{"role": "user", "content": "one"}])
    countdown = DlmJax(checkpoint=str(dlm.zoo.path("countdown")))
    with pytest.raises(InputError, match="no chat template"):
        countdown.chat_template(True)


# Likelihood.


def test_scores_are_those_of_log_likelihood(lm, model):
    pairs = [
        ("Name a prime:", " 7, or 11"),
        ("Name a prime: ", "7, or 11"),
        ("", "Why?"),
        ("a b c", "d"),
    ]
    requests = asked("loglikelihood", *pairs)
    found = lm.loglikelihood(requests, disable_tqdm=True)
    encode = model.codec.tokenizer
    expected = model.log_likelihood(
        ["Name a prime:", np.array([encode.bos_token_id]), "a b c"],
        [" 7, or 11", "Why?", "d"],
        chat=False,
        num_samples=8,
    )
    values = [one.log_likelihood for one in expected]
    # The space that ends a context belongs to its continuation, as in lm_eval's hf.
    places = [0, 0, 1, 2]
    assert [x for x, _ in found] == pytest.approx([values[i] for i in places], rel=1e-5)
    assert not any(is_greedy for _, is_greedy in found)
    turned = lm.loglikelihood(requests[::-1], disable_tqdm=True)
    assert [x for x, _ in turned[::-1]] == pytest.approx([x for x, _ in found])
    # With other masks it is another estimate.
    other = with_seed(lm, seed=7).loglikelihood(requests[:1], disable_tqdm=True)
    assert other[0][0] != pytest.approx(values[0], rel=1e-5)


def test_greedy_is_what_low_confidence_fills_in(lm, model):
    context = "Why?"
    # Nothing stops it: an answer of exactly that many tokens, special ones too.
    answer = model.generate(
        context, "low_confidence", gen_length=3, chat=False, stop_ids=()
    )
    text = model.codec.tokenizer.decode(answer.tokens)
    pair = (context, text)
    wrong = (context, text[:-1] + "~")
    requests = asked("loglikelihood", pair, wrong)
    assert [x for _, x in lm.loglikelihood(requests, True)] == [True, False]
    blind = with_seed(lm, greedy=False)
    assert [x for _, x in blind.loglikelihood(requests, True)] == [False, False]


def test_a_rolling_text_is_scored_whole(lm, model):
    text = "Two is the only even prime."
    (found,) = lm.loglikelihood_rolling(
        asked("loglikelihood_rolling", (text,)), disable_tqdm=True
    )
    prefix = np.array([model.codec.tokenizer.bos_token_id])
    expected = model.log_likelihood([prefix], [text], chat=False, num_samples=8)
    assert found == pytest.approx(expected[0].log_likelihood, rel=1e-6)
    with pytest.raises(InputError, match=r"\(512 tokens\) must have 1 to 511"):
        lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("a" * 512,)))


def test_a_continuation_without_a_token_is_refused(lm):
    with pytest.raises(InputError, match="request 0: the continuation \\(''\\)"):
        lm.loglikelihood(asked("loglikelihood", ("a", "")), disable_tqdm=True)


# lm_eval's cache of answers.


def test_nan_is_an_error_that_names_the_request(lm, checkpoint, tmp_path):
    directory = break_letter(checkpoint, tmp_path / "broken", "q")
    broken = DlmJax(checkpoint=str(directory), batch_size=4, num_samples=8)
    kept = []
    broken.cache_hook.add_partial = lambda kind, args, answer: kept.append(args)
    pairs = [("one", " 7"), ("a q", "b"), ("", "quite"), ("two", " 11")]
    with pytest.raises(InputError, match=r"^loglikelihood request 1: the model gave N"):
        broken.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    # Those that are good are kept.
    assert sorted(kept) == [pairs[0], pairs[3]]
    assert len(lm.loglikelihood(asked("loglikelihood", *pairs), True)) == 4
    kept.clear()
    kind = "loglikelihood_rolling"
    texts = [("one",), ("two",), ("three q",)]
    with pytest.raises(InputError, match=f"^{kind} request 2: the model gave NaN$"):
        broken.loglikelihood_rolling(asked(kind, *texts), disable_tqdm=True)
    assert sorted(kept) == texts[:2]
    kind = "generate_until"
    requests = asked(kind, ("q", {"until": [], "max_gen_toks": 4}))
    with pytest.raises(InputError, match=f"^{kind} request 0: the model gave NaN at f"):
        broken.generate_until(requests, disable_tqdm=True)


def test_a_cache_is_of_one_setting(lm, tmp_path):
    kwargs = {"max_gen_toks": 8}
    requests = asked("generate_until", *[(q, kwargs) for q in QUESTIONS[:2]])
    path = str(tmp_path / "answers.db")
    cached = CachingLM(with_seed(lm), path)
    found = cached.generate_until(requests)
    # Each answer is kept when it is there, under lm_eval's own key.
    assert len(cached.dbdict) == 3
    again = with_seed(lm, batch_size=1)
    again.generate_until = None
    assert CachingLM(again, path).generate_until(requests) == found
    with pytest.raises(InputError, match="in this one differ: sampler, seed"):
        CachingLM(with_seed(lm, sampler="margin", seed=1), path)
    drawn = asked("generate_until", ("a", {"temperature": 0.5, "max_gen_toks": 8}))
    with pytest.raises(InputError, match="do_sample=true"):
        CachingLM(with_seed(lm), path).generate_until(drawn)

    from sqlitedict import SqliteDict

    foreign = str(tmp_path / "foreign.db")
    with SqliteDict(foreign, autocommit=True) as answers:
        answers["key"] = "an answer of another model"
    with pytest.raises(InputError, match="use_cache must be a new file"):
        CachingLM(with_seed(lm), foreign)


# lm_eval's command line.

FOLDER = pathlib.Path("docs/examples/harness")
KINDS = ("countdown_solve", "countdown_choose", "countdown_read")


def test_the_command_line_evaluates_a_shipped_model(tmp_path):
    """The tasks of the documentation, as its page runs them."""
    checkpoint = dlm.zoo.path("countdown")
    command = [sys.executable, "-m", "dlm_jax.harness"]
    command += ["--model", "dlm_jax", "--tasks", ",".join(KINDS)]
    specs = f"checkpoint={checkpoint},sampler={SAMPLER},num_samples=16"
    command += ["--model_args", specs]
    command += ["--include_path", str(FOLDER), "--batch_size", "8", "--limit", "2"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "countdown_solve" in done.stdout

    def logged(name):
        (path,) = (tmp_path / "out").rglob(f"samples_{name}_*.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())
    lines = (ROOT / FOLDER / "countdown.jsonl").read_text().splitlines()[:2]
    puzzles = [json.loads(line) for line in lines]
    questions = [puzzle["question"] for puzzle in puzzles]
    model = dlm.load(checkpoint)

    expected = model.generate(questions, SAMPLER, gen_length=18)
    found = logged("countdown_solve")
    assert [one["resps"][0][0] for one in found] == [x.text for x in expected]
    verdicts = [
        countdown.verdict(
            countdown.Puzzle(tuple(puzzle["numbers"]), puzzle["target"]), output.text
        ).is_correct
        for puzzle, output in zip(puzzles, expected, strict=True)
    ]
    assert results["results"]["countdown_solve"]["solved,none"] == np.mean(verdicts)
    costs = results["config"]["dlm_jax"]["generated"]
    assert costs["mean_nfe"] == np.mean([output.nfe for output in expected])
    assert costs["rows"] == 2 and costs["incomplete_rows"] == 0
    settings = results["config"]["dlm_jax"]["settings"]
    assert settings["sampler"].startswith("saber(n=2, mu=8")

    scores = model.log_likelihood(
        [question for question in questions for _ in range(2)],
        [puzzle[name] for puzzle in puzzles for name in ("wrong", "answer")],
        greedy=True,
        num_samples=16,
    )
    answers = [x[0] for one in logged("countdown_choose") for x in one["resps"]]
    assert [float(value) for value, _ in answers] == pytest.approx(
        [x.log_likelihood for x in scores], rel=1e-4
    )
    assert [str(flag) for _, flag in answers] == [str(x.is_greedy) for x in scores]

    whole = [puzzle["question"] + puzzle["answer"] for puzzle in puzzles]
    bos = np.array([model.codec.tokenizer.bos_token_id])
    scores = model.log_likelihood([bos] * 2, whole, num_samples=16)
    bits = -sum(x.log_likelihood for x in scores) / sum(map(len, whole)) / np.log(2)
    found = results["results"]["countdown_read"]["bits_per_byte,none"]
    assert found == pytest.approx(bits, rel=1e-4)


def test_an_error_of_the_command_line_is_one_line(monkeypatch):
    def cli_evaluate():
        DlmJax.create_from_arg_obj({"checkpoint": "x", "steps": 3}, {"batch_size": 1})

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", cli_evaluate)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("dlm_jax.harness", run_name="__main__")
    assert str(stop.value).startswith("dlm_jax: model_args: steps must be among")
    assert "\n" not in str(stop.value)


def told(monkeypatch, cli_evaluate, *arguments):
    """What the command ends with, where lm_eval's command line does this."""
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", cli_evaluate)
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("dlm_jax.harness", run_name="__main__")
    assert "\n" not in str(stop.value)
    return stop.value.code


@pytest.mark.parametrize(
    ("flag", "path"),
    [
        ("--output_path", "file"),
        ("--output_path", "file/results.json"),
        ("-o", "file/more"),
        ("--use_cache", "file/answers"),
    ],
)
def test_results_that_could_not_be_saved_are_refused_first(
    monkeypatch, tmp_path, flag, path
):
    (tmp_path / "file").write_text("mine")

    def cli_evaluate():
        raise AssertionError("it must not come to this")

    said = told(monkeypatch, cli_evaluate, flag, str(tmp_path / path))
    name = "use_cache" if "cache" in flag else "output_path"
    assert said.startswith(f"dlm_jax: {name} ({tmp_path}/file")
    assert "is not a writable directory" in said
    assert (tmp_path / "file").read_text() == "mine"


def test_results_that_were_not_saved_are_an_error(monkeypatch, tmp_path):
    from lm_eval.loggers import EvaluationTracker

    def cli_evaluate():
        # LMEVAL_LOG_LEVEL=ERROR.
        monkeypatch.setattr(logging.getLogger("lm_eval"), "level", logging.ERROR)
        # As if the folder went while the tasks ran.
        tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
        (tmp_path / "out").write_text("")
        tracker.save_results_aggregated({"configs": {}}, {})

    said = told(monkeypatch, cli_evaluate, "--output_path", str(tmp_path / "out"))
    assert said == "dlm_jax: results are not saved: Could not save results aggregated"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], "lm_eval: Tasks not found: none"),
        (["--log_samples"], "lm_eval: Specify --output_path if providing --log_sam"),
    ],
)
def test_what_lm_eval_refuses_is_one_line(monkeypatch, checkpoint, arguments, status):
    model = ["--model", "dlm_jax", "--model_args", f"checkpoint={checkpoint}"]
    arguments = [*model, "--tasks", "none", *arguments]
    said = told(monkeypatch, command_of_lm_eval, *arguments)
    assert said.startswith(status)


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def cli_evaluate():
        raise KeyboardInterrupt

    assert told(monkeypatch, cli_evaluate) == 130
    assert capsys.readouterr().err == "dlm_jax: stopped by Ctrl-C\n"


SHOTS = [{"question": "1+1", "answer": "2"}, {"question": "2+2", "answer": "4"}]
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
fewshot_split: test
num_fewshot: 1
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: exact_match}}]
"""


def test_chat_templates_come_from_lm_eval(tmp_path, checkpoint, monkeypatch):
    """Shots as turns of a conversation, after a system message."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(shot) + "\n" for shot in SHOTS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sums.yaml").write_text(TASK.format(data=data))
    seen = []

    def generate_until(self, requests, disable_tqdm=False):
        seen.extend(self.tok_encode(request.args[0]) for request in requests)
        return [""] * len(requests)

    monkeypatch.setattr(DlmJax, "generate_until", generate_until)
    simple_evaluate(
        model="dlm_jax",
        # lm_eval's evaluator has its own, simpler parser; ours is the one that counts.
        model_args=f"checkpoint={checkpoint},sampler={SAMPLER}",
        tasks=["sums"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        system_instruction="Add.",
        limit=1,
        bootstrap_iters=0,
    )
    conversation = [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "1+1"},
    ]
    codec = read_outline(checkpoint).codec
    expected = codec.encode_chat([conversation], 1)[0].tokens[:-1].tolist()
    assert seen == [expected]
