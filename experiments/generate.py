r"""Generates with one or more samplers: a task's answers, or text for your own prompts.

    python -m experiments.generate
    python -m experiments.generate --checkpoint=LLaDA-8B-Instruct --prompt='Why 42?' \
        --sampler='entropy_bound(gamma=0.1)' --sampler=saber --output=answers.jsonl

Without prompts, the shipped model of --config.task solves held-out examples of it. With
--infill, every mask token in a prompt's text is a blank.

On several hosts, each process is given the same prompts and takes its share of them:

    python -m experiments.generate ... --output=answers.jsonl --cluster
    python -m experiments.merge --output=answers.jsonl     # once, when all are done
"""

from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from dlm_jax import files, samplers, tasks, zoo
from dlm_jax.core.keys import check_seed
from dlm_jax.core.options import Options
from dlm_jax.devices import batches, hosts, runner
from dlm_jax.errors import InputError
from dlm_jax.tasks.base import BLANK, check_codec
from dlm_jax.text import prompts as text_prompts
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import Encoded, read_prompts
from experiments import _app, _report

_CONFIG = _app.define_config("configs/generate.py", "Defaults.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Hugging Face or Orbax directory."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32", "float64"], "Default: as stored."
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be repeated.")
_FILE = flags.DEFINE_string(
    "prompts_file", None, "A prompt a line, or JSONL: `prompt`."
)
_CHAT = flags.DEFINE_bool(
    "chat", None, "Default: if the tokenizer has a chat template."
)
_INFILL = flags.DEFINE_bool("infill", False, "Fill the mask tokens in the prompts.")
_OUTPUT = flags.DEFINE_string("output", None, "JSONL file to write; must not exist.")
_BLOCK = flags.DEFINE_integer("block_length", None, "Tokens per block, left to right.")
_LENGTH = flags.DEFINE_integer(
    "gen_length", None, "Tokens to generate after each prompt."
)
_START = _app.define_hosts()
_SHARING = _app.define_sharing()
_OVERRIDES = [
    _BLOCK,
    _LENGTH,
    flags.DEFINE_multi_string("sampler", None, "As saber(n=2, mu=8); may be repeated."),
    flags.DEFINE_float("temperature", None, "0 takes the most probable token."),
    flags.DEFINE_integer("seed", None, "Of the random keys."),
    flags.DEFINE_integer("batch_size", None, "Prompts that are filled together."),
]


def main(argv: Sequence[str]) -> None:
    """Generates, prints and writes what the flags ask for."""
    del argv
    config = _CONFIG.value
    config.update({f.name: f.value for f in _OVERRIDES if f.value is not None})
    check_seed(config.seed)
    host = _START()
    if host.count > 1 and not _OUTPUT.value:
        raise InputError("several processes need an --output, to write shards of it")
    output = host.shard(_OUTPUT.value) if _OUTPUT.value else None
    if output:
        files.check_output(output)
    rules = samplers.parse_all(config.sampler)
    prompts = _PROMPT.value + (read_prompts(_FILE.value) if _FILE.value else [])
    if not prompts:
        for flag in (_INFILL, _CHAT, _LENGTH, _BLOCK):
            if flag.present:
                raise InputError(f"{flag.name} ({flag.value}) needs a prompt")
    task = tasks.get(config.task)
    examples = [] if prompts else task.examples(config.split, config.num_examples)
    checkpoint = _CHECKPOINT.value or zoo.path(config.task)
    model = runner.load(checkpoint, _DTYPE.value, _SHARING.value)
    codec = Codec.load(checkpoint, model.config)
    if examples:
        check_codec(task, codec)
        prompts = [e.prompt.replace(BLANK, codec.mask_text) for e in examples]
        rows = task.encode(codec, examples)
        options = task.options(codec, config.temperature)
    else:
        rows, options = _encode(codec, prompts, config)
    if len(prompts) < host.count:
        raise InputError(
            f"prompts ({len(prompts)}) must be at least one for each process "
            f"({host.count})"
        )
    # After encoding: all processes have the same shapes, whatever their share.
    num_prompts, prompts_digest = len(prompts), hosts.digest(prompts)
    ids = host.share(range(num_prompts))
    prompts, rows = host.share(prompts), host.share(rows)
    examples = host.share(examples)
    common = {
        **{"checkpoint": str(checkpoint), "dtype": str(model.dtype)},
        **{"gen_length": options.gen_length, "block_length": options.block_length},
        **{"temperature": config.temperature, "seed": config.seed},
        # Of all processes, for `experiments.merge` to see whether something is missing
        # or answers other prompts.
        **{"num_prompts": num_prompts, "prompts_digest": prompts_digest},
    }
    runs = {}
    with tqdm(total=len(rules) * len(rows), unit="prompt", disable=None) as progress:
        for spec, rule in rules.items():
            progress.set_description(spec)
            runs[spec] = batches.fill(
                *(model.parallel, rule, rows, options, config.seed, config.batch_size),
                ids=ids,
                on_answers=lambda answers: progress.update(len(answers)),
            )
    records = list(_report.records(codec, prompts, rows, runs, ids, **common))
    if output:
        files.write_jsonl(output, records)
    lines = _report.texts(dict(zip(ids, prompts, strict=True)), records)
    num_right: dict[str, int] = {}
    if examples:
        shown = task, codec, examples, rows, runs, config.num_shown
        lines, num_right = _report.answers(*shown)
    print(*lines, *_report.summary(runs, num_right), sep="\n")


def _encode(
    codec: Codec, prompts: list[str], config: ConfigDict
) -> tuple[list[Encoded], Options]:
    """The prompts as rows with blanks, and how to fill them."""
    if _INFILL.value:
        for flag in (_CHAT, _LENGTH):
            if flag.value:
                raise InputError(
                    f"{flag.name} is for prompts that are continued, not infilled"
                )
        rows = codec.encode_infill(prompts)
        block_length: Any = _BLOCK.value
        gen_length = text_prompts.gen_length(rows, block_length)
        return rows, Options(
            *(gen_length, block_length, config.temperature), stop_ids=codec.stop_ids
        )
    is_chat = codec.has_chat_template if _CHAT.value is None else _CHAT.value
    encode = codec.encode_chat if is_chat else codec.encode
    rows = encode(prompts, config.gen_length)
    return rows, Options(
        *(config.gen_length, config.block_length, config.temperature),
        stop_ids=codec.stop_ids,
    )


if __name__ == "__main__":
    _app.run(main)
