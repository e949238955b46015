"""What lm_eval's command line may say, and what becomes of it."""

import os
import sys

import pytest

import dlm_jax as dlm
from dlm_jax.errors import InputError

# Read when `datasets` is imported.
os.environ["HF_DATASETS_OFFLINE"] = "1"
pytest.importorskip("lm_eval", reason="needs the extra eval")

import lm_eval.api.registry

import dlm_jax.harness
from dlm_jax.harness import arguments
from dlm_jax.harness.adapter import DlmJax


def reads(**given):
    return arguments.read({"checkpoint": "folder", **given})


# The settings.


def test_the_name_is_registered_beside_lm_eval_s_own():
    assert lm_eval.api.registry.get_model(dlm_jax.harness.NAME) is DlmJax
    assert "hf" in lm_eval.api.registry.model_registry


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "dlm_jax.harness")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dlm_jax\[eval\]'"):
        __import__("dlm_jax.harness")


SPECS = {
    "checkpoint": "my/folder",
    "sampler": "dynamic(threshold=0.8, schedule=quota(steps=4))",
    "cache": "dual(refresh_every=8)",
    "masks": "stratified(batch_size=8)",
    "stop_ids": [1, 2],
    "suppress_eos": True,
    "guidance": 0.5,
    "gen_length": 64,
}


def test_commas_in_brackets_belong_to_the_value():
    text = ",".join(f"{name}={value}" for name, value in SPECS.items())
    assert arguments.split(text) == SPECS
    # What lm_eval's evaluator and its YAML configurations make of such a text.
    from lm_eval.utils import simple_parse_args_string

    pieces = simple_parse_args_string(text)
    assert len(pieces) > len(SPECS)
    assert arguments.join(pieces) == SPECS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('sampler=entropy_bound(gamma=0.1, error_proxy="entropy")', None),
        ("sampler='saber(n=2, mu=8)'", "saber(n=2, mu=8)"),
    ],
)
def test_quotes_are_kept_inside_of_a_spec_and_dropped_around_it(text, value):
    assert arguments.split(text) == {"sampler": value or text.partition("=")[2]}


def test_lm_eval_s_command_line_splits_specs_as_ours():
    from lm_eval._cli.utils import key_val_to_dict

    text = ",".join(f"{name}={value}" for name, value in SPECS.items())
    assert arguments.join(key_val_to_dict(text)) == SPECS


def test_settings_go_where_they_belong():
    found = reads(
        sampler="saber(n=2, mu=8)",
        seed=3,
        num_samples=16,
        temperature=0,
        cache=None,
        masks="none",
    )
    assert found.rule == dlm.Saber(n=2, mu=8)
    assert found.generation == {"seed": 3}
    assert found.likelihood == {
        "greedy": True,
        "seed": 3,
        "num_samples": 16,
        "masks": "none",
    }
    assert found.temperature == 0.0
    assert arguments.read({"pretrained": 8}).checkpoint == "8"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": 3}, r"step must be among checkpoint, sampler, .*num_samples"),
        ({"trajectory": True}, "trajectory must be among"),
        ({"chat": True}, "--apply_chat_template"),
        ({"pretrained": "x"}, "checkpoint and pretrained are the same"),
        ({"sampler": "sabre"}, r"sampler \(sabre\) must be one of"),
        ({"gen_length": 1.5}, r"gen_length \(1.5\) must be an integer"),
        ({"gen_length": float("inf")}, r"gen_length \(inf\) must be an integer"),
        ({"gen_length": True}, r"gen_length \(True\) must be an integer"),
        ({"suppress_eos": "yes"}, r"suppress_eos \('yes'\) must be true or false"),
        ({"temperature": "hot"}, r"temperature \('hot'\) must be a number"),
        ({"stop_ids": "a"}, "stop_ids .* must be token ids"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=message) as error:
        reads(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("checkpoint", r"\('checkpoint'\) must be NAME=VALUE"),
        ("seed=1,seed=2", "seed is given twice"),
    ],
)
def test_wrong_texts_are_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message):
        arguments.split(text)


def test_a_bracket_that_stays_open_is_refused():
    with pytest.raises(InputError, match="write model_args as a mapping"):
        arguments.join({"sampler": "saber(n=2", "cache": "dual(refresh_every=8)"})


@pytest.mark.parametrize(
    ("size", "flag", "expected"),
    [(None, "8", 8), (None, 1, 1), (4, "8", 4), (None, "auto", None), (4, "auto:2", 4)],
)
def test_model_args_win_over_the_flag_for_batches(size, flag, expected):
    given = {} if size is None else {"batch_size": size}
    own = {"batch_size": flag, "max_batch_size": None, "device": "cuda:0"}
    assert arguments.merge(given, own) == {"batch_size": expected}


def test_wrong_settings_are_told_before_weights_are_read(checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for given, message in [
        ({"gen_length": 64, "block_length": 48}, "multiple of block_length"),
        ({"cache": "block"}, "blocks do not see later ones"),
        ({"masks": "half"}, "masks"),
        ({"num_samples": 0}, "num_samples"),
        ({"temperature": -1}, "temperature"),
    ]:
        with pytest.raises(InputError, match=message):
            DlmJax(checkpoint=str(tmp_path), **given)


# What a task asks for.


def test_gen_kwargs_are_read_as_lm_eval_s_models_do():
    def request(**kwargs):
        return arguments.read_request(kwargs, reads())

    assert request() == arguments.Request(256, 0.0, ())
    assert request(until="\n", max_new_tokens=8).until == ("\n",)
    assert request(max_tokens=8, max_gen_toks=16).gen_length == 16
    assert request(do_sample=False, temperature=0.7).temperature == 0.0
    assert request(do_sample=True).temperature == 1.0
    assert request(temperature=0.2).temperature == 0.2
    # Nothing is drawn, so top_p changes nothing.
    assert request(top_p=0.95, num_beams=1).temperature == 0.0
    assert request(until=["b", "", "a"]).cut("xayb") == "x"
    assert request().cut("xayb") == "xayb"


def test_what_gen_kwargs_cannot_have_is_refused():
    with pytest.raises(InputError, match=r"top_p \(0.9\).*--gen_kwargs top_p=1 turns"):
        arguments.read_request({"do_sample": True, "top_p": 0.9}, reads())
    with pytest.raises(InputError, match=r"stop \(\['a'\]\) must be among until"):
        arguments.read_request({"stop": ["a"]}, reads())


def test_model_args_win_over_gen_kwargs_and_say_so(caplog, monkeypatch):
    monkeypatch.setattr(arguments, "_WARNED", set())
    # Scripts of other tests turn down what is logged.
    caplog.set_level("WARNING", logger=arguments.log.name)
    monkeypatch.setattr(arguments.log, "propagate", True)
    monkeypatch.setattr(arguments.log.parent, "propagate", True)
    own = reads(gen_length=32, temperature=0.5)
    kwargs = {"max_gen_toks": 64, "do_sample": False}
    for _ in range(2):
        found = arguments.read_request(kwargs, own)
    assert (found.gen_length, found.temperature) == (32, 0.5)
    assert [record.message for record in caplog.records] == [
        "gen_length=32 of model_args replaces max_gen_toks=64",
        "temperature=0.5 of model_args replaces the task's 0.0",
    ]
