"""What all scripts share: errors that a user can mend are one line, not a traceback."""

import contextlib
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from dlm_jax.devices import hosts
from dlm_jax.errors import InputError
from dlm_jax.text.settings import Settings

# Default configs are found from any folder.
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
STUDIES = pathlib.Path(__file__).parent / "studies"


def define_config(
    default: str | pathlib.Path, help_: str
) -> flags.FlagHolder[ConfigDict]:
    """Defines --config, the path of a config file, and --config.NAME=VALUE."""
    # Where the command line names no other file, the default is read at once.
    with _one_line():
        return config_flags.DEFINE_config_file("config", str(default), help_)


def merged(
    config: flags.FlagHolder[ConfigDict], own: Sequence[flags.FlagHolder[Any]]
) -> ConfigDict:
    """The values of a config file, where no flag sets others.

    Args:
      config: of `define_config`.
      own: flags that stand for fields of the same names; None where they are not given.

    Raises:
      InputError: if a field that has a flag is set as --config.NAME.
    """
    values = config.value
    overridden = config_flags.get_override_values(flags.FLAGS["config"])
    for flag in own:
        if flag.name in overridden:
            raise InputError(f"--config.{flag.name} must be set as --{flag.name}")
    given = {flag.name: flag.value for flag in own if flag.value is not None}
    with values.unlocked():  # A config may leave fields out.
        values.update(given)
    return values


class _PathParser(flags.ArgumentParser[str]):
    """A path; ~ is the user's home."""

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)

    def flag_type(self) -> str:
        return "path"


def define_path(
    name: str, default: str | None, help_: str, required: bool = False
) -> flags.FlagHolder[Any]:
    """Defines a flag that is a path."""
    return flags.DEFINE(_PathParser(), name, default, help_, required=required)


# How tokens are drawn: fields of a config that have flags of the same names.
DRAWING = (
    "temperature",
    "guidance",
    "suppress_eos",
    "defer_stops",
    "early_stop",
    "seed",
)


def define_drawing() -> list[flags.FlagHolder[Any]]:
    """Defines the flags of `DRAWING`."""
    return [
        flags.DEFINE_float("temperature", None, "0 takes the most probable token."),
        flags.DEFINE_float("guidance", None, "Classifier-free guidance; 0 is off."),
        flags.DEFINE_bool("suppress_eos", None, "EOS gets probability 0."),
        flags.DEFINE_bool("defer_stops", None, "Stop tokens are committed last."),
        flags.DEFINE_bool(
            "early_stop", None, "A stop ends its row before its block is finished."
        ),
        flags.DEFINE_integer("seed", None, "Of the random keys."),
    ]


def drawing(config: ConfigDict) -> Settings:
    """What a config says of how tokens are drawn, but for the seed."""
    return Settings(
        temperature=config.temperature,
        guidance=config.guidance,
        suppress_eos=config.suppress_eos,
        defer_stops=config.defer_stops,
        early_stop=bool(config.get("early_stop", True)),
    )


def define_sharing() -> flags.FlagHolder[int | None]:
    """Defines --devices_per_model, see `runner.load`."""
    return flags.DEFINE_integer(
        "devices_per_model", None, "Devices that share the weights; by default none do."
    )


def define_hosts() -> Callable[[], hosts.Host]:
    """Defines the flags of runs over several hosts.

    Returns:
      What joins the other processes; to be called before JAX is used.
    """
    coordinator = flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, if several share the prompts."
    )
    num_processes = flags.DEFINE_integer(
        "num_processes", None, "How many share the prompts."
    )
    process_id = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
    is_cluster = flags.DEFINE_bool(
        "cluster", False, "Find these on a TPU pod, under SLURM or Kubernetes."
    )

    def start() -> hosts.Host:
        return hosts.start(
            coordinator.value,
            num_processes.value,
            process_id.value,
            is_cluster=is_cluster.value,
        )

    return start


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses flags, runs main and exits: 1 after bad input, with one line on stderr.

    Bad input is a wrong flag, an `InputError`, or what the machine refuses: an
    `OSError` (disk full, permission denied, a sandbox that does not start), or memory
    on a device. Any other exception is a defect and keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> int:
        _keep_compiled_programs()
        if not flags.FLAGS["verbosity"].present:
            # Orbax reports every step of its work, and warns where nothing is wrong.
            logging.set_verbosity(logging.ERROR)
        try:
            if getattr(flags.FLAGS, "dtype", None) == "float64":
                jax.config.update("jax_enable_x64", True)
            if len(argv) > 1:
                raise InputError(f"unexpected arguments: {' '.join(argv[1:])}")
            main(argv)
        except (InputError, OSError) as error:
            _print(str(error))
            return 1
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _print(f"too little memory for this batch and model: {error}"[:300])
            return 1
        return 0

    # --help lists the flags that a script shares with others, not only its own.
    for module, own in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments."):
            for flag in own:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    with _one_line():
        rest = flags.FLAGS(argv)
        config = getattr(flags.FLAGS, "config", None)
        if config is not None:
            _ = config.keys  # A missing file becomes an error when it is first used.
        return rest


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Ends the program with one line if a flag is wrong."""
    try:
        yield
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        if (told := _told_by_file(error)) is not None:
            _print(str(told))
            sys.exit(1)
        names = [argument.partition("=")[0] for argument in sys.argv[1:]]
        overrides = [name for name in names if name.startswith("--config.")]
        # What fails in the config file itself is its defect, and keeps its traceback
        # (which ml_collections puts into some messages).
        where = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        is_of_file = "get_config" in where or "Traceback" in str(error)
        if is_of_file or not (isinstance(error, flags.Error) or overrides):
            raise
        if isinstance(error, flags.Error):
            _print(str(error))
        else:
            # ml_collections names the last part of the path only.
            named = [x for x in overrides if x.rpartition(".")[2] in str(error)]
            # A KeyError's text is that of a literal, quoted and escaped.
            reason = error
            while reason.args and isinstance(reason.args[0], Exception):
                reason = reason.args[0]
            reason = reason.args[0] if reason.args else ""
            _print(f"{', '.join(named or overrides)} is no field of it: {reason}")
    except OSError as error:
        # ml_collections lists its attempts; the system's own error is the last line.
        _print(f"--config cannot be read: {str(error).splitlines()[-1]}")
    else:
        return
    sys.exit(1)


def _told_by_file(error: BaseException | None) -> InputError | None:
    """What a config file says of its argument (`FILE:ARGUMENT`), if that is the cause.

    ml_collections raises it again with its traceback as the text.
    """
    found = None
    while error is not None:
        found = error if isinstance(error, InputError) else found
        error = error.__cause__ or error.__context__
    return found


def _print(message: str) -> None:
    print("error:", *message.split(), file=sys.stderr)


def _keep_compiled_programs() -> None:
    """Turns on JAX's compilation cache, where JAX_COMPILATION_CACHE_DIR does not."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        directory = pathlib.Path(caches) / "dlm_jax"
        jax.config.update("jax_compilation_cache_dir", str(directory))
