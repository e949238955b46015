"""Which layers of the sandbox work on this machine."""

import functools
import sys
import threading

from dlm_jax.sandbox import layers as sandbox_layers
from dlm_jax.sandbox.process import LAYERS, Limits, SandboxError, StartError, value_of


def strongest_layers() -> tuple[str, ...]:
    """Those of LAYERS that work here; each is tried once per process.

    Raises:
      SandboxError: if the machine is too busy to try them.
    """
    with _PROBE_LOCK:
        return _probe()


_PROBE_LOCK = threading.Lock()


@functools.cache
def _probe() -> tuple[str, ...]:
    """The layers that a small program works in, each tried by itself, then together."""
    if sys.platform != "linux" or not sandbox_layers.seccomp_filter():
        return ()
    program = "import hashlib, json, math\ndef f():\n    return math.floor(1.5)"

    def works(layers: tuple[str, ...]) -> bool:
        try:
            return value_of(program, "f", Limits(wall_seconds=60.0), layers) == 1
        except SandboxError as error:
            # That the machine is busy must not cost a layer.
            if isinstance(error, StartError) and error.status == "timeout":
                raise
            return False

    found = tuple(name for name in LAYERS if works((name,)))
    # Each alone, but not all: the most that goes, from the strongest down.
    while found and not works(found):
        found = found[1:]
    return found
