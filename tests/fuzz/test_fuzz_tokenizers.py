"""A checkpoint's tokenizer and chat template: tokens, or one line; no code is run."""

import json
import os
import pickle
import shutil
import threading
import time

import pytest
from chat_tokenizer import CONFIG, TEMPLATE, make_tokenizer
from damage import WRONG_FILES, bytes_of, contents_of, inputs, read
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax import checkpoints
from dlm_jax.errors import InputError
from dlm_jax.models import registry
from dlm_jax.outline import read_outline
from dlm_jax.text import templates
from dlm_jax.text.codec import Codec

MESSAGES = [{"role": "user", "content": "one two"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whole):
    path = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(whole, path)
    return path


def _content(name):
    """What a file of the tokenizer holds."""
    return json.loads(_FILES[name])


_FILES = {}
TOKENIZER = make_tokenizer()
_FILES["tokenizer.json"] = TOKENIZER.backend_tokenizer.to_str()
_FILES["tokenizer_config.json"] = json.dumps(
    {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": TOKENIZER.bos_token,
        "eos_token": TOKENIZER.eos_token,
        "mask_token": TOKENIZER.mask_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "chat_template": TEMPLATE,
        "added_tokens_decoder": {"0": {"content": TOKENIZER.bos_token}},
    }
)


def _try(folder):
    """Loads, encodes and decodes."""
    before = sorted(os.listdir(folder))
    codec = read(Codec.load, folder, CONFIG)
    if not isinstance(codec, Exception):
        for prompt in ("one two", MESSAGES, "\ud800", "\0"):
            rows = read(codec.encode_prompts, [prompt], 4, False)
            if not isinstance(rows, Exception):
                read(codec.decode, rows[0], rows[0].tokens)
        read(codec.encode_infill, [f"one {codec.mask_text}"])
    assert sorted(os.listdir(folder)) == before
    return codec


@inputs(15)
@given(
    content=st.one_of(
        contents_of(_content("tokenizer.json")),
        bytes_of(_FILES["tokenizer.json"].encode()),
        st.sampled_from(WRONG_FILES),
    )
)
def test_tokenizer(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    _try(folder)
    (folder / "tokenizer.json").write_text(_FILES["tokenizer.json"])


@inputs(12)
@given(
    content=st.one_of(
        contents_of(_content("tokenizer_config.json")), st.sampled_from(WRONG_FILES)
    )
)
@example(
    content=b'{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": "x.Evil"}}'
)
def test_tokenizer_config(folder, content):
    path = folder / "tokenizer_config.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    _try(folder)
    path.write_bytes(whole)


PIECES = st.one_of(
    st.sampled_from(
        [
            "{{ messages }}",
            "{{ messages[0]['content'] }}",
            "{{ messages[9]['content'] }}",
            "{{ raise_exception('no') }}",
            "{{ 1 // 0 }}",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.__class__ }}",
            "{{ messages | attr('__class__') }}",
            "{{ cycler.__init__.__globals__ }}",
            "{{ self.__init__.__globals__.__builtins__ }}",
            "{{ namespace.__init__.__globals__['os'].mkdir('mark') }}",
            "{{ strftime_now.__globals__ }}",
            "{{ raise_exception.__closure__ }}",
            "{{ '{0.__class__}'.format(messages) }}",
            "{{ messages.append(1) }}",
            "{{ messages.clear() }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}",
            "{% for m in messages %}",
            "{% endfor %}",
            "{% if",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% generation %}a{% endgeneration %}",
            "{{ range(10000000) }}",
            "{{ '\\ud800' }}",
            "{{ undefined.a.b }}",
            "{{ messages | tojson }}",
            "{{ 'a' * 1000 }}",
            TEMPLATE,
        ]
    ),
    st.text(max_size=12),
)
TEMPLATES = st.lists(PIECES, max_size=3).map("".join)


@inputs(25)
@given(template=st.one_of(TEMPLATES, st.dictionaries(st.text(max_size=7), TEMPLATES)))
@example(template="{{ 9 ** 9 ** 9 ** 9 }}")
@example(template={"default": "{{ 9 ** 9 ** 9 ** 9 }}"})
@example(template=5)
@example(template={"default": 5})
@example(template="{{ '\ud800' }}")
def test_templates(tmp_path_factory, template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    codec = Codec.of(tokenizer, CONFIG)
    read(codec.encode_chat, [MESSAGES, "one"], 4)


def test_stars_in_the_text_of_a_template():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{# 2 ** 2 #}{{ 'a' if '**' in '*' else 'b' }}"
    (row,) = Codec.of(tokenizer, CONFIG).encode_chat(["one"], 1)
    assert row.tokens.size == 2


def test_template_that_loops_for_ever(monkeypatch):
    monkeypatch.setattr(templates, "_SECONDS", 0.5)
    tokenizer = make_tokenizer()
    many = "".join(f"{{% for {x} in range(99999) %}}" for x in "abc")
    tokenizer.chat_template = many + 3 * "{% endfor %}"
    codec = Codec.of(tokenizer, CONFIG)
    before = threading.active_count()
    with pytest.raises(InputError, match=r"more than 0\.5 s"):
        codec.encode_chat([MESSAGES], 4)
    # It does not go on in the background.
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.1)
    assert threading.active_count() == before


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("code of the checkpoint was run")
class Evil: pass
"""


class _Mark:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_of_a_checkpoint_is_run(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    path = tmp_path / "model"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    model = registry.init(CONFIG)
    checkpoints.save_hf(model, tmp_path / "weights")
    for file in (tmp_path / "weights").iterdir():
        shutil.copy(file, path)
    names = (
        "modeling configuration tokenization __init__ sitecustomize tokenizers numpy"
    )
    for name in names.split():
        (path / f"{name}.py").write_text(CODE.format(mark=str(mark)))
    for name in ("pytorch_model.bin", "training_args.bin", "vocab.pkl"):
        (path / name).write_bytes(pickle.dumps(_Mark(str(mark))))
    auto = {
        "AutoConfig": "configuration.Evil",
        "AutoModel": "modeling.Evil",
        "AutoModelForCausalLM": "modeling.Evil",
        "AutoTokenizer": ["tokenization.Evil", "tokenization.Evil"],
    }
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((path / name).read_text())
        values |= {"auto_map": auto, "trust_remote_code": True}
        if name != "config.json":
            values |= {"tokenizer_class": "Evil"}
        (path / name).write_text(json.dumps(values))
    monkeypatch.chdir(path.parent)
    outline = read_outline(path)
    outline.codec.encode_chat(["one"], 1)
    converted = tmp_path / "converted"
    checkpoints.save_hf(
        checkpoints.load(path),
        converted,
        checkpoints.companions(path),
        origin=checkpoints.read_origin(path),
    )
    # The code is carried along for others.
    assert (converted / "modeling.py").exists()
    read_outline(converted)
    assert not mark.exists()
    # The mark would have been made: the code does what it says.
    exec((path / "modeling.py").read_text(), {})
    assert mark.exists()
