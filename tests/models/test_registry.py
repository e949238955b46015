"""The registry: which family a checkpoint is of, and a second family everywhere."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import plain_family
import pytest
from flax import nnx
from helpers import prompts_of
from safetensors.numpy import load_file

from dlm_jax import checkpoints
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices import runner
from dlm_jax.errors import InputError
from dlm_jax.models import llada, registry, sdar
from dlm_jax.samplers.low_confidence import LowConfidence
from dlm_jax.text.characters import character_tokenizer
from dlm_jax.text.codec import Codec
from dlm_jax.training import loop as training


@pytest.fixture
def families(monkeypatch):
    """The registry with one more entry."""
    both = (*registry.FAMILIES, plain_family.FAMILY)
    monkeypatch.setattr(registry, "FAMILIES", both)


@pytest.fixture
def model(families):
    return registry.random_preset("plain_tiny", seed=3)


def _weights(model):
    return nnx.to_pure_dict(nnx.state(model))


# --- Which family a config.json is of -----------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LLaDAModelLM"], "model_type": "llada"},
        {"architectures": ["FSDPLLaDAModelLM"], "model_type": "llada"},
        {"architectures": None, "model_type": "llada"},
        {"architectures": [], "model_type": "llada"},
        {"model_type": "llada"},
    ],
)
def test_a_family_is_found_by_its_architecture_or_its_model_type(families, config):
    assert registry.find(config) is llada.FAMILY
    other = {"LLaDAModelLM": "SDARForCausalLM", "FSDPLLaDAModelLM": "xSDARForCausalLM"}
    names = [other[name] for name in config.get("architectures") or ()]
    config = {**config, "architectures": names, "model_type": "sdar"}
    assert registry.find(config) is sdar.FAMILY


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
            r"config.json: not supported: architectures=['Qwen2ForCausalLM'] "
            r"(supported: ['LLaDAModelLM', 'SDARForCausalLM'])",
        ),
        (
            {"architectures": "LLaDAModelLM", "model_type": "llada"},
            r"config.json: not supported: architectures='LLaDAModelLM' (supported: "
            r"['LLaDAModelLM', 'SDARForCausalLM'])",
        ),
        (
            {"architectures": ["LLaDAMoEModelLM"], "model_type": "llada"},
            r"config.json: not supported: architectures=['LLaDAMoEModelLM'] "
            r"(supported: ['LLaDAModelLM', 'SDARForCausalLM'])",
        ),
        (
            {"architectures": ["LLaDAModelLM"], "model_type": "gpt2"},
            r"config.json: model_type ('gpt2') must be one of ['llada']",
        ),
        (
            {"architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe"},
            r"config.json: not supported: architectures=['SDARMoeForCausalLM'] "
            r"(supported: ['LLaDAModelLM', 'SDARForCausalLM'])",
        ),
        (
            {"model_type": "gpt2"},
            r"config.json: model_type ('gpt2') must be one of ['llada', 'sdar']",
        ),
        ({}, r"config.json: model_type (None) must be one of ['llada', 'sdar']"),
    ],
)
def test_an_unknown_model_is_one_line(config, message):
    with pytest.raises(InputError) as error:
        registry.find(config)
    assert str(error.value) == message


def test_two_families_of_one_model_type_differ_by_architecture(monkeypatch):
    other = dataclasses.replace(plain_family.FAMILY, model_type="llada")
    monkeypatch.setattr(registry, "FAMILIES", (llada.FAMILY, other))
    named = {"architectures": ["PlainForCausalLM"], "model_type": "llada"}
    assert registry.find(named) is other
    assert registry.find({"model_type": "llada"}) is llada.FAMILY
    with pytest.raises(InputError, match=r"must be one of \['llada'\]$"):
        registry.find({"model_type": "plain"})


def test_what_is_of_no_family_is_refused():
    config = plain_family.plain_tiny()
    with pytest.raises(InputError, match=r"^model \(PlainConfig\) must be one of"):
        registry.of(config)
    with pytest.raises(InputError, match=r"^preset \(x\) must be one of llada_8b"):
        registry.random_preset("x")


def test_a_family_need_not_grow_or_train(monkeypatch):
    model = plain_family.Plain(plain_family.plain_tiny(), rngs=nnx.Rngs(0))
    monkeypatch.setattr(registry, "FAMILIES", (plain_family.FAMILY,))
    with pytest.raises(InputError, match="PlainForCausalLM cannot be deepened"):
        registry.deepen(model)
    with pytest.raises(InputError, match="no family has small models"):
        registry.small(d_model=8)


def test_every_parameter_of_every_preset_has_a_place_in_the_files(families):
    for name in registry.preset_names():
        config = registry.preset(name)
        family = registry.of(config)
        model = nnx.eval_shape(lambda c=config, f=family: f.module(c, rngs=nnx.Rngs(0)))
        paths = {
            ".".join(str(key.key) for key in path)
            for path, _ in jax.tree_util.tree_leaves_with_path(_weights(model))
        }
        assert paths == set(family.weights)
        specs = registry.partition(config, 1, "model")
        assert jax.tree.structure(specs) == jax.tree.structure(_weights(model))


# --- A second family ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_family_has_both_formats(tmp_path, model, dtype):
    model = checkpoints.astype(model, dtype)
    checkpoints.save_hf(model, tmp_path / "hf")
    checkpoints.save_orbax(model, tmp_path / "orbax")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert set(stored) == {
        *("model.embed_tokens.weight", "lm_head.weight"),
        *(
            f"model.layers.{layer}.{name}.weight"
            for layer in range(2)
            for name in ("input_layernorm", "mlp.up_proj", "mlp.down_proj")
        ),
    }
    up = stored["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(up.T, model.blocks.up_proj[...][1])
    for directory in (tmp_path / "hf", tmp_path / "orbax"):
        loaded = checkpoints.load(directory)
        assert type(loaded) is plain_family.Plain
        assert loaded.config == model.config
        jax.tree.map(np.testing.assert_array_equal, _weights(loaded), _weights(model))


def test_a_second_family_refuses_what_it_does_not_do(tmp_path, model):
    checkpoints.save_hf(model, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_experts": 8}))
    with pytest.raises(InputError, match="not supported: num_experts=8"):
        checkpoints.load(tmp_path / "hf")


@pytest.mark.parametrize("num_sharing", [None, 1])
def test_a_second_family_generates(tmp_path, model, num_sharing):
    checkpoints.save_hf(model, tmp_path / "hf")
    loaded = runner.load(tmp_path / "hf", num_sharing=num_sharing)
    assert (loaded.config, loaded.dtype) == (model.config, np.float32)
    prompts = prompts_of((5, 9), 8, vocab_size=30)
    options = Options(gen_length=8)
    keys = row_keys(0, np.arange(2))
    found = loaded.parallel(LowConfidence(), prompts, keys, options)
    assert found.is_complete.all()
    # The last token that was committed is what the model says of the others.
    for row, valid in enumerate((13, 17)):
        tokens = np.asarray(found.tokens[row, :valid])
        last = int(np.argmax(np.asarray(found.commit_step[row])))
        shown = tokens.copy()
        shown[last] = model.config.mask_token_id
        logits = model(jnp.asarray(shown)[None])[0, last]
        logits = logits.at[model.config.mask_token_id].set(-jnp.inf)
        assert tokens[last] == int(jnp.argmax(logits))


def test_ends_of_a_turn_are_the_family_s(model):
    texts = ("<s>", "</s>", "<|eot_id|>", "<|im_end|>", *"abc", "<mask>")
    tokenizer = character_tokenizer(texts, bos="<s>", eos="</s>", mask="<mask>")
    assert Codec.of(tokenizer, model.config).stop_ids == (1, 3)
    config = dataclasses.replace(llada.tiny(), eos_token_id=1)
    assert Codec.of(tokenizer, config).stop_ids == (1, 2)


def test_a_second_family_learns(tmp_path, model):
    rng = np.random.default_rng(0)
    tokens = np.tile(rng.integers(2, 31, (1, 6), dtype=np.int32), (8, 1))
    everywhere = np.ones(tokens.shape, bool)
    config = training.TrainConfig(
        num_steps=40, learning_rate=5e-2, warmup_steps=2, log_every=4
    )
    trained = training.train(
        model,
        lambda step: (tokens, everywhere, everywhere),
        config,
        tmp_path,
        mask_id=model.config.mask_token_id,
        is_quiet=True,
    )
    assert type(trained) is plain_family.Plain
    lines = (tmp_path / "curve.jsonl").read_text().splitlines()
    first, *_, last = (json.loads(line)["loss"] for line in lines)
    assert last < first / 2


def test_weights_decay_but_for_vectors(model):
    decayed = jax.tree.map_with_path(training._is_matrix, _weights(model))
    assert decayed == {
        "embedding": True,
        "lm_head": True,
        "blocks": {"norm": False, "up_proj": True, "down_proj": True},
    }
    own = _weights(registry.random_preset("tiny"))
    decayed = jax.tree.map_with_path(training._is_matrix, own)
    vectors = {name: x for name, x in decayed["blocks"].items() if not x}
    assert vectors.keys() == {"attn_norm", "ff_norm"}
    assert {name: decayed[name] for name in ("wte", "ff_out", "ln_f")} == {
        **{"wte": True, "ff_out": True, "ln_f": False}
    }


def test_a_second_family_has_presets_in_scripts(tmp_path, families, run_script):
    status, out, err = run_script(
        "convert", "--preset=plain_tiny", "--format=hf", f"--output={tmp_path / 'a'}"
    )
    assert (status, err) == (0, "")
    assert "parameters  1,040" in out
    assert checkpoints.read_config(tmp_path / "a") == plain_family.plain_tiny()


def test_a_family_without_a_pytorch_model_is_refused(tmp_path, model):
    pytest.importorskip("torch")
    from dlm_jax.parity import torch_models

    checkpoints.save_hf(model, tmp_path / "hf")
    with pytest.raises(InputError, match="no PyTorch model of PlainForCausalLM"):
        torch_models.load(tmp_path / "hf")
    assert {f.architecture for f in registry.FAMILIES} > set(torch_models.LOADERS)
