r"""Times the compiled loop against a plain eager PyTorch loop, pair by pair.

    python -m experiments.benchmark
    python -m experiments.benchmark --checkpoint=DIR --samplers=low_confidence \
        --samplers='entropy_bound(gamma=0.1)' --batch_sizes=8 --output=benchmark.jsonl

Same weights, same held-out Sudoku puzzles, run in turn: ours with a queue in front of
its slots, PyTorch in batches of as many rows. Prints rows per second of both loops, the
median ratio of neighbouring runs and the rows with equal tokens and NFE; and each
sampler's gain over the first one, in seconds and in NFE. --reference=none leaves
PyTorch out.
"""

import os
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from dlm_jax import batching, bench, files, samplers, tasks, zoo
from dlm_jax.errors import InputError
from dlm_jax.models import as_denoiser
from dlm_jax.parallel import DataParallel
from dlm_jax.tasks.task import load
from dlm_jax.types import Options, Prompts, Sampler
from experiments import _app

_CONFIG = _app.define_config("configs/benchmark.py", "Defaults.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face directory.")
_REFERENCE = flags.DEFINE_enum("reference", "torch", ["torch", "none"], "Other loop.")
_OUTPUT = flags.DEFINE_string("output", None, "JSONL file to write; must not exist.")
_OVERRIDES = [
    flags.DEFINE_multi_string(
        "samplers", None, "As saber(n=2, mu=8); may be repeated."
    ),
    flags.DEFINE_multi_integer("batch_sizes", None, "May be repeated."),
    flags.DEFINE_integer("rows_per_slot", None, "Puzzles per run and row of a batch."),
    flags.DEFINE_integer("num_pairs", None, "Runs of each loop."),
    flags.DEFINE_integer("seed", None, "Of the random keys."),
]


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes what the flags ask for."""
    del argv
    # A program that is read back from the cache would cost no compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    config = _CONFIG.value
    config.update({f.name: f.value for f in _OVERRIDES if f.value is not None})
    if _OUTPUT.value:
        files.check_output(_OUTPUT.value)
    if min(config.batch_sizes) < 1:
        raise InputError(f"batch_sizes ({min(config.batch_sizes)}) must be at least 1")
    rules = {spec: samplers.parse(spec) for spec in config.samplers}
    checkpoint = _CHECKPOINT.value or zoo.path(config.zoo)
    task = tasks.get(config.zoo)
    model, codec = load(task, checkpoint)
    reference, num_threads = None, None
    if _REFERENCE.value == "torch":
        reference, num_threads = _torch_loop(checkpoint)
    parallel = DataParallel(*as_denoiser(model))

    num_ways = 1 if reference is None else 2
    num_runs = len(config.batch_sizes) * len(rules) * num_ways * config.num_pairs
    records = []
    with tqdm(total=num_runs, unit="run", disable=None) as progress:
        for batch_size in config.batch_sizes:
            progress.set_description(f"batch {batch_size}")
            examples = task.examples("test", config.rows_per_slot * batch_size)
            rows = task.encode(codec, examples)
            num_slots = parallel.num_slots(batch_size)
            results = bench.race(
                parallel,
                rules,
                batching.pad(rows, max(row.tokens.size for row in rows)),
                Options(batching.gen_length(rows, None), num_slots=num_slots),
                num_pairs=config.num_pairs,
                seed=config.seed,
                reference=reference and bench.in_batches(reference, batch_size),
                on_run=progress.update,
            )
            records += bench.records(
                results, num_cores=os.cpu_count(), reference_threads=num_threads
            )
    if _OUTPUT.value:
        files.write_jsonl(_OUTPUT.value, records)
    print(bench.tables(records))


def _torch_loop(checkpoint: os.PathLike | str) -> tuple[bench.Fill, int]:
    """The eager loop on the same weights, and the threads that PyTorch takes."""
    try:
        import torch

        from dlm_jax import eager, reference
    except ModuleNotFoundError as error:
        raise InputError(f"--reference=torch needs PyTorch: {error}") from None
    model = reference.load_llada(str(checkpoint))

    def fill(sampler: Sampler, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
        return eager.fill(model, sampler, prompts, model.config.mask_token_id)

    return fill, torch.get_num_threads()


if __name__ == "__main__":
    _app.run(main)
