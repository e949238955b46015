"""Scripts: absl flags around the library."""

import sys

# `python -m experiments.NAME` imports this package first, before what takes seconds.
if sys.argv[:1] == ["-m"]:
    from experiments import _signals

    _signals.end_at_once()
