"""LLaDA's forward against recorded PyTorch logits and transformers' Llama."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax import checkpoints
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA, LLaDAConfig, deepen, llada_8b, tiny

_GOLDEN = Path(__file__).parents[1] / "data" / "checkpoints"
_HF_CONFIG = json.loads((_GOLDEN / "tiny_kv2_seed3" / "config.json").read_text())


_logits = nnx.jit(LLaDA.__call__)


@functools.cache
def _random_model(**changes) -> LLaDA:
    """Weights larger than at initialisation: attention is then far from uniform."""
    config = dataclasses.replace(tiny(), **changes)
    graph, state = nnx.split(LLaDA(config, rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, state)
    return nnx.merge(graph, state)


def _abstract_model(config: LLaDAConfig, dtype: jnp.dtype = jnp.float32) -> LLaDA:
    return nnx.eval_shape(lambda: LLaDA(config, rngs=nnx.Rngs(0), dtype=dtype))


@pytest.mark.parametrize("name", ["tiny_kv2_seed3", "tiny_kv4_seed0"])
def test_logits_match_the_released_code(name):
    model = checkpoints.load_hf(_GOLDEN / name)
    golden = np.load(_GOLDEN / name / "logits.npz")
    tokens = jnp.asarray(golden["input_ids"], jnp.int32)
    logits = _logits(model, tokens)
    np.testing.assert_allclose(logits, golden["logits"], atol=2e-4, rtol=0)

    is_valid = golden["attention_mask"].astype(bool)
    assert not is_valid.all()
    masked = np.asarray(_logits(model, tokens, jnp.asarray(is_valid)))
    expected = golden["logits_masked"]
    np.testing.assert_allclose(masked[is_valid], expected[is_valid], atol=2e-4, rtol=0)
    # The mask matters by far more than the tolerance.
    assert np.abs(expected - golden["logits"])[is_valid].max() > 1e-2


def _llama(model: LLaDA, is_causal: bool):
    """Transformers' Llama with the weights of `model`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = model.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=config.d_model,
            intermediate_size=config.mlp_hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            vocab_size=config.embedding_size,
            max_position_embeddings=config.max_sequence_length,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.weight_tying,
            is_causal=is_causal,
        )
    ).eval()
    blocks = nnx.to_pure_dict(nnx.state(model.blocks))
    names = {
        "attn_norm": "input_layernorm",
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "attn_out": "self_attn.o_proj",
        "ff_norm": "post_attention_layernorm",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    }
    weights = {
        f"model.layers.{layer}.{theirs}.weight": blocks[ours][layer].T
        for ours, theirs in names.items()
        for layer in range(config.n_layers)
    }
    weights["model.embed_tokens.weight"] = model.wte[...]
    weights["model.norm.weight"] = model.ln_f[...]
    weights["lm_head.weight"] = model.head
    llama.load_state_dict(
        {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}
    )

    def logits(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out = llama(torch.tensor(tokens), attention_mask=torch.tensor(mask))
        return out.logits.numpy()

    return logits


@pytest.mark.parametrize(
    ("n_kv_heads", "padding"), [(1, "left"), (2, "none"), (2, "left"), (4, "right")]
)
def test_logits_match_transformers_bidirectional_llama(n_kv_heads, padding):
    model = _random_model(n_kv_heads=n_kv_heads)
    rng = np.random.default_rng(0)
    tokens = rng.integers(320, size=(3, 20))
    mask = np.ones_like(tokens)
    if padding == "left":
        mask[1, :7] = mask[2, :1] = 0
    elif padding == "right":
        mask[1, 7:] = mask[2, -1:] = 0
    is_valid = mask.astype(bool)
    ours = _logits(model, jnp.asarray(tokens, jnp.int32), jnp.asarray(is_valid))
    ours = np.asarray(ours)
    theirs = _llama(model, is_causal=False)(tokens, mask)
    causal = _llama(model, is_causal=True)(tokens, mask)
    np.testing.assert_allclose(ours[is_valid], theirs[is_valid], atol=2e-4, rtol=0)
    assert np.abs(causal - theirs)[is_valid].max() > 0.1


def test_a_left_padded_row_equals_the_row_alone():
    model = _random_model()
    tokens = jax.random.randint(jax.random.key(0), (1, 12), 0, 300)
    padded = jnp.pad(tokens, ((0, 0), (5, 0)), constant_values=7)
    is_valid = jnp.arange(17)[None] >= 5
    np.testing.assert_allclose(
        _logits(model, padded, is_valid)[:, 5:],
        _logits(model, tokens),
        atol=2e-5,
        rtol=0,
    )


def test_a_row_of_padding_stays_finite():
    tokens = jnp.zeros((2, 6), jnp.int32)
    is_valid = jnp.asarray([[True] * 6, [False] * 6])
    assert jnp.isfinite(_logits(_random_model(), tokens, is_valid)).all()


def test_a_region_gives_the_same_hidden_states():
    model = _random_model()
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 300)
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    visibility = jnp.ones((2, 1, 9), bool)
    region = jnp.asarray([[8, 0, 3], [4, 4, 1]])
    hidden = nnx.jit(LLaDA.hidden)
    full, _ = hidden(model, tokens, positions, visibility)
    part, _ = hidden(model, tokens, positions, visibility, region)
    expected = jnp.take_along_axis(full, region[..., None], axis=1)
    np.testing.assert_allclose(part, expected, atol=1e-6)


def test_a_tied_head_is_the_embedding():
    model = _random_model(weight_tying=True)
    untied = nnx.clone(_random_model())
    assert model.ff_out is None
    assert model.head is model.wte[...]
    untied.wte[...] = model.wte[...]
    untied.blocks = model.blocks
    untied.ff_out[...] = model.wte[...]
    tokens = jax.random.randint(jax.random.key(2), (1, 8), 0, 300)
    np.testing.assert_array_equal(_logits(model, tokens), _logits(untied, tokens))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_have_the_dtype_of_the_parameters(dtype):
    graph, state = nnx.split(_abstract_model(tiny(), dtype))
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    logits = jax.eval_shape(lambda s, t: nnx.merge(graph, s)(t), state, tokens)
    assert (logits.shape, logits.dtype) == ((1, 4, 320), dtype)


def test_program_does_not_grow_with_depth():
    def num_equations(n_layers: int) -> int:
        config = dataclasses.replace(tiny(), n_layers=n_layers)
        graph, state = nnx.split(_abstract_model(config))
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        jaxpr = jax.make_jaxpr(lambda s, t: nnx.merge(graph, s)(t))(state, tokens)
        return str(jaxpr).count(" = ")

    assert num_equations(2) == num_equations(8) > 50


@pytest.mark.parametrize("weight_tying", [False, True])
def test_a_deepened_model_computes_the_same_and_all_of_it_learns(weight_tying):
    model = _random_model(weight_tying=weight_tying)
    tokens = jnp.arange(20)[None]
    deep = deepen(model)
    assert deep.config.n_layers == 2 * model.config.n_layers
    np.testing.assert_array_equal(_logits(deep, tokens), _logits(model, tokens))
    grads = nnx.grad(lambda m: jnp.square(m(tokens)).sum())(deep)
    for name in ("attn_out", "ff_out"):
        layers = getattr(grads.blocks, name)[...]
        assert (jnp.abs(layers).max(axis=(1, 2)) > 0).all()


def test_the_8b_preset_has_the_published_number_of_parameters():
    params = jax.tree.leaves(nnx.state(_abstract_model(llada_8b())))
    assert sum(param.size for param in params) == 8_015_581_184


def test_config_round_trip():
    config = LLaDAConfig.from_hf(_HF_CONFIG)
    assert config == tiny()
    assert LLaDAConfig.from_hf(config.to_hf()) == config
    json.dumps(config.to_hf())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model_type", "gpt2"),
        ("block_type", "sequential"),
        ("activation_type", "swiglu"),
        ("layer_norm_type", "default"),
        ("rope", False),
        ("rope_full_precision", False),
        ("rope_scaling", {"type": "linear"}),
        ("alibi", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("bias_for_layer_norm", True),
        ("layer_norm_with_affine", False),
        ("attention_layer_norm", True),
        ("multi_query_attention", True),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("block_group_size", 2),
        ("clip_qkv", 8.0),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_theta": 10000.0, "rope_type": "default"}),
        ("rope_parameters", {"rope_type": "default", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("rope_parameters", "yarn"),
        ("rope_local_base_freq", 10000.0),
        ("partial_rotary_factor", 0.25),
        ("sliding_window", 1024),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention", "full_attention"]),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_soft_cap", 30.0),
        ("query_pre_attn_scalar", 224),
        ("embedding_multiplier", 12.0),
        ("logits_scaling", 8.0),
        ("scale_embedding", True),
        ("use_qk_norm", True),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("is_causal", True),
        ("pruned_heads", {"0": [1]}),
        ("num_experts", 8),
        ("quantization_config", {"quant_method": "fp8", "ignored": ["x"] * 99}),
        ("quantization", {"bits": 4, "group_size": 64}),
        ("compression_config", {"format": "int-quantized"}),
        ("lora_rank", 8),
        ("architectures", ["LLaDAForSequenceClassification"]),
        ("architectures", ["LLaDAMoEModelLM"]),
    ],
)
def test_unsupported_options_are_refused_by_name(option, value):
    with pytest.raises(InputError, match=f"not supported: {option}=") as error:
        LLaDAConfig.from_hf({**_HF_CONFIG, option: value})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


# What is written beside LLaDA's own fields and changes nothing: by the released
# checkpoints (Base, Instruct and 1.5), by transformers 4 and 5, and by tools.
_RELEASED = {
    **{"alibi_bias_max": 8.0, "attention_layer_norm_with_affine": True},
    **{"init_cutoff_factor": None, "init_device": "meta", "precision": "amp_bf16"},
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    "transformers_version": "4.46.3",
}
_HARMLESS = {
    **{"torch_dtype": "bfloat16", "dtype": "bfloat16", "use_cache": True},
    **{"_name_or_path": "x", "_attn_implementation": "sdpa", "return_dict": True},
    **{"_experts_implementation": "eager", "output_attentions": False},
    **{"chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False},
    **{"pruned_heads": {}, "problem_type": None, "tie_encoder_decoder": False},
    **{"id2label": {"0": "A", "1": "B", "2": "C"}, "num_labels": 3},
    **{"temperature": 1.0, "top_k": 50, "max_length": 20, "bad_words_ids": None},
    **{"exponential_decay_length_penalty": None, "pretraining_tp": 1},
    **{"max_position_embeddings": 4096, "initializer_range": 0.02},
    **{"unsloth_version": "2025.1", "quantization_config": None},
    # Options of other classes that are off.
    **{"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
    **{"layer_types": ["full_attention"] * 3, "partial_rotary_factor": 1.0},
    **{"logit_scale": 1, "use_qk_norm": False, "final_logit_softcapping": None},
    **{"attention_bias": False, "hidden_act": "silu", "scale_embedding": False},
    # The same under other names.
    **{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"num_hidden_layers": 3, "intermediate_size": 160, "head_dim": 16},
}


@pytest.mark.parametrize("extra", [_RELEASED, _HARMLESS])
def test_fields_that_change_nothing_are_accepted(extra):
    assert LLaDAConfig.from_hf({**_HF_CONFIG, **extra}) == tiny()


def test_released_8b_config_is_the_preset():
    """All fields of the released file, but those of transformers' loading."""
    released = {
        **{"activation_type": "silu", "alibi": False, "attention_dropout": 0.0},
        **{"architectures": ["LLaDAModelLM"], "attention_layer_norm": False},
        **{"bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama"},
        **{"d_model": 4096, "embedding_dropout": 0.0, "embedding_size": 126464},
        **{"eos_token_id": 126081, "flash_attention": False, "include_bias": False},
        **{"include_qkv_bias": False, "init_fn": "mitchell", "init_std": 0.02},
        **{"input_emb_norm": False, "layer_norm_type": "rms", "mlp_ratio": 4},
        **{"layer_norm_with_affine": True, "mask_token_id": 126336, "n_layers": 32},
        **{"max_sequence_length": 4096, "mlp_hidden_size": 12288, "n_heads": 32},
        **{"model_type": "llada", "multi_query_attention": None, "n_kv_heads": 32},
        **{"pad_token_id": 126081, "residual_dropout": 0.0, "rms_norm_eps": 1e-05},
        **{"rope": True, "rope_full_precision": True, "rope_theta": 500000.0},
        **{"scale_logits": False, "use_cache": False, "vocab_size": 126464},
        **{"weight_tying": False, **_RELEASED},
    }
    assert LLaDAConfig.from_hf(released) == llada_8b()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": {"rope_theta": 500000}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
        {"rope_parameters": None, "rope_scaling": {"type": "default"}},
        {
            "rope_theta": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ],
)
def test_rope_parameters_of_the_same_embedding_are_accepted(rope):
    assert LLaDAConfig.from_hf({**_HF_CONFIG, **rope}) == tiny()


def test_the_rotary_base_may_be_given_in_rope_parameters_only():
    config = {name: x for name, x in _HF_CONFIG.items() if name != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    found = LLaDAConfig.from_hf({**config, "rope_parameters": rope})
    assert found == dataclasses.replace(tiny(), rope_theta=10000.0)
    assert LLaDAConfig.from_hf(found.to_hf()) == found
    with pytest.raises(InputError, match="missing: rope_theta"):
        LLaDAConfig.from_hf({**config, "rope_parameters": {"rope_type": "default"}})
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(InputError, match="not supported: rope_parameters="):
        LLaDAConfig.from_hf({**config, "rope_parameters": rope})


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("default", [False, True])
def test_weight_tying_decides_as_in_the_released_code(is_tied, default):
    """Transformers writes its own default of tie_word_embeddings beside it."""
    tied = {"weight_tying": is_tied, "tie_word_embeddings": default}
    assert LLaDAConfig.from_hf({**_HF_CONFIG, **tied}).weight_tying is is_tied


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("head_dim", 32, 16),
        ("hidden_size", 128, 64),
        ("num_attention_heads", 8, 4),
        ("num_key_value_heads", 4, 2),
        ("num_hidden_layers", 2, 3),
        ("intermediate_size", 256, 160),
    ],
)
def test_other_names_of_a_shape_must_agree(name, value, needed):
    with pytest.raises(InputError) as error:
        LLaDAConfig.from_hf({**_HF_CONFIG, name: value})
    message = f"config.json: {name} ({value}) must be {needed}, as the other fields say"
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("block_type", "'sequential'"),
        ("activation_type", "'swiglu'"),
        ("layer_norm_type", "'default'"),
        ("rope", "False"),
    ],
)
def test_an_absent_option_has_the_default_of_the_released_code(option, default):
    """Its class is made for GPT-2: these defaults are another model than LLaDA."""
    config = {name: value for name, value in _HF_CONFIG.items() if name != option}
    with pytest.raises(InputError) as error:
        LLaDAConfig.from_hf(config)
    assert f"not supported: {option}={default} (the default; " in str(error.value)


def test_options_may_be_absent_where_the_released_default_is_implemented():
    fields = {field.name for field in dataclasses.fields(LLaDAConfig)}
    needed = {"block_type", "activation_type", "layer_norm_type", "rope", *fields}
    config = {name: value for name, value in _HF_CONFIG.items() if name in needed}
    assert "include_bias" not in config
    assert LLaDAConfig.from_hf(config) == tiny()
    del config["embedding_size"]
    with pytest.raises(InputError, match="missing: embedding_size"):
        LLaDAConfig.from_hf(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": None, "d_model": None}, "missing: d_model, rope_theta"),
        ({"d_model": "64"}, r"d_model \('64'\) must be of type int"),
        ({"n_layers": True}, r"n_layers \(True\) must be of type int"),
        ({"n_layers": 0}, r"n_layers \(0\) must be at least 1"),
        ({"n_heads": 3}, r"d_model \(64\) must be n_heads \(3\)"),
        ({"d_model": 4}, r"even head dimension"),
        ({"n_kv_heads": 3}, r"n_heads \(4\) must be a multiple of n_kv_heads \(3\)"),
        ({"embedding_size": 299}, r"embedding_size \(299\) must be at least"),
        ({"mask_token_id": 320}, r"mask_token_id \(320\) must be in"),
        ({"eos_token_id": -1}, r"eos_token_id \(-1\) must be in"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        LLaDAConfig.from_hf({**_HF_CONFIG, **changes})


def test_optional_fields_have_the_meaning_of_the_released_code():
    config = {**_HF_CONFIG, "embedding_size": None, "n_kv_heads": None}
    config["mlp_hidden_size"] = None
    found = LLaDAConfig.from_hf(config)
    assert (found.embedding_size, found.n_kv_heads) == (300, 4)
    assert found.mlp_hidden_size == 256
