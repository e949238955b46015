r"""Computes the best possible speed of LLaDA-8B on GPUs and TPUs.

    python -m experiments.roofline

prints the memory per device, the milliseconds of a forward, and forwards times rows per
second. All are computed from published peaks; nothing is measured.
"""

from collections.abc import Sequence

from absl import flags

from dlm_jax.errors import InputError
from dlm_jax.evaluation import tables
from dlm_jax.models.llada import llada_8b
from experiments import _app
from experiments.timing import roofline

_LENGTH = flags.DEFINE_integer(
    "length", 512, "Tokens per row, prompt and answer together."
)
_REGION = flags.DEFINE_integer(
    "region", 32, "Positions per row that need a prediction."
)
_BATCHES = flags.DEFINE_multi_integer(
    "batch_sizes",
    [1, 8, 32],
    "Rows in flight in each group of devices",
)
_SHARING = flags.DEFINE_multi_integer(
    "devices_per_model",
    [1, 2, 4],
    "Devices that share one copy of the weights",
)


def main(argv: Sequence[str]) -> None:
    """Prints the table, and what does not fit."""
    del argv
    config = llada_8b()
    rows = [
        [
            "machine",
            "devices per model",
            "rows of a group",
            "GB per device",
            "compute, ms",
            "memory, ms",
            "sums, ms",
            "forward, ms",
            "limit",
            "forwards x rows / s, all devices",
        ]
    ]
    refused = []
    for machine in roofline.MACHINES:
        for num_sharing in _SHARING.value:
            for batch_size in _BATCHES.value:
                shape = num_sharing, batch_size, _LENGTH.value, _REGION.value
                try:
                    e = roofline.estimate(config, machine, *shape)
                except InputError as error:
                    refused.append(str(error))
                    break
                times = (e.compute, e.memory, e.network, e.seconds)
                rows.append(
                    [
                        e.machine,
                        str(e.num_sharing),
                        str(e.batch_size),
                        f"{e.bytes_per_device / 1e9:.1f}",
                        *(f"{1e3 * seconds:.1f}" for seconds in times),
                        e.limit,
                        f"{e.tokens_per_second:.0f}",
                    ]
                )
    print(tables.markdown(rows), *refused, sep="\n")


if __name__ == "__main__":
    _app.run(main)
