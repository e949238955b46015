"""Progress of a script: a bar in a terminal, regular lines in a log file."""

import datetime
import sys
import threading
import time
from collections.abc import Collection
from typing import Any

import tqdm

# Seconds between two lines where stderr is no terminal.
PERIOD = 30.0


class Progress:
    """Rows done, rows per second, mean NFE and time left, on stderr.

    A context manager. Lines come at equal times, also while no row is done: that of
    compiling or of one long call is then seen too.

    Args:
      total: rows that there will be.
      unit: what a row is called.
      period: seconds between two lines; PERIOD by default.
    """

    def __init__(self, total: int, unit: str, period: float | None = None):
        self._total, self._unit = total, unit
        self._period = PERIOD if period is None else period
        self._num_known = self._num_new = 0
        self._nfe = 0.0
        self._what = ""
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
        """Says what is being done."""
        with self._lock:
            self._what = what
        self._bar.set_description(what)

    def add(self, nfe: Collection[float], **shown: Any) -> None:
        """Counts rows that were done now.

        Args:
          nfe: of each row.
          **shown: what else a bar shows.
        """
        with self._lock:
            self._num_new += len(nfe)
            self._nfe += sum(nfe)
            mean = self._mean_nfe()
        self._bar.set_postfix(refresh=False, NFE=mean, **shown)
        self._bar.update(len(nfe))

    def add_known(self, nfe: Collection[float], **shown: Any) -> None:
        """Counts rows of earlier runs, which take no time; arguments as `add`."""
        with self._lock:
            self._num_known += len(nfe)
            self._nfe += sum(nfe)
            mean = self._mean_nfe()
        self._bar.set_postfix(refresh=False, NFE=mean, **shown)
        if not self._bar.disable:
            # The bar's rate is of what came after.
            self._bar.initial += len(nfe)
            self._bar.n += len(nfe)
            self._bar.refresh()

    def line(self) -> str:
        """How far it is, in one line."""
        with self._lock:
            done = self._num_known + self._num_new
            what = f"{self._what}: " if self._what else ""
            text = f"{what}{done:,} of {self._total:,} {self._unit}s"
            if self._num_new:
                rate = self._num_new / max(time.monotonic() - self._start, 1e-9)
                left = datetime.timedelta(seconds=round((self._total - done) / rate))
                text += f", {rate:.3g} {self._unit}s/s, mean NFE {self._mean_nfe()}"
                text += f", {left} left"
            return text

    def _mean_nfe(self) -> str:
        return f"{self._nfe / max(self._num_known + self._num_new, 1):.1f}"

    def _write_lines(self) -> None:
        while not self._ended.wait(self._period):
            print(self.line(), file=sys.stderr, flush=True)
