r"""Generates with one or more samplers: answers to a task or to your own prompts.

    python -m experiments.generate
    python -m experiments.generate --checkpoint=LLaDA-8B-Instruct --prompt='Why 42?' \
        --sampler='entropy_bound(gamma=0.1)' --sampler=saber --output=answers.jsonl

    python -m experiments.generate --checkpoint=LLaDA-8B-Instruct \
        --prompts_file=- --output=- < prompts.jsonl > answers.jsonl

reads prompts from stdin and writes records to stdout; everything else is printed on
stderr. Records come as they are finished, not in the order of the prompts: `index` says
which prompt one answers. Nothing else is kept of them: the same command cannot continue
a run that was stopped, as with a file, and starts from nothing.

Prompts that are too long for the model are refused, or left out with --skip_long; the
others are then numbered as if these had not been there. Without prompts, the shipped
model of --task solves held-out examples of the task. With --infill, every mask token in
a prompt's text is a blank. The defaults of the flags are in --config.

Finished rows are kept in OUTPUT.partial until all are there. The same command continues
a run that was stopped; --batch_size may differ.

On several hosts, every process gets the same prompts and takes its share of them:

    python -m experiments.generate ... --output=answers.jsonl --cluster
    python -m experiments.merge --output=answers.jsonl     # once, when all are done

If a process died, run the same command again: on all hosts, or for its share alone with
--num_processes and --process_id, and without --coordinator.
"""

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from dlm_jax import caches, files, samplers, tasks, zoo
from dlm_jax.core.keys import check_seed
from dlm_jax.core.options import Options
from dlm_jax.devices import hosts
from dlm_jax.errors import InputError, PromptError
from dlm_jax.evaluation.growing import growing
from dlm_jax.evaluation.records import check_finite
from dlm_jax.outline import Outline, read_outline
from dlm_jax.tasks.base import BLANK, check_codec
from dlm_jax.text.codec import Messages
from dlm_jax.text.prompt_files import read_prompts
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.settings import Settings
from experiments import _app
from experiments._generating import Asked, fill, share, show

_CONFIG = _app.define_config(
    _app.CONFIGS / "generate.py", "Config file with the defaults of the other flags."
)
_CHECKPOINT = _app.define_path(
    "checkpoint",
    None,
    "Model directory, Hugging Face or Orbax; default: the task's shipped model.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32", "float64"],
    "Dtype of the weights; default: as stored.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Prompt to continue or infill")
_FILE = _app.define_path(
    "prompts_file",
    None,
    "File with a prompt per line, or JSON with `prompt` or `messages`; - is stdin.",
)
_CHAT = flags.DEFINE_bool(
    "chat",
    None,
    "Put prompts into the chat template; default: if the tokenizer has one.",
)
_INFILL = flags.DEFINE_bool(
    "infill", False, "Fill the mask tokens in the prompts, and continue nothing."
)
_SKIP = flags.DEFINE_bool(
    "skip_long", False, "Leave prompts out that are too long, and do the others."
)
_OUTPUT = _app.define_path(
    "output", None, "JSONL file to write, which must not exist; - is stdout."
)
_START = _app.define_hosts(may_be_alone=True)
_SHARING = _app.define_sharing()
_BLOCK = flags.DEFINE_integer(
    "block_length", None, "Tokens per block; blocks are filled from left to right."
)
_LENGTH = flags.DEFINE_integer(
    "gen_length", None, "Tokens to generate after each prompt."
)
# Flags that override a field of the config.
_OWN = [
    _BLOCK,
    _LENGTH,
    flags.DEFINE_multi_string(
        "sampler", None, "Sampler spec, such as saber(n=2, mu=8)"
    ),
    flags.DEFINE_integer(
        "batch_size", None, "Prompts in flight at once, over all devices."
    ),
    flags.DEFINE_string(
        "task", None, "Task whose examples are solved if there is no prompt."
    ),
    flags.DEFINE_string(
        "split", None, "Split that the task's examples are taken from."
    ),
    flags.DEFINE_integer(
        "num_examples",
        None,
        "Number of examples to solve: the first ones of the split.",
    ),
    flags.DEFINE_integer(
        "num_shown", None, "Number of examples to print with their answers."
    ),
    flags.DEFINE_string("cache", None, "Cache plan, such as dual(refresh_every=8)."),
    *_app.define_drawing(),
]


def main(argv: Sequence[str]) -> None:
    """Generates, prints and writes what the flags ask for."""
    del argv
    asked = _asked()
    outline = read_outline(_CHECKPOINT.value or zoo.path(asked.config.task))
    work = share(asked, outline, *_rows(asked, outline))
    own = Settings(seed=asked.config.seed, batch_size=asked.config.batch_size)
    for rule in asked.rules.values():
        outline.check(work.rows, rule, work.options, own)
    keys = [key for spec in asked.rules for key in work.keys(spec)]
    if asked.host.count > 1 and asked.output:
        rows = [(key.sampler, key.index) for key in keys]
        if hosts.is_whole(asked.output, work.common, rows):
            print(f"{asked.output} is complete already", file=sys.stderr)
            return
    if asked.how_read:
        print(asked.how_read, file=sys.stderr)
    is_piped = _OUTPUT.value == files.STDOUT
    with growing(asked.output, is_piped) as grown, _app.kept_rows(bool(asked.output)):
        fill(asked, outline, work, own, grown)
        grown.finish(keys)
    records = grown.find(keys)
    show(asked, work, records, grown.conditions, sys.stderr if is_piped else sys.stdout)
    if asked.host.count > 1:
        _tell_killed(asked.host)
    check_finite(records)


def _tell_killed(host: hosts.Host) -> None:
    """One line on stderr, if the shard of another process will not come."""
    if killed := hosts.killed(_OUTPUT.value, host):
        ids = ", ".join(map(str, killed))
        print(
            f"process {ids} was killed before its shard was whole: run its command "
            f"again with --num_processes={host.count}, --process_id={ids} and no "
            "--coordinator",
            file=sys.stderr,
        )


def _asked() -> Asked:
    """What the flags ask for, before the checkpoint is looked at."""
    config = _app.merged(_CONFIG, _OWN)
    check_seed(config.seed)
    # Groups of devices may find each other by what the processes share, even groups
    # inside of one process.
    host = _START(may_part=(_SHARING.value or 1) == 1)
    if host.count > 1 and not _OUTPUT.value:
        raise InputError("several processes need an --output, to write shards of it")
    is_piped = _OUTPUT.value == files.STDOUT
    if is_piped and (host.count > 1 or sys.stdout is None):
        raise InputError(f"output ({files.STDOUT}) needs one process, and a stdout")
    output = None
    if _OUTPUT.value and not is_piped:
        output = host.shard(_OUTPUT.value)
        if host.count == 1:
            files.check_output(output)
    rules = samplers.parse_all(config.sampler)
    caches.parse(config.get("cache") or "none")
    prompts: list[str | Messages] = list(_PROMPT.value)
    how_read, places = "", [""] * len(prompts)
    if _FILE.value:
        read = read_prompts(_FILE.value)
        prompts += read.prompts
        places += read.places
        how_read = f"{len(read.prompts)} prompts of {_FILE.value}, read as {read.form}"
    if not prompts:
        for flag in (_INFILL, _CHAT, _LENGTH, _BLOCK, _SKIP):
            if flag.present:
                raise InputError(f"{flag.name} ({flag.value}) needs a prompt")
    task = tasks.get(config.task)
    examples = [] if prompts else task.examples(config.split, config.num_examples)
    return Asked(
        config=config,
        host=host,
        output=output,
        rules=rules,
        prompts=prompts,
        places=places,
        examples=examples,
        how_read=how_read,
        is_infill=_INFILL.value,
        chat=_CHAT.value,
        dtype=_DTYPE.value,
        devices_per_model=_SHARING.value,
    )


def _rows(
    asked: Asked, outline: Outline
) -> tuple[list[str | Messages], list[Encoded], Options]:
    """The prompts, their rows with blanks, and how to fill them."""
    config = asked.config
    if not asked.examples:
        prompts, places = asked.prompts, asked.places
        if _SKIP.value:
            prompts, places = _skip_long(outline, asked)
        try:
            return prompts, *_encode(outline, prompts, config)
        except PromptError as error:
            raise InputError(_at(places[error.index], error)) from None
    task = tasks.get(config.task)
    check_codec(task, outline.codec)
    settings = _app.drawing(config) | {"block_length": task.block_length}
    settings["cache"] = config.get("cache") or "none"
    return (
        [
            e.text.replace(BLANK, outline.mask_text) if task.is_infill else e.prompt
            for e in asked.examples
        ],
        task.encode(outline.codec, asked.examples),
        outline.options(task.gen_length, settings),
    )


def _skip_long(
    outline: Outline, asked: Asked
) -> tuple[list[str | Messages], list[str]]:
    """The prompts that are not too long, and where they were read; names the others."""
    kept, places, told = [], [], ""
    for index, (prompt, place) in enumerate(
        zip(asked.prompts, asked.places, strict=True)
    ):
        try:
            _encode(outline, [prompt], asked.config)
        except PromptError as error:
            if error.is_too_long:
                # It was encoded alone.
                own = str(error).replace("prompt 0", f"prompt {index}", 1)
                told = told or _at(place, own)
                continue
        # What else is wrong is told when all are encoded.
        kept.append(prompt)
        places.append(place)
    num_skipped = len(asked.prompts) - len(kept)
    if not kept:
        raise InputError(f"skip_long leaves no prompt: {told}")
    if num_skipped:
        of_all = f"{num_skipped} of {len(asked.prompts)} prompts"
        print(f"{of_all} are too long and skipped, first {told}", file=sys.stderr)
    return kept, places


def _at(place: str, error: object) -> str:
    """What is wrong with a prompt, after where it was read if that is known."""
    return f"{place}: {error}" if place else str(error)


def _encode(
    model: Outline, prompts: list[str | Messages], config: ConfigDict
) -> tuple[list[Encoded], Options]:
    """The prompts as rows with blanks, and how to fill them."""
    settings = _app.drawing(config)
    settings["cache"] = config.get("cache") or "none"
    if _INFILL.value:
        for flag in (_CHAT, _LENGTH):
            if flag.value:
                raise InputError(
                    f"{flag.name} is for prompts that are continued, not infilled"
                )
        settings["block_length"] = _BLOCK.value
        return model.infilled(_texts(prompts), settings)
    settings["block_length"] = _app.block_length(
        _BLOCK, config, model.denoiser.is_block_causal
    )
    return model.continued(prompts, config.gen_length, _CHAT.value, settings)


def _texts(prompts: Sequence[str | Messages]) -> list[str]:
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise InputError("infill takes prompts that are texts, not conversations")
    return texts


if __name__ == "__main__":
    _app.run(main)
