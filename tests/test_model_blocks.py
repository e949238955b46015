"""The front door with a block-causal model, and with caches."""

import dataclasses

import jax
import numpy as np
import pytest
from chat_tokenizer import BOS, EOS, MASK
from flax import nnx

import dlm_jax as dlm
from dlm_jax import caches, checkpoints
from dlm_jax.core.cache import Kind
from dlm_jax.models import registry, sdar
from dlm_jax.text.characters import character_tokenizer

VOCABULARY = (BOS, EOS, MASK, *"abcdefghijklmnopqrstuvwxyz .")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """SDAR with random weights that writes lower-case letters."""
    directory = tmp_path_factory.mktemp("blocks")
    tokenizer = character_tokenizer(VOCABULARY, bos=BOS, eos=EOS, mask=MASK)
    tokenizer.save_pretrained(directory / "tokenizer")
    config = dataclasses.replace(
        sdar.sdar_tiny(),
        embedding_size=len(VOCABULARY),
        max_sequence_length=62,
        mask_token_id=VOCABULARY.index(MASK),
        eos_token_id=VOCABULARY.index(EOS),
        block_size=4,
    )
    graph, params = nnx.split(registry.init(config))
    model = nnx.merge(graph, jax.tree.map(lambda weight: 8 * weight, params))
    files = checkpoints.companions(directory / "tokenizer")
    checkpoints.save_hf(model, directory / "model", files)
    return directory / "model"


@pytest.fixture(scope="module")
def model(checkpoint):
    return dlm.load(checkpoint)


def test_a_continuation_ends_with_a_block_of_the_model(model):
    """6 known tokens and 9 new ones: the row is of 16, in blocks of 4."""
    out = model.generate("abcdef", "low_confidence", gen_length=9, stop_ids=())
    assert (out.num_tokens, out.nfe) == (10, 10)
    other = model.generate(
        "abcdef", "low_confidence", gen_length=9, block_length=8, stop_ids=()
    )
    assert other.num_tokens == 10
    assert other.text != out.text


def test_the_exact_cache_writes_the_same(model):
    prompts = ["abcdef", "a", "the quick brown fox"]
    settings = {"gen_length": 12, "stop_ids": (), "batch_size": 2}
    full = model.generate(prompts, "dynamic(threshold=0.5)", **settings)
    cached = model.generate(
        prompts, "dynamic(threshold=0.5)", cache="block", trajectory=True, **settings
    )
    assert [out.text for out in cached] == [out.text for out in full]
    for prompt, out, other in zip(prompts, cached, full, strict=True):
        first = len(prompt) // 4
        num_blocks = -(-(len(prompt) + 12) // 4) - first
        assert out.num_whole == (first > 0)
        assert out.nfe == other.nfe + num_blocks + (first > 0)
        assert (out.trajectory.kind == Kind.STORE).sum() == num_blocks
        assert out.trajectory.canvas.shape[0] == out.nfe + 1


def test_blanks_in_a_text_are_filled_too(model):
    """Given tokens between the blanks fill a block that has nothing to decide."""
    text = "ab" + 2 * MASK + "cdefghijklm" + MASK + "no"
    full = model.infill(text, "low_confidence")
    cached = model.infill(text, "low_confidence", cache=caches.Block())
    assert cached.text == full.text
    assert full.nfe == 3
    # Blocks 0 to 3 of four columns; block 0 is not whole before its blanks.
    assert (cached.num_whole, cached.nfe) == (0, 3 + 4)


def test_staleness_is_in_the_trajectory(model):
    out = model.generate(
        "abcdefgh",
        "low_confidence",
        gen_length=10,
        cache="dual",
        trajectory=True,
        staleness=True,
    )
    kinds, staleness = out.trajectory.kind, out.trajectory.staleness
    assert kinds.shape == staleness.shape == (out.nfe,)
    assert out.num_whole == (kinds == Kind.REFRESH).sum() < out.nfe
    # Blocks see no later ones, and these hold no given tokens: the dual cache is exact.
    assert np.abs(staleness).max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cache": "quick"},
            r"cache \(quick\) must be one of none, prefix, dual, block",
        ),
        ({"cache": 3}, r"cache \(3\) must be a CachePlan or a spec"),
        ({"gen_length": 55}, "its last block of 4 ends at column 64, past"),
        ({"staleness": True}, "staleness needs a cache"),
    ],
)
def test_what_does_not_fit_is_named(model, settings, message):
    with pytest.raises(dlm.InputError, match=message):
        model.generate("abcdefg", "low_confidence", **{"gen_length": 8} | settings)


def test_the_script_uses_the_blocks_of_the_model(checkpoint, run_script, tmp_path):
    output = tmp_path / "out.jsonl"
    flags = [
        f"--checkpoint={checkpoint}",
        "--prompt=abcdef",
        "--sampler=low_confidence",
        "--gen_length=9",
        f"--output={output}",
    ]
    status, printed, _ = run_script("generate", *flags, "--cache=block")
    assert status == 0
    assert "low_confidence" in printed
    record = output.read_text()
    assert '"cache": "block"' in record
    assert '"block_length": 4' in record
    assert '"num_whole": 1' in record
