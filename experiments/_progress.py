"""Progress of a script: a bar in a terminal, regular lines in a log file."""

import datetime
import sys
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import tqdm

# Seconds between two lines where stderr is no terminal.
PERIOD = 30.0


class Progress:
    """Rows done, rows per second, time left and mean NFE, on stderr.

    A context manager. Lines come at equal times, also while no row is done: that of
    compiling or of one long call is then seen too. The mean NFE is of the rows of one
    sampler, the one that was named last.

    Args:
      total: rows that there will be, of all samplers.
      unit: what a row is called.
      period: seconds between two lines; PERIOD by default.
    """

    def __init__(self, total: int, unit: str, period: float | None = None):
        self._total, self._unit = total, unit
        self._period = PERIOD if period is None else period
        self._num_known = self._num_new = 0
        self._what = ""
        # By what is being done: the number of rows, and the sum of their NFE.
        self._counts: dict[str, tuple[int, float]] = {}
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        # None: only in a terminal.
        self._bar = tqdm.tqdm(total=total, unit=unit, disable=None)
        self._thread = threading.Thread(target=self._write_lines, daemon=True)

    def __enter__(self) -> "Progress":
        if self._bar.disable:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._bar.close()

    def describe(self, what: str) -> None:
        """Says of what the rows are that come next."""
        with self._lock:
            self._what = what
        self._bar.set_postfix_str(what)

    def add(self, nfe: Collection[float], **shown: Any) -> None:
        """Counts rows that were done now.

        Args:
          nfe: of each row.
          **shown: what else a bar shows.
        """
        with self._lock:
            self._num_new += len(nfe)
            self._count(nfe)
        self._show(shown)
        self._bar.update(len(nfe))

    def add_known(self, nfe: Collection[float], **shown: Any) -> None:
        """Counts rows of earlier runs, which take no time; arguments as `add`."""
        with self._lock:
            self._num_known += len(nfe)
            self._count(nfe)
        self._show(shown)
        if not self._bar.disable:
            # The bar's rate is of what came after.
            self._bar.initial += len(nfe)
            self._bar.n += len(nfe)
            self._bar.refresh()

    def line(self) -> str:
        """How far it is, in one line."""
        with self._lock:
            done = self._num_known + self._num_new
            text = f"{done:,} of {self._total:,} {self._unit}s"
            if not self._num_new:
                return f"{text}, compiling or filling the first ones"
            rate = self._num_new / max(time.monotonic() - self._start, 1e-9)
            left = datetime.timedelta(seconds=round((self._total - done) / rate))
            text += f", {rate:.3g} {self._unit}s/s, {left} left"
            return f"{text}; {self._mean_nfe()}"

    def _count(self, nfe: Collection[float]) -> None:
        num, total = self._counts.get(self._what, (0, 0.0))
        self._counts[self._what] = num + len(nfe), total + sum(nfe)

    def _mean_nfe(self) -> str:
        """The mean NFE of what is being done."""
        num, total = self._counts.get(self._what, (0, 0.0))
        mean = f"mean NFE {total / num:.1f}" if num else "no row yet"
        return f"{self._what}: {mean}" if self._what else mean

    def _show(self, shown: Mapping[str, Any]) -> None:
        """Shows the mean NFE and more behind the bar."""
        more = (f"{name} {value}" for name, value in shown.items())
        self._bar.set_postfix_str(", ".join((self._mean_nfe(), *more)), refresh=False)

    def _write_lines(self) -> None:
        while not self._ended.wait(self._period):
            print(self.line(), file=sys.stderr, flush=True)
