"""What a training run keeps in its directory: checkpoints, and the curve.

A checkpoint holds the state and a record of what a resumed run must have in common.
"""

import json
import pathlib
import time
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from dlm_jax import files
from dlm_jax.errors import InputError

_State = TypeVar("_State")


def record(params: PyTree, **values: Any) -> dict[str, Any]:
    """What must be the same when a run is resumed, as JSON gives it back.

    Args:
      params: the model's, of which shapes and dtypes are recorded.
      **values: everything else.

    Raises:
      InputError: if a value is not JSON.
    """
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(params))
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            f"{leaf.dtype}{list(leaf.shape)}"
        )
        for path, leaf in leaves
    }
    try:
        return json.loads(json.dumps({**values, "model": shapes}))
    except (TypeError, ValueError) as error:
        raise InputError(f"made_by must be JSON: {error}") from None


class Checkpoints:
    """The newest two checkpoints of a run, each a state with the record of the run.

    A context manager: leaving it waits for what is being written.

    Args:
      directory: where they lie; is made.
    """

    def __init__(self, directory: pathlib.Path):
        # Here because it takes a while, and only training needs it.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            directory, options=ocp.CheckpointManagerOptions(max_to_keep=2)
        )

    def __enter__(self) -> "Checkpoints":
        self._manager.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._manager.__exit__(*error)

    def save(self, step: int, state: PyTree, made: dict[str, Any]) -> None:
        """Writes a checkpoint of a state with the record of its run."""
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state), config=args.JsonSave(made)
            ),
        )

    def restore(self, state: _State, made: dict[str, Any]) -> _State:
        """Reads the newest checkpoint.

        Args:
          state: gives structure, shapes and shardings.
          made: the record of the run that goes on.

        Returns:
          What was saved, or `state` itself if nothing was.

        Raises:
          InputError: naming the first key in which the records differ.
        """
        manager, args = self._manager, self._ocp.args
        step = manager.latest_step()
        if step is None:
            return state
        saved = manager.restore(step, args=args.Composite(config=args.JsonRestore()))
        _check_equal("", made, saved["config"], str(manager.directory.parent))
        abstract = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, state)
        return manager.restore(
            step, args=args.Composite(state=args.StandardRestore(abstract))
        )["state"]


def _check_equal(name: str, value: Any, saved: Any, where: str) -> None:
    if isinstance(value, dict) and isinstance(saved, dict):
        for key in (*value, *(saved.keys() - value.keys())):
            inner = f"{name}.{key}" if name else key
            _check_equal(
                inner, value.get(key, "absent"), saved.get(key, "absent"), where
            )
    elif value != saved:
        raise InputError(
            f"{name} ({value}) must be {saved}, as in the run that is in {where}"
        )


class Curve:
    """The training curve: means since the line before, one JSON object per line.

    A resumed run cuts the lines of the steps that it takes again, and a last line that
    was not written to its end.

    Args:
      path: of the file, which may exist.
      first: step from which the run goes on.

    Raises:
      InputError: if a line was damaged; the file is then left as it is.
    """

    def __init__(self, path: pathlib.Path, first: int):
        # What follows the last newline is a line that was cut.
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        with files.staged(path, may_exist=True) as partial, partial.open("wb") as file:
            for number, line in enumerate(lines, start=1):
                if _step(path, number, line) <= first:
                    file.write(line + b"\n")
        self._path = path
        self._start()

    def _start(self) -> None:
        self._metrics: list[dict[str, Array]] = []
        self._num_tokens, self._time = 0, time.monotonic()

    def add(self, metrics: dict[str, Array], num_tokens: int) -> None:
        """Counts a step, once the step before it is done."""
        # One step may be under way while the next batch is made. Without the wait the
        # host runs many steps ahead and the progress bar shows what is not done.
        if self._metrics:
            jax.block_until_ready(self._metrics[-1])
        self._metrics.append(metrics)
        self._num_tokens += num_tokens

    def write(self, step: int) -> dict[str, float]:
        """Writes and returns the line of a step."""
        columns = jax.tree.map(lambda *values: np.mean(values), *self._metrics)
        newest = {name: round(float(value), 5) for name, value in columns.items()}
        speed = self._num_tokens / (time.monotonic() - self._time)
        newest["tokens_per_s"] = round(speed)
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **newest}) + "\n")
        self._start()
        return newest


def _step(path: pathlib.Path, number: int, line: bytes) -> int:
    """The step of a curve's line, by the line's number."""
    return files.parse_line(
        path,
        number,
        line,
        lambda point: isinstance(point["step"], int),
        'an object with a "step"; delete the line, and the same command continues',
    )["step"]
