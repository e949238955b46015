"""Published settings: each config has the published values, and its own command."""

import importlib
import pathlib
import runpy
import shlex
import sys
from typing import NamedTuple

import pytest
from absl import app, flags

from dlm_jax import samplers
from dlm_jax.evaluation.calls import Plan

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "published"


class Published(NamedTuple):
    """A published evaluation; `lengths` are blanks and tokens per block.

    `suppressed` says what of EOS and EoT is; `number` is the result in per cent.
    """

    checkpoint: str
    task: str
    style: str
    lengths: tuple[int, int]
    suppressed: str
    number: str | None


TABLE = {
    "llada_8b_instruct_gsm8k_256_8": Published(
        checkpoint="LLaDA-8B-Instruct",
        task="gsm8k",
        style="opencompass",
        lengths=(256, 8),
        suppressed="nothing",
        number="78.9",
    ),
    "llada_8b_instruct_gsm8k_512_512": Published(
        checkpoint="LLaDA-8B-Instruct",
        task="gsm8k",
        style="opencompass",
        lengths=(512, 512),
        suppressed="confidence",
        number="68.8",
    ),
    "llada_8b_instruct_math_512_64": Published(
        checkpoint="LLaDA-8B-Instruct",
        task="math",
        style="opencompass",
        lengths=(512, 64),
        suppressed="nothing",
        number="42.7",
    ),
    "llada_8b_instruct_math_512_512": Published(
        checkpoint="LLaDA-8B-Instruct",
        task="math",
        style="opencompass",
        lengths=(512, 512),
        suppressed="confidence",
        number="29.6",
    ),
    "llada_8b_instruct_humaneval_512_512": Published(
        checkpoint="LLaDA-8B-Instruct",
        task="humaneval",
        style="opencompass",
        lengths=(512, 512),
        suppressed="logits",
        number="47.0",
    ),
    "llada_8b_instruct_mbpp_256_256": Published(
        checkpoint="LLaDA-8B-Instruct",
        task="mbpp",
        style="opencompass",
        lengths=(256, 256),
        suppressed="confidence",
        number="39.6",
    ),
    "llada_1_5_gsm8k_256_16": Published(
        checkpoint="LLaDA-1.5",
        task="gsm8k",
        style="opencompass",
        lengths=(256, 16),
        suppressed="confidence",
        number="83.6",
    ),
    "llada_1_5_humaneval_512_32": Published(
        checkpoint="LLaDA-1.5",
        task="humaneval",
        style="opencompass",
        lengths=(512, 32),
        suppressed="confidence",
        number="51.2",
    ),
    "llada_1_5_mbpp_512_32": Published(
        checkpoint="LLaDA-1.5",
        task="mbpp",
        style="opencompass",
        lengths=(512, 32),
        suppressed="confidence",
        number="42.6",
    ),
    "llada_1_5_math_1024_128": Published(
        checkpoint="LLaDA-1.5",
        task="math",
        style="opencompass",
        lengths=(1024, 128),
        suppressed="confidence",
        number="42.3",
    ),
    "llada_8b_base_gsm8k_1024_1024": Published(
        checkpoint="LLaDA-8B-Base",
        task="gsm8k",
        style="harness",
        lengths=(1024, 1024),
        suppressed="nothing",
        number="70.3",
    ),
    "llada_8b_base_math_1024_1024": Published(
        checkpoint="LLaDA-8B-Base",
        task="math",
        style="harness",
        lengths=(1024, 1024),
        suppressed="nothing",
        number="31.4",
    ),
    "llada_8b_base_humaneval_1024_1024": Published(
        checkpoint="LLaDA-8B-Base",
        task="humaneval",
        style="harness",
        lengths=(1024, 1024),
        suppressed="nothing",
        number="35.4",
    ),
    "llada_8b_base_mbpp_1024_1024": Published(
        checkpoint="LLaDA-8B-Base",
        task="mbpp",
        style="harness",
        lengths=(1024, 1024),
        suppressed="nothing",
        number="40.0",
    ),
    "fast_dllm_llada_8b_instruct_gsm8k_256_32": Published(
        checkpoint="LLaDA-8B-Instruct",
        task="gsm8k",
        style="harness",
        lengths=(256, 32),
        suppressed="nothing",
        number="79.3",
    ),
    # Expected is a ratio of forwards, and no number in per cent.
    "eb_sampler_llada_8b_base_gsm8k_512_512": Published(
        checkpoint="LLaDA-8B-Base",
        task="gsm8k",
        style="harness",
        lengths=(512, 512),
        suppressed="nothing",
        number=None,
    ),
}
SIZES = {"gsm8k": 1319, "math": 5000, "humaneval": 164, "mbpp": 500}
SUPPRESSED = {
    "nothing": (False, False),
    "logits": (True, False),
    "confidence": (False, True),
}


def command(name):
    """The arguments of the one command in a config's docstring."""
    text = importlib.import_module(f"configs.published.{name}").__doc__
    start = text.index("    python -m experiments.")
    lines = text[start : text.index("\n\n", start)].replace("\\\n", " ")
    python, flag, module, *arguments = shlex.split(lines)
    assert (python, flag, module) == ("python", "-m", "experiments.evaluate")
    return arguments


@pytest.fixture
def parse(monkeypatch):
    """What `experiments.evaluate` reads of its arguments; nothing is loaded."""
    app.define_help_flags()
    known = set(flags.FLAGS)

    def parse(arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
        script = runpy.run_module("experiments.evaluate")
        flags.FLAGS(sys.argv)
        return script["_READ"]()

    yield parse
    for flag in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, flag)


def test_each_published_number_has_its_config():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*TABLE, "setting"}


@pytest.mark.parametrize("name", TABLE)
def test_a_config_has_the_published_values_and_its_command(name, parse):
    published = TABLE[name]
    task, style = published.task, published.style
    module = importlib.import_module(f"configs.published.{name}")
    config = module.get_config()
    assert (config.task, config.prompt_style) == (task, style)
    assert (config.gen_length, config.block_length) == published.lengths
    assert (config.suppress_eos, config.defer_stops) == SUPPRESSED[published.suppressed]
    assert (config.temperature, config.guidance) == (0, 0)
    assert (config.split, config.num_examples) == ("test", SIZES[task])
    # As many forwards as tokens.
    first, *others = map(samplers.canonical_spec, config.sampler)
    assert first == samplers.canonical_spec("low_confidence(schedule=fixed(k=1))")
    assert bool(others) == name.startswith("eb_sampler")
    if published.number:
        assert f"Expected: {published.number} %" in module.__doc__
    assert "Source: " in module.__doc__

    asked = parse(command(name))
    expected = dict(config)
    assert {key: asked.config[key] for key in expected} == expected
    assert asked.checkpoint == pathlib.Path(published.checkpoint)
    assert str(asked.workdir) == f"runs/published/{name}"
    assert asked.dtype == "bfloat16"
    assert (asked.task.name, asked.task.style.name) == (task, style)
    assert (asked.task.gen_length, asked.task.block_length) == published.lengths
    # The data are the user's; HumanEval's come with a package.
    assert bool(asked.task.data) == (task != "humaneval")
    assert Plan.of(asked.config) == Plan.of(config)
