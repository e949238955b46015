r"""Writes a page that replays how samplers fill one prompt, forward by forward.

    python -m experiments.view --output=sudoku.html
    python -m experiments.view --checkpoint=LLaDA-8B-Instruct --prompt='Why 42?' \
        --sampler=low_confidence --sampler='saber(n=2, mu=8)' --output=page.html
    python -m experiments.view --trace=runs/RUN.json --output=page.html

The page is one file that needs no network; open it in a browser. It shows the samplers
side by side, each with every --cache. Without a prompt, the shipped model of --task
solves one of the task's examples. With --infill, every mask token in the prompt is a
blank. With --trace, recorded runs are shown. The defaults of the flags are in --config,
which is the file of `experiments.generate` by default.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from dlm_jax import caches, checkpoints, files, samplers, tasks, zoo
from dlm_jax.core.keys import check_seed
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.model import load_weights
from dlm_jax.outline import Outline, read_outline
from dlm_jax.parity import traces
from dlm_jax.tasks.base import Example, check_codec
from dlm_jax.text import page
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.settings import Settings
from experiments import _app

_CONFIG = _app.define_config(
    _app.CONFIGS / "generate.py", "Config file with the defaults of the other flags."
)
_CHECKPOINT = _app.define_path(
    "checkpoint",
    None,
    "Model directory, Hugging Face or Orbax; default: the task's, or the trace's.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32", "float64"],
    "Dtype of the weights; default: as stored.",
)
_PROMPT = flags.DEFINE_string("prompt", None, "Prompt to continue or infill.")
_CHAT = flags.DEFINE_bool(
    "chat",
    None,
    "Put the prompt into the chat template; default: if the tokenizer has one.",
)
_INFILL = flags.DEFINE_bool(
    "infill", False, "Fill the mask tokens in the prompt, and continue nothing."
)
_SAMPLER = flags.DEFINE_multi_string(
    "sampler",
    ["low_confidence", "saber"],
    "Sampler spec, such as saber(n=2, mu=8)",
)
_CACHE = flags.DEFINE_multi_string(
    "cache", ["none"], "Cache plan, such as dual(refresh_every=8)"
)
_STALENESS = flags.DEFINE_bool(
    "staleness",
    False,
    "Measure how a cache changes predictions, with one more forward per step.",
)
_EXAMPLE = flags.DEFINE_integer(
    "example", 0, "Index of the task's example to solve, from 0."
)
_TRACE = flags.DEFINE_multi_string("trace", [], "Recorded run to show, RUN.json")
_OUTPUT = _app.define_path(
    "output", None, "HTML file to write; must not exist.", required=True
)
_TASK = flags.DEFINE_string(
    "task",
    None,
    "Task to solve if there is no prompt; else the one whose grid lays out the text.",
)
_BLOCK = flags.DEFINE_integer(
    "block_length", None, "Tokens per block; blocks are filled from left to right."
)
_LENGTH = flags.DEFINE_integer(
    "gen_length", None, "Tokens to generate after the prompt."
)
_SPLIT = flags.DEFINE_string(
    "split", None, "Split that the task's example is taken from."
)
_DRAWING = _app.define_drawing()
# Flags that override a field of the config.
_OWN = [_BLOCK, _TASK, _LENGTH, _SPLIT, *_DRAWING]
_OF_PROMPT = [_CHAT, _INFILL, _LENGTH, _BLOCK]
_OF_EXAMPLE = [_EXAMPLE, _SPLIT]
_OF_RUN = [_PROMPT, _SAMPLER, _CACHE, _STALENESS, _DTYPE, *_DRAWING]


def main(argv: Sequence[str]) -> None:
    """Runs or reads what the flags ask for and writes the page."""
    del argv
    files.check_output(_OUTPUT.value)
    text = _of_traces() if _TRACE.value else _of_samplers()
    with files.staged(_OUTPUT.value) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"{_OUTPUT.value}: {len(text.encode()) / 1024:.0f} KiB, open it in a browser")


def _refuse(given: Sequence[flags.FlagHolder[Any]], reason: str) -> None:
    for flag in given:
        if flag.present:
            raise InputError(f"{flag.name} ({flag.value}) {reason}")


def _of_traces() -> str:
    """The page of recorded runs."""
    _refuse([*_OF_RUN, *_OF_PROMPT, *_OF_EXAMPLE], "must not be given with a trace")
    runs: dict[str, page.Run] = {}
    remarks = {}
    for name in _TRACE.value:
        path = pathlib.Path(name).expanduser()
        trace = traces.load(path)
        own = path.absolute().parent.parent / trace.checkpoint
        directory = pathlib.Path(_CHECKPOINT.value or own)
        model = checkpoints.read_config(directory)
        # Checkpoints of tests have no tokenizer; the page then shows ids.
        has_text = (directory / "tokenizer.json").is_file()
        codec = Codec.load(directory, model) if has_text else None
        if trace.name in runs:
            raise InputError(f"trace ({trace.name}) must not be given twice")
        runs[trace.name] = page.of_canvases(trace.canvas, model.mask_token_id, codec)
        remarks[trace.name] = f"{trace.sampler}, {trace.nfe} forwards"
    grid = tasks.get(_TASK.value).grid if _TASK.value else None
    return page.build(runs, title="Recorded runs", remarks=remarks, grid=grid)


def _of_samplers() -> str:
    """The page of one prompt, filled by each sampler with each cache."""
    # What is asked, checked before any weight is read.
    if _PROMPT.value is None:
        _refuse(_OF_PROMPT, "needs a prompt")
    else:
        _refuse(_OF_EXAMPLE, "must not be given with a prompt")
    if _INFILL.value:
        _refuse([_CHAT, _LENGTH], "is for a prompt that is continued, not infilled")
    config = _app.merged(_CONFIG, _OWN)
    check_seed(config.seed)
    rules = samplers.parse_all(_SAMPLER.value)
    plans = {spec: caches.parse(spec) for spec in _CACHE.value}
    task = tasks.get(config.task)
    prompt, example = _PROMPT.value, None
    if prompt is None:
        if _EXAMPLE.value < 0:
            raise InputError(f"example ({_EXAMPLE.value}) must be at least 0")
        example = task.examples(config.split, _EXAMPLE.value + 1)[-1]

    checkpoint = pathlib.Path(_CHECKPOINT.value or zoo.path(config.task))
    outline = read_outline(checkpoint)
    if example:
        check_codec(task, outline.codec)
    own = Settings(seed=config.seed, batch_size=1)
    asked = {}
    for cache, plan in plans.items():
        settings = _app.drawing(config) | Settings(
            cache=plan,
            trajectory=True,
            staleness=_STALENESS.value and plan.has_window,
        )
        rows, options = _rows(outline, config, settings, task, example)
        for rule in rules.values():
            outline.check(rows, rule, options, own)
        asked[cache] = rows, options

    model = load_weights(outline, _DTYPE.value)
    runs, remarks = {}, {}
    for cache, (rows, options) in asked.items():
        for spec, rule in rules.items():
            ((_, out),) = model.stream_rows(rows, rule, options, own)
            name = spec if len(plans) == 1 else f"{spec}, cache {cache}"
            runs[name] = out.replay
            remarks[name] = f"{out.nfe} forwards, {out.num_tokens} tokens"
            if example:
                verdict = task.verdict(example, out.text)
                mark = "correct" if verdict.is_correct else f"wrong: {verdict.reason}"
                remarks[name] += f", {mark}"
    return page.build(
        runs,
        title=f"{task.name} {example.name}" if example else "One prompt",
        note=f"{checkpoint.name}, {model.dtype}",
        remarks=remarks,
        grid=task.grid if example or _TASK.present else None,
    )


def _rows(
    outline: Outline,
    config: ConfigDict,
    settings: Settings,
    task: tasks.Task,
    example: Example | None,
) -> tuple[list[Encoded], Options]:
    """The example or the prompt as a row with blanks, and how to fill it."""
    if example:
        settings["block_length"] = task.block_length
        rows = task.encode(outline.codec, [example])
        return rows, outline.options(task.gen_length, settings)
    if _INFILL.value:
        settings["block_length"] = _BLOCK.value
        return outline.infilled([_PROMPT.value or ""], settings)
    settings["block_length"] = _app.block_length(
        _BLOCK, config, outline.denoiser.is_block_causal
    )
    return outline.continued(
        [_PROMPT.value or ""], config.gen_length, _CHAT.value, settings
    )


if __name__ == "__main__":
    _app.run(main)
