"""What an accelerator should reach at LLaDA-8B's shape, and the table of what it did.

The aims are for one GPU with the memory and the speed of an H100, in bfloat16, with 256
tokens of prompt, 256 new ones and blocks of 32.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from dlm_jax.evaluation.tables import markdown
from experiments.timing.torch_loops import COMPILED, EAGER


@dataclasses.dataclass(frozen=True)
class Aim:
    """One line of the table.

    Attributes:
      part: whose records hold the value.
      what: in words.
      key: of the record.
      kind: the value's format.
      most: the value should be at most this.
      least: the value should be at least this. With neither, it is shown only.
      where: fields of the record.
    """

    part: str
    what: str
    key: str
    kind: str = ".2f"
    most: float | None = None
    least: float | None = None
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def bound(self) -> str:
        """The aim in words."""
        for word, value in (("at most", self.most), ("at least", self.least)):
            if value is not None:
                return f"{word} {value:{'.0%' if '%' in self.kind else 'g'}}"
        return "-"

    def is_met(self, value: float) -> bool:
        """Whether a value is what it should be."""
        pairs = (operator.le, self.most), (operator.ge, self.least)
        return all(holds(value, bound) for holds, bound in pairs if bound is not None)


_EAGER = {"reference": EAGER}
_DUAL = {"cache": "dual", "reference": None}


def _of_steps(batch: int, ratio: float, share: float, beyond: float) -> list[Aim]:
    """The aims of steps with full forwards."""
    part, at = f"steps_{batch}", f"batch {batch}"
    compiled = {"reference": COMPILED}
    other = f"compiled_{batch}"
    return [
        Aim(
            part,
            f"steps/s beside eager PyTorch, {at}",
            "ratio",
            ".2f",
            None,
            ratio,
            _EAGER,
        ),
        Aim(other, f"steps/s beside torch.compile, {at}", "ratio", where=compiled),
        Aim(part, f"share of the matmul peak, {at}", "of_peak", ".1%", least=share),
        Aim(part, f"step beyond the forward, {at}", "beyond_forward", ".1%", beyond),
        Aim(part, f"compile time of the loop, s, {at}", "compile_seconds", ".1f", 30),
    ]


def _of_generations(batch: int, gain: float) -> list[Aim]:
    """The aims of whole generations with the dual cache."""
    part, at = f"generations_{batch}", f"batch {batch}"
    none = {"cache": "none", "reference": None}
    speed = "tokens_per_second"
    return [
        Aim(part, f"tokens/s without a cache, {at}", speed, ".0f", where=none),
        Aim(part, f"tokens/s with the dual cache, {at}", speed, ".0f", where=_DUAL),
        Aim(part, f"dual against none, {at}", "gain", least=gain, where=_DUAL),
        Aim(part, f"dual beside eager PyTorch's dual, {at}", "ratio", where=_EAGER),
    ]


AIMS = (
    Aim("setup", "setup with PyTorch's weights, s", "seconds", ".1f", 60),
    Aim("steps_1", "step of full forwards, ms, batch 1", "step_ms", ".2f", 15),
    *_of_steps(1, 1.45, 0.7, 0.04),
    *_of_steps(8, 1.4, 0.85, 0.02),
    Aim(
        "windows_1",
        "cached block step / reading the block weights, batch 1",
        "window_per_weights",
        ".2f",
        1.3,
    ),
    Aim("windows_8", "cached block step, ms, batch 8", "window_ms", ".2f", 10),
    *_of_generations(1, 1.8),
    *_of_generations(8, 4),
    *_of_generations(32, 4),
    Aim("predict", "predict / one plain einsum", "predict_per_plain", ".2f", 1.2),
    Aim("predict", "predict at temperature 1 / 0", "drawn_per_predict", ".2f", 1.5),
    Aim("masks_8", "forward by mask / by number of keys, batch 8", "mask_per_number"),
    *(
        Aim(
            f"refreshed_{batch}",
            f"seconds with {num} rows refreshed together, batch {batch}",
            "median_seconds",
            where={"num_refreshed": num},
        )
        for batch in (8, 32)
        for num in (1, 2, 4, 8)
    ),
    *(
        Aim(
            f"traces_{x}",
            f"recorded float32 runs that match, {x}",
            "share",
            ".0%",
            least=1,
        )
        for x in ("kv2", "kv4", "sdar")
    ),
)


def table(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A Markdown table of all aims, of what was measured, and whether they are met.

    Args:
      records: by part; parts may be missing.
    """
    rows = [["what", "aim", "measured", "met"]]
    for aim in AIMS:
        # The first record with these fields, of which None is one that is absent.
        fitting = (
            record
            for record in records.get(aim.part, ())
            if all(record.get(name) == value for name, value in aim.where.items())
        )
        value = next(fitting, {}).get(aim.key)
        if value is None:
            rows.append([aim.what, aim.bound, "not measured", "-"])
            continue
        met = "yes" if aim.is_met(value) else "no"
        met = "-" if aim.bound == "-" else met
        rows.append([aim.what, aim.bound, format(value, aim.kind), met])
    return markdown(rows)
