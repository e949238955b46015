r"""Prompts of published evaluations, character by character.

The files of tests/data/prompts are the prompts as the sources send them for the first
problem of the made-up data: OpenCompass' configs and lm-evaluation-harness' task files.
In conversations, [user] and [assistant] begin a message and [end] ends it.
"""

import random

import pytest
from chat_checkpoint import make_chat_checkpoint
from helpers import DATA
from published_data import GSM8K, MBPP, write_all, write_lines

from dlm_jax import checkpoints, tasks
from dlm_jax.errors import InputError
from dlm_jax.text.codec import Codec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    directory = make_chat_checkpoint(tmp_path_factory.mktemp("chat"), 8192)
    return Codec.load(directory, checkpoints.read_config(directory))


def first(data, task, style):
    asked = tasks.get(task).with_style(style).with_data(str(data / task))
    return asked, asked.examples("test", 2)[0]


@pytest.mark.parametrize(
    ("task", "style"),
    [
        ("gsm8k", "opencompass"),
        ("mbpp", "opencompass"),
        ("mbpp", "harness"),
        ("math", "harness"),
    ],
)
def test_few_shot_prompts_are_the_published_ones(data, task, style):
    _, example = first(data, task, style)
    text = example.prompt
    if not isinstance(text, str):
        text = "".join(f"[{x['role']}]\n{x['content']}[end]\n" for x in example.prompt)
    published = (DATA / "prompts" / f"{task}_{style}.txt").read_bytes().decode()
    assert text == published


def test_zero_shot_prompts_are_the_published_ones(data):
    question = "Ann has 0 pens and buys 2 more. How many has she?"
    head = 'def f0(x):\n    """ Returns x + 0.\n    """\n'
    for task, style, prompt in (
        (
            "math",
            "opencompass",
            "What is $\\frac{1}{4} + \\frac{1}{4}$?\nPlease reason step by step, and "
            "put your final answer within \\boxed{}.",
        ),
        (
            "gsm8k",
            "zero_shot",
            f"Question: {question}\nLet's think step by step\nAnswer:",
        ),
        ("humaneval", "opencompass", f"Complete the following python code:\n{head}"),
        ("humaneval", "harness", head),
    ):
        _, example = first(data, task, style)
        assert (example.prompt, example.text) == (prompt, prompt)


def test_gsm8k_draws_its_examples_as_the_harness_does(data):
    _, example = first(data, "gsm8k", "harness")
    places = random.Random(1234).sample(range(len(GSM8K)), 5)
    shots = [GSM8K[i] for i in places]
    assert example.prompt == (
        "".join(f"Question: {x['question']}\nAnswer: {x['answer']}\n\n" for x in shots)
        + f"Question: {GSM8K[0]['question']}\nAnswer:"
    )
    # More problems do not change the first one's.
    more = tasks.get("gsm8k").with_style("harness").with_data(str(data / "gsm8k"))
    assert more.examples("test", 5)[0] == example


def test_examples_to_be_drawn_must_be_there(tmp_path):
    write_lines(tmp_path / "test.jsonl", GSM8K)
    task = tasks.get("gsm8k").with_style("harness").with_data(str(tmp_path))
    with pytest.raises(InputError, match=r"\(harness\) takes its examples"):
        task.examples("test", 1)
    write_lines(tmp_path / "train.jsonl", GSM8K[:4])
    task = tasks.get("gsm8k").with_style("harness").with_data(str(tmp_path))
    with pytest.raises(InputError, match=r"has 4 rows of the split train; .* needs 5"):
        task.examples("test", 1)


def encoded(codec, data, task, style):
    asked, example = first(data, task, style)
    [row] = asked.with_lengths(8, 8).encode(codec, [example])
    return "".join(codec.tokenizer.convert_ids_to_tokens(row.tokens[~row.is_blank]))


HEADS = "<|start_header_id|>{}<|end_header_id|>\n\n"


def test_conversations_are_written_in_the_template(codec, data):
    user, assistant = HEADS.format("user"), HEADS.format("assistant")
    text = encoded(codec, data, "gsm8k", "opencompass")
    assert text.count(user) == 5 and text.count(assistant) == 5
    assert text.startswith(f"<|startoftext|>{user}Question: Angelo and Melanie want")
    assert text.endswith(f"Let's think step by step\nAnswer:<|eot_id|>{assistant}")
    text = encoded(codec, data, "math", "opencompass")
    assert text.endswith(f"within \\boxed{{}}.<|eot_id|>{assistant}")
    sent = encoded(codec, data, "mbpp", "opencompass")
    assert sent.endswith(f"== 10<|eot_id|>{assistant}")
    # The line of the config's last turn begins the answer.
    begun = encoded(codec, data, "mbpp", "opencompass_begin")
    assert begun == f"{sent}[BEGIN]\n"


def test_text_is_continued_as_it_is(codec, data):
    for task in ("gsm8k", "math", "mbpp", "humaneval"):
        _, example = first(data, task, "harness")
        assert encoded(codec, data, task, "harness").endswith(example.prompt)
        assert "start_header" not in encoded(codec, data, task, "harness")


def test_a_conversation_needs_a_chat_template(codec, data, monkeypatch):
    monkeypatch.setattr(codec.tokenizer, "chat_template", None)
    for task, style in (("gsm8k", "zero_shot"), ("mbpp", "opencompass")):
        with pytest.raises(InputError, match="has no chat template"):
            encoded(codec, data, task, style)
    # HumanEval's own request falls back to the text.
    assert encoded(codec, data, "humaneval", "request").endswith('"""\n')


def test_an_answer_ends_where_the_style_ends_it(data):
    for task, style, answer, judged in (
        ("gsm8k", "harness", "#### 2\n\nQuestion: b #### 3", "#### 2\n\n"),
        ("gsm8k", "opencompass", "so 2\nQuestion: 3", "so 2\n"),
        ("math", "harness", "a \\boxed{1}\n\nProblem:\n\\boxed{2}", "a \\boxed{1}\n\n"),
        ("mbpp", "harness", "x = 1\n[DONE]\ny = 2", "x = 1\n"),
        ("humaneval", "harness", "    return 1\nprint(2)\ndef", "    return 1"),
        ("humaneval", "opencompass", "    return 1\nprint(2)", None),
    ):
        style = tasks.get(task).styles[style]
        assert style.cut(answer) == (answer if judged is None else judged)
    assert MBPP[0]["task_id"] == 11
