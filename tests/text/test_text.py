"""Text: chat template, blanks, buckets, batches and what is read back."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from chat_tokenizer import (
    BOS,
    CONFIG,
    EOS,
    EOT,
    HEADER,
    HEADER_END,
    IDS,
    LETTERS,
    MASK,
    TEMPLATE,
    make_tokenizer,
)
from hypothesis import given
from hypothesis import strategies as st

from dlm_jax import zoo
from dlm_jax.errors import InputError, PromptError
from dlm_jax.outline import read_outline
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import BLANK
from dlm_jax.text import templates
from dlm_jax.text.characters import character_tokenizer
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import pad

SUDOKU = pathlib.Path(zoo.__file__).parent / "sudoku"
SUDOKU_CONFIG = sudoku.Sudoku().model_config(
    d_model=8, n_heads=2, n_layers=1, mlp_hidden_size=8
)
words = st.text(LETTERS, min_size=1, max_size=40)


PLAIN = Codec.of(make_tokenizer(), CONFIG)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A checkpoint's directory with a chat template, and code that must not be run."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    auto_map = {"AutoConfig": "configuration_llada.LLaDAConfig"}
    config = {**CONFIG.to_hf(), "model_type": "llada", "auto_map": auto_map}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def chat(directory):
    return Codec.load(directory, CONFIG)


def to_ids(*tokens: str) -> list[int]:
    return [IDS[token] for token in tokens]


def fill(encoded, ids) -> np.ndarray:
    """What a generation makes of a row: blanks filled in order, padding after."""
    tokens = np.pad(encoded.tokens, (0, 7))
    tokens[np.flatnonzero(encoded.is_blank)[: len(ids)]] = ids
    return tokens


def test_chat_follows_the_template_of_the_released_checkpoint(chat):
    [encoded] = chat.encode_chat(["  hi é\n"], gen_length=3)
    expected = to_ids(
        *(BOS, HEADER, *"user", HEADER_END, *"\n\nhi é", EOT),
        *(HEADER, *"assistant", HEADER_END, *"\n\n"),
    )
    assert encoded.tokens.tolist() == expected + [IDS[MASK]] * 3
    assert encoded.is_blank.tolist() == [False] * len(expected) + [True] * 3
    assert encoded.tokens.dtype == np.int32


def test_stop_ids_are_eos_and_the_end_of_a_turn(chat):
    assert chat.stop_ids == (IDS[EOS], IDS[EOT])
    assert Codec.load(SUDOKU, SUDOKU_CONFIG).stop_ids == (sudoku.EOS_ID,)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"eos_token_id": [IDS[EOS], IDS["a"], IDS["b"]]}, [IDS["a"], IDS["b"]]),
        ({"eos_token_id": IDS["a"]}, [IDS["a"]]),
        ({"eos_token_id": None}, []),
        ({}, []),
    ],
)
def test_generation_config_may_name_several_stops(
    directory, tmp_path, written, expected
):
    copy = shutil.copytree(directory, tmp_path / "checkpoint")
    (copy / "generation_config.json").write_text(json.dumps(written))
    codec = Codec.load(copy, CONFIG)
    assert codec.stop_ids == tuple(sorted({IDS[EOS], IDS[EOT], *expected}))
    [encoded] = codec.encode(["hi"], gen_length=4)
    ids = to_ids(*"abcd")
    new = codec.generated(encoded, fill(encoded, ids))
    assert new.tolist() == ids[: 0 if expected else 4]


def test_config_may_name_several_stops_and_begin_with_a_mark(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "checkpoint")
    path = copy / "config.json"
    values = json.loads(path.read_text()) | {"eos_token_id": [IDS[EOS], IDS["a"]]}
    path.write_text(json.dumps(values), encoding="utf-8-sig")
    outline = read_outline(copy)
    assert outline.config.eos_token_id == outline.denoiser.eos_id == IDS[EOS]
    assert outline.stop_ids == tuple(sorted({IDS[EOS], IDS[EOT], IDS["a"]}))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_the_mask_token_is_no_stop(directory, tmp_path, name):
    copy = shutil.copytree(directory, tmp_path / "checkpoint")
    (copy / name).write_text(json.dumps({"eos_token_id": [IDS[EOS], IDS[MASK]]}))
    message = rf"{name}: eos_token_id \(.*\) must not hold the mask token"
    with pytest.raises(InputError, match=message):
        Codec.load(copy, CONFIG)


@pytest.mark.parametrize("written", ['{"eos_token_id": [1, "x"]}', "[]", "{", '"x"'])
def test_a_damaged_generation_config_is_named(directory, tmp_path, written):
    copy = shutil.copytree(directory, tmp_path / "checkpoint")
    (copy / "generation_config.json").write_text(written)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        Codec.load(copy, CONFIG)


def test_infillings_have_no_stop_and_continuations_have(chat):
    rows = [*chat.encode(["hi"], 3), *chat.encode_infill([f"a{MASK}b"])]
    assert pad(rows, 12, 3).can_stop.tolist() == [True, False, True]


@given(prompt=words, answer=words)
def test_answer_survives_the_round_trip(prompt, answer):
    ids = to_ids(*answer)
    [encoded] = PLAIN.encode([prompt], gen_length=len(ids) + 4)
    filled = fill(encoded, [*ids, IDS[EOS], IDS["a"], IDS[EOT], IDS["b"]])
    assert PLAIN.decode(encoded, filled) == answer
    assert PLAIN.generated(encoded, filled).tolist() == ids


@given(content=words, data=st.data())
def test_infilling_survives_the_round_trip(content, data):
    is_blank = data.draw(
        st.lists(st.booleans(), min_size=len(content), max_size=len(content)).filter(
            any
        )
    )
    holes = "".join(
        MASK if hole else letter for letter, hole in zip(content, is_blank, strict=True)
    )
    [encoded] = PLAIN.encode_infill([holes])
    assert encoded.is_blank.tolist() == is_blank
    missing = [letter for letter, hole in zip(content, is_blank, strict=True) if hole]
    filled = fill(encoded, to_ids(*missing))
    assert PLAIN.decode(encoded, filled) == content
    # Nothing filled: the text with its holes is what was given.
    assert PLAIN.decode(encoded, fill(encoded, [])) == holes


def test_each_row_is_cut_at_its_own_stop():
    rows = PLAIN.encode(["one", "another one"], gen_length=5)
    answers = [to_ids(*"ab", EOT, *"cd"), to_ids(*"abcde")]
    texts = [PLAIN.decode(r, fill(r, a)) for r, a in zip(rows, answers, strict=True)]
    assert texts == ["ab", "abcde"]


def test_stop_in_the_prompt_does_not_cut():
    [encoded] = PLAIN.encode([f"a{EOT}b"], gen_length=2)
    assert PLAIN.decode(encoded, fill(encoded, to_ids(*"cd"))) == "cd"


def test_stop_in_an_infilling_does_not_cut():
    [encoded] = PLAIN.encode_infill([f"{MASK}b{MASK}"])
    filled = fill(encoded, to_ids(EOS, "c"))
    assert PLAIN.generated(encoded, filled).tolist() == to_ids(EOS, "c")
    assert PLAIN.decode(encoded, filled) == "bc"


def test_special_tokens_are_left_out_and_open_masks_shown():
    [encoded] = PLAIN.encode(["a"], gen_length=4)
    filled = fill(encoded, to_ids("b", HEADER, "c"))
    assert PLAIN.decode(encoded, filled) == f"bc{MASK}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.encode_chat(["a", " \n"], 4), "prompt 1 is empty: .* --nochat"),
        (lambda c: c.encode_infill([""]), "prompt 0 has no blank to fill"),
        (
            lambda c: c.encode_chat(["a", f"b{MASK}"], 4),
            r"prompt 1 holds the mask token \(<\|mdm_mask\|>\)",
        ),
        (lambda c: c.encode([f"b{MASK}"], 4), "prompt 0 holds the mask token"),
        (lambda c: c.encode_infill([MASK, "a"]), "prompt 1 has no blank"),
        (lambda c: c.encode(["a"], 0), r"gen_length \(0\) must be at least 1"),
        (
            lambda c: c.encode(["a", "b" * 125], 4),
            r"prompt 1 has 125 tokens; with gen_length \(4\) that is 129, more than "
            r"the model's context \(128\)",
        ),
        (
            lambda c: c.encode_infill([MASK * 129]),
            r"prompt 0 has 129 tokens, more than the model's context \(128\)",
        ),
        (lambda c: c.encode(["a", "Z"], 4), "prompt 1 cannot be written in"),
    ],
)
def test_bad_prompt_is_refused_by_name(chat, call, message):
    with pytest.raises(InputError, match=message):
        call(chat)


def test_an_empty_text_is_continued_from_nothing():
    [encoded] = PLAIN.encode([""], gen_length=3)
    assert encoded.tokens.tolist() == [IDS[MASK]] * 3 and encoded.is_blank.all()


@pytest.mark.parametrize(
    ("call", "index", "is_too_long"),
    [
        (lambda c: c.encode(["a", "b" * 125], 4), 1, True),
        (lambda c: c.encode_infill([MASK * 129]), 0, True),
        (lambda c: c.encode(["a", "b", f"b{MASK}"], 4), 2, False),
        (lambda c: c.encode(["a", "Z"], 4), 1, False),
        (lambda c: c.encode_chat(["a", " \n"], 4), 1, False),
        (lambda c: c.encode_infill([MASK, "a"]), 1, False),
    ],
)
def test_an_error_knows_its_prompt(chat, call, index, is_too_long):
    with pytest.raises(PromptError) as error:
        call(chat)
    assert (error.value.index, error.value.is_too_long) == (index, is_too_long)


BIG = "{{ 'a' * 10000000000 }}"


@pytest.mark.parametrize(
    "template",
    [
        BIG,
        "{{ 'a' * 0x_ff_ff_ff_ff }}",
        "{{ 'a' * (1e10 | int) }}",
        f"{{{{ 'a' * {'9' * 5000} }}}}",
        "{{ '%100000000d' % 3 }}",
        "{{ '%-*.100000000f' % (3, 2.0) }}",
        "{{ '{:>100000000}'.format('x') }}",
        "{% for x in range(10_000_000) %}x{% endfor %}",
    ],
)
def test_templates_of_large_numbers_are_refused(template):
    with pytest.raises(InputError, match="must not have a number or a format width"):
        templates.check(None, template)


@pytest.mark.parametrize(
    "template", [TEMPLATE, "20240131 {{ '20240131' }} {{ 9999999 }}", "{{ 1e3 }}", "{{"]
)
def test_other_templates_are_let_through(template):
    templates.check(None, template)


def test_a_text_longer_than_any_context_is_refused(chat, monkeypatch):
    monkeypatch.setattr(templates, "_CHARACTERS", 1000)
    assert chat.encode_chat(["a"], 4)
    with pytest.raises(InputError, match=r"prompt 0: .* characters, more than 1000$"):
        chat.encode_chat(["a" * 1000], 4)


def test_longest_prompt_that_fits_is_taken():
    [encoded] = PLAIN.encode(["b" * 124], gen_length=4)
    assert encoded.tokens.size == CONFIG.max_sequence_length


def test_chat_needs_a_template():
    assert not PLAIN.has_chat_template
    with pytest.raises(InputError, match="has no chat template"):
        PLAIN.encode_chat(["hi"], gen_length=4)


def test_load_refuses_what_does_not_fit(directory, tmp_path):
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        Codec.load(tmp_path, CONFIG)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"tokenizer\.json does not load"):
        Codec.load(tmp_path, CONFIG)
    small = dataclasses.replace(CONFIG, vocab_size=20, embedding_size=34)
    with pytest.raises(InputError, match=r"token id \(35\) must be below .*\(34\)"):
        Codec.load(directory, small)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["default", "tool_use"], None),
        (["rag", "tool_use"], r"has chat templates \(rag, tool_use\), but none of the"),
    ],
)
def test_of_several_chat_templates_the_default_is_used(
    directory, tmp_path, names, message
):
    copied = shutil.copytree(directory, tmp_path / "model")
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    path = copied / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [{"name": name, "template": TEMPLATE} for name in names]
    path.write_text(json.dumps(config))
    codec = Codec.load(copied, CONFIG)
    if message:
        with pytest.raises(InputError, match=message):
            codec.encode_chat(["abc"], 4)
        assert codec.encode(["abc"], 4)
    else:
        [row], [one] = (
            x.encode_chat(["abc"], 4) for x in (codec, Codec.load(directory, CONFIG))
        )
        np.testing.assert_array_equal(row.tokens, one.tokens)


def test_shipped_tokenizer_writes_puzzles_as_the_model_was_trained():
    shipped = Codec.load(SUDOKU, SUDOKU_CONFIG)
    made = character_tokenizer(sudoku.VOCABULARY, bos=BOS, eos=EOS, mask=MASK)
    assert shipped.vocabulary == sudoku.VOCABULARY
    assert (
        shipped.tokenizer.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
    )
    [example] = sudoku.Sudoku().examples("test", 1)
    printed = example.prompt.replace(BLANK, shipped.mask_text)
    [encoded] = shipped.encode_infill([printed])
    np.testing.assert_array_equal(encoded.tokens, sudoku.encode(example.truth[None])[0])


def test_zoo_names_what_it_has():
    with pytest.raises(InputError, match="zoo has no model chess; it has"):
        zoo.path("chess")


@pytest.mark.parametrize(
    ("task", "text", "reason"),
    [
        (
            "sudoku",
            "12.|",
            "it has no '.'; it takes the characters '\\n123456789'; a blank to infill "
            "is written <|mdm_mask|> (model.mask_text)",
        ),
        (
            "sudoku",
            "1<|mdm_mask|>x",
            "it has no 'x'; it takes the characters '\\n123456789'; a blank to infill "
            "is written <|mdm_mask|> (model.mask_text)",
        ),
        (
            "program",
            "write a poem",
            "it has no ' poem'; a blank to infill is written <|mdm_mask|> "
            "(model.mask_text)",
        ),
    ],
)
def test_what_a_vocabulary_does_not_have_is_named(task, text, reason):
    codec = read_outline(zoo.path(task)).codec
    with pytest.raises(InputError) as error:
        codec.encode([text], gen_length=4)
    assert str(error.value) == (
        f"prompt 0 cannot be written in the tokenizer's vocabulary: {reason}"
    )
