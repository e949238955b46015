"""SDAR against recorded PyTorch logits and transformers' Qwen3; its config."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from forwards import block_causal, hidden_of
from safetensors.numpy import load_file

from dlm_jax import checkpoints
from dlm_jax.errors import InputError
from dlm_jax.models import layers, registry, sdar, stack
from dlm_jax.models.sdar import SDAR, SDARConfig, sdar_8b, sdar_tiny

_GOLDEN = Path(__file__).parents[1] / "data" / "checkpoints" / "sdar_a"
_HF_CONFIG = json.loads((_GOLDEN / "config.json").read_text())


@functools.cache
def _random_model(**changes) -> SDAR:
    """Weights larger than at initialisation, and norms that are not all ones."""
    config = dataclasses.replace(sdar_tiny(), **changes)
    graph, state = nnx.split(SDAR(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)

    def spread(path, x):
        if "norm" in jax.tree_util.keystr(path):
            return jnp.asarray(rng.uniform(0.5, 2, x.shape), x.dtype)
        return 8 * x

    return nnx.merge(graph, jax.tree.map_with_path(spread, state))


def _logits(model, tokens, block_length):
    tokens = jnp.asarray(tokens, jnp.int32)
    visibility = block_causal(tokens.shape[1], block_length)[None]
    visibility = jnp.broadcast_to(visibility, (len(tokens), *visibility.shape[1:]))
    hidden, cache = hidden_of(model, tokens, visibility)
    assert cache is None
    return np.asarray(hidden @ model.head.T)


# --- The forward --------------------------------------------------------------------


def test_a_call_hides_later_blocks():
    """As training and tests call a model; its own blocks have 4 columns."""
    model = checkpoints.load(_GOLDEN)
    golden = np.load(_GOLDEN / "logits.npz")
    tokens = jnp.asarray(golden["input_ids"], jnp.int32)
    np.testing.assert_allclose(model(tokens), golden["logits_block4"], atol=2e-4)
    logits = model(tokens, block_length=8)
    np.testing.assert_allclose(logits, golden["logits_block8"], atol=2e-4)
    model.config = dataclasses.replace(model.config, block_size=None)
    with pytest.raises(InputError, match="block_length must be given"):
        model(tokens)


@pytest.mark.parametrize("block_length", [4, 8])
@pytest.mark.parametrize("is_unrolled", [False, True])
def test_logits_match_the_released_code(block_length, is_unrolled):
    model = checkpoints.load(_GOLDEN)
    model.way = stack.Way(is_unrolled=is_unrolled)
    golden = np.load(_GOLDEN / "logits.npz")
    seen = golden[f"attention_mask_block{block_length}"]
    np.testing.assert_array_equal(seen, block_causal(24, block_length))
    logits = _logits(model, golden["input_ids"], block_length)
    expected = golden[f"logits_block{block_length}"]
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)
    # The blocks matter by far more than the tolerance.
    assert np.abs(golden["logits_block4"] - golden["logits_block8"]).max() > 1


def _qwen3(model: SDAR):
    """Transformers' Qwen3 with the weights of `model`, read from what it saves."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = model.config
    qwen3 = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            hidden_size=config.d_model,
            intermediate_size=config.mlp_hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.embedding_size,
            max_position_embeddings=config.max_sequence_length,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.weight_tying,
            attn_implementation="sdpa",
        )
    ).eval()

    def logits(directory: Path, tokens: np.ndarray, block_length: int) -> np.ndarray:
        weights = load_file(directory / "model.safetensors")
        if config.weight_tying:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        qwen3.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        seen = np.asarray(block_causal(tokens.shape[1], block_length))
        mask = np.where(seen, 0, np.finfo(np.float32).min).astype(np.float32)
        mask = np.broadcast_to(mask, (len(tokens), 1, *mask.shape))
        with torch.no_grad():
            out = qwen3(
                torch.tensor(tokens), attention_mask=torch.tensor(mask), use_cache=False
            )
        return out.logits.numpy()

    return logits


@pytest.mark.parametrize(
    ("changes", "block_length"),
    [
        ({}, 4),
        ({"n_kv_heads": 1, "rope_theta": 1e6}, 5),
        ({"n_kv_heads": 4, "head_dim": 6}, 16),
        ({"weight_tying": True, "rms_norm_eps": 1e-2}, 1),
    ],
)
def test_logits_match_transformers_qwen3(tmp_path, changes, block_length):
    """Block-causal by a mask; names and transposition of the files are Qwen3's too."""
    model = _random_model(**changes)
    checkpoints.save_hf(model, tmp_path / "hf")
    tokens = np.random.default_rng(1).integers(120, size=(3, 21))
    qwen3 = _qwen3(model)
    ours = _logits(model, tokens, block_length)
    theirs = qwen3(tmp_path / "hf", tokens, block_length)
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=0)
    other = qwen3(tmp_path / "hf", tokens, 21)
    assert np.abs(other - theirs).max() > 0.1


def test_a_tied_head_is_the_embedding():
    model = _random_model(weight_tying=True)
    assert model.lm_head is None
    assert model.head is model.embed_tokens[...]


def test_a_region_gives_the_same_hidden_states():
    model = _random_model()
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 120)
    visibility = jnp.broadcast_to(block_causal(9, 4), (2, 9, 9))
    region = jnp.asarray([[8, 0, 3], [4, 4, 1]])
    full, _ = hidden_of(model, tokens, visibility)
    part, _ = hidden_of(model, tokens, visibility, region=region)
    expected = jnp.take_along_axis(full, region[..., None], axis=1)
    np.testing.assert_allclose(part, expected, atol=1e-6)


def test_norms_multiply_before_they_round():
    """As the released kernel does; LLaDA's order gives other bfloat16 numbers."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((64, 24)), jnp.bfloat16)
    weight = jnp.asarray(rng.uniform(0.5, 2, 24), jnp.bfloat16)
    wide, factors = (np.asarray(a, np.float32) for a in (x, weight))
    scaled = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    found = layers.rms_norm(x, weight, 1e-6, is_rounded_last=True)
    np.testing.assert_array_equal(found, jnp.asarray(scaled * factors, jnp.bfloat16))
    assert (found != layers.rms_norm(x, weight, 1e-6)).any()
    in_model = sdar.module._norm(x, weight, sdar_tiny())
    np.testing.assert_array_equal(in_model, found)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_all_is_in_the_dtype_of_the_parameters(dtype, monkeypatch):
    """Rotations too, which LLaDA has in float32."""
    rotate, rotated = layers.rotate, []

    def recorded(x, sin, cos):
        rotated.append((x.dtype, sin.dtype, cos.dtype))
        return rotate(x, sin, cos)

    monkeypatch.setattr(layers, "rotate", recorded)
    abstract = nnx.eval_shape(lambda: SDAR(sdar_tiny(), rngs=nnx.Rngs(0), dtype=dtype))
    graph, state = nnx.split(abstract)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    logits = jax.eval_shape(lambda s, t: nnx.merge(graph, s)(t), state, tokens)
    assert (logits.shape, logits.dtype) == ((1, 4, 120), dtype)
    assert {*rotated} == {(jnp.dtype(dtype),) * 3}


def test_the_8b_preset_has_the_published_number_of_parameters():
    model = nnx.eval_shape(lambda: SDAR(sdar_8b(), rngs=nnx.Rngs(0)))
    params = jax.tree.leaves(nnx.state(model))
    assert sum(param.size for param in params) == 8_190_735_360


# --- config.json --------------------------------------------------------------------


def test_a_released_config_is_read():
    """All fields of a released file, with the numbers of a small model."""
    assert SDARConfig.from_hf(_HF_CONFIG) == SDARConfig(
        d_model=48,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        n_layers=3,
        mlp_hidden_size=96,
        embedding_size=260,
        max_sequence_length=512,
        rope_theta=1000000.0,
        rms_norm_eps=1e-6,
        weight_tying=False,
        mask_token_id=259,
        eos_token_id=1,
        block_size=4,
    )


@pytest.mark.parametrize(
    "config",
    [
        sdar_8b(),
        sdar_tiny(),
        dataclasses.replace(sdar_tiny(), weight_tying=True, block_size=None),
        dataclasses.replace(sdar_tiny(), n_kv_heads=4, block_size=32),
    ],
)
def test_config_round_trip(config):
    written = config.to_hf()
    assert SDARConfig.from_hf(json.loads(json.dumps(written))) == config
    assert registry.find(written) is sdar.FAMILY
    assert written["num_attention_heads"] == config.n_heads
    assert written["hidden_size"] == config.d_model


def test_a_written_config_has_the_released_names():
    """But for those of the tokenizer, of loading and of training."""
    other = {"bos_token_id", "debug", "ep_size", "micro_forward", "skip_checkpoint"}
    other |= {"torch_dtype", "transformers_version", "use_deepep"}
    written = SDARConfig.from_hf(_HF_CONFIG).to_hf()
    assert {**_HF_CONFIG, **written, "max_window_layers": 8} == _HF_CONFIG
    assert set(_HF_CONFIG) - set(written) == other


def test_what_a_config_leaves_out_is_as_in_the_released_code():
    left_out = {"mask_token_id", "head_dim", "tie_word_embeddings", "hidden_act"}
    left_out |= {"block_size", "attention_bias", "use_sliding_window", "rope_scaling"}
    config = sdar_8b().to_hf()
    # On by its class's default, if use_sliding_window were.
    config["sliding_window"] = 4096
    found = SDARConfig.from_hf({k: x for k, x in config.items() if k not in left_out})
    assert found == dataclasses.replace(sdar_8b(), block_size=None)
    small = {k: x for k, x in _HF_CONFIG.items() if k != "mask_token_id"}
    with pytest.raises(InputError, match=r"mask_token_id \(151669\) must be in"):
        SDARConfig.from_hf(small)


def test_null_is_one_key_head_for_each_head():
    found = SDARConfig.from_hf({**_HF_CONFIG, "num_key_value_heads": None})
    assert found.n_kv_heads == 4


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model_type", "sdar_moe"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}),
        ("partial_rotary_factor", 0.5),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention", "full_attention"]),
        ("num_experts", 8),
        ("decoder_sparse_step", 1),
        ("moe_intermediate_size", 64),
        ("use_regular_causal", True),
        ("quantization_config", {"quant_method": "fp8"}),
        ("final_logit_softcapping", 30.0),
        ("architectures", ["SDARMoeForCausalLM"]),
    ],
)
def test_unsupported_options_are_refused_by_name(option, value):
    with pytest.raises(InputError, match=f"not supported: {option}=") as error:
        SDARConfig.from_hf({**_HF_CONFIG, option: value})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "extra",
    [
        {"layer_types": ["full_attention"] * 3, "quantization_config": None},
        {"sliding_window": 4096, "use_cache": True, "auto_map": {"AutoModel": "x.y"}},
        {"architectures": ["FSDPSDARForCausalLM"], "noise": None},
        {
            "rope_theta": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
        },
    ],
)
def test_fields_that_change_nothing_are_accepted(extra):
    assert SDARConfig.from_hf({**_HF_CONFIG, **extra}) == SDARConfig.from_hf(_HF_CONFIG)


def test_the_first_of_several_eos_is_the_model_s():
    several = {**_HF_CONFIG, "eos_token_id": [7, 8]}
    assert SDARConfig.from_hf(several).eos_token_id == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": None, "hidden_size": None}, "missing: hidden_size, rope_theta"),
        ({"head_dim": None}, "missing: head_dim"),
        ({"hidden_size": "64"}, r"hidden_size \('64'\) must be of type int"),
        ({"num_hidden_layers": True}, r"num_hidden_layers \(True\) must be of type"),
        (
            {"eos_token_id": [1, "2"]},
            r"eos_token_id \(\[1, '2'\]\) must be of type int",
        ),
        ({"eos_token_id": []}, r"eos_token_id \(\[\]\) must be of type int"),
        ({"block_size": "4"}, r"block_size \('4'\) must be of type int"),
        ({"tie_word_embeddings": 0}, r"tie_word_embeddings \(0\) must be of type bool"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers \(0\) must be at least 1"),
        ({"block_size": 0}, r"block_size \(0\) must be at least 1"),
        ({"head_dim": 15}, r"head_dim \(15\) must be even"),
        (
            {"num_key_value_heads": 3},
            r"num_attention_heads \(4\) must be a multiple of num_key_value_heads",
        ),
        (
            {"mask_token_id": 260},
            r"mask_token_id \(260\) must be in \[0, vocab_size=260\)",
        ),
        ({"eos_token_id": -1}, r"eos_token_id \(-1\) must be in"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SDARConfig.from_hf({**_HF_CONFIG, **changes})
