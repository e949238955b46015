r"""Replays recorded runs of PyTorch samplers and says where dlm_jax differs.

    python -m experiments.compare --traces=DIR [--only=low_confidence,threshold] \
        [--dtype=float64]
    python -m experiments.compare --traces=DIR --only=mine \
        --sampler='my_rules:Confident(threshold=0.8)'

DIR holds traces (see `parity.traces`), made by `experiments.record_reference`. Each is
replayed with the sampler that repeats its rule, or with --sampler. One row per trace:
forwards of the recorded run and of dlm_jax, and `match`, or the first forward whose
outcome differs, the position, the recorded token and dlm_jax's, the confidence gap
('-' where the sampler's own bound decided) and whether rounding explains it (near-tie)
or not (real). In float64 dlm_jax makes no rounding error that matters: what float32
calls a near-tie matches there, unless the recorded run itself rounded. Exit status 0
only if all match.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from tqdm import tqdm

from dlm_jax import samplers
from dlm_jax.errors import InputError
from dlm_jax.parity import replay, traces
from experiments import _app
from experiments._replaying import replayed

FLAGS = flags.FLAGS
_app.define_path("traces", None, "Directory of RUN.json and RUN.npz.", required=True)
flags.DEFINE_list(
    "only", [], "Replays only traces whose sampler has one of these names."
)
flags.DEFINE_string(
    "sampler",
    None,
    "Replays every trace with this sampler, as my_rules:Confident(threshold=0.8); by "
    "default with the one that its rule asks for.",
)
_app.define_path(
    "checkpoint_root",
    None,
    "What the traces' checkpoint paths are relative to; DIR's parent by default.",
)
flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32", "float64"],
    "Of the weights; as stored by default. float64 resolves near-ties.",
)
flags.DEFINE_float(
    "tolerance",
    1e-3,
    "Of a near-tie: gap of confidences, or change of the logits that explains it.",
    lower_bound=0,
)


def main(_: Sequence[str]) -> None:
    """Compares every trace; see the module's docstring."""
    directory = pathlib.Path(FLAGS.traces)
    given = samplers.parse(FLAGS.sampler) if FLAGS.sampler else None
    selected = _select(traces.load_directory(directory), FLAGS.only)
    root = pathlib.Path(FLAGS.checkpoint_root or directory.absolute().parent)
    name_of = {
        t.name: samplers.to_spec(given) if given else t.sampler for t in selected
    }
    widths = [max(map(len, column)) for column in zip(*name_of.items(), strict=True)]
    _print(widths, "trace", "sampler", "recorded NFE", "dlm_jax NFE", "result")

    num_matches = 0
    progress = tqdm(total=len(selected), unit="trace", disable=None)
    for one in replayed(selected, root, FLAGS.dtype, FLAGS.tolerance, given):
        name, recorded = one.trace.name, str(one.trace.nfe)
        nfe = "-" if one.nfe is None else str(one.nfe)
        _print(widths, name, name_of[name], recorded, nfe, one.result)
        num_matches += one.is_match
        progress.update()
    progress.close()
    print(f"matched {num_matches} of {len(selected)}")
    if num_matches < len(selected):
        sys.exit(1)


def _select(recorded: list[traces.Trace], names: list[str]) -> list[traces.Trace]:
    """The traces of the named samplers."""
    known = sorted({trace.sampler for trace in recorded} | set(replay.RULES))
    for name in names:
        if name not in known:
            raise InputError(f"--only ({name}) must be among {', '.join(known)}")
    selected = [trace for trace in recorded if not names or trace.sampler in names]
    if not selected:
        raise InputError(f"{FLAGS.traces} holds no trace of {', '.join(names)}")
    return selected


def _print(widths: list[int], *cells: str) -> None:
    """Prints a row without breaking the progress bar."""
    name, sampler, recorded, own, result = cells
    names = f"{name:{widths[0]}}  {sampler:{widths[1]}}"
    tqdm.write(f"{names}  {recorded:>12}  {own:>11}  {result}", file=sys.stdout)


if __name__ == "__main__":
    _app.run(main)
