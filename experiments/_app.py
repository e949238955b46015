"""Shared by all scripts: errors that a user can fix are one line, not a traceback."""

import contextlib
import io
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
from dlm_jax.errors import InputError, OutOfMemory, absent_backend
from dlm_jax.text.settings import Settings
from experiments import _programs, _signals

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
      own: flags that override fields of the same names; None where they are not given.

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


def define_precision() -> flags.FlagHolder[str | None]:
    """Defines --precision, see `Options`."""
    return flags.DEFINE_enum(
        "precision", None, ["highest", "high", "default"], "Of float32 products."
    )


def precision(config: ConfigDict) -> str:
    """The precision that a config asks for; one may leave it out."""
    return config.get("precision") or "highest"


def define_drawing(has_seed: bool = True) -> list[flags.FlagHolder[Any]]:
    """Defines the flags of `DRAWING`, and --precision.

    Args:
      has_seed: with the seed; a script may have several.
    """
    defined: list[flags.FlagHolder[Any]] = [
        flags.DEFINE_float(
            "temperature",
            None,
            "Sampling temperature; 0 takes the most probable token.",
        ),
        flags.DEFINE_float(
            "guidance", None, "Scale of classifier-free guidance; 0 turns it off."
        ),
        flags.DEFINE_bool(
            "suppress_eos", None, "Never write EOS: its probability is set to 0."
        ),
        flags.DEFINE_bool(
            "defer_stops", None, "Commit stop tokens (EOS, end of turn) last."
        ),
        flags.DEFINE_bool(
            "early_stop",
            None,
            "End a row at its first stop token; if off, finish the block first.",
        ),
        define_precision(),
    ]
    if has_seed:
        defined.append(flags.DEFINE_integer("seed", None, "Seed of the random draws."))
    return defined


def drawing(config: ConfigDict) -> Settings:
    """What a config says of how tokens are drawn, but for the seed."""
    return Settings(
        temperature=config.temperature,
        guidance=config.guidance,
        suppress_eos=config.suppress_eos,
        defer_stops=config.defer_stops,
        early_stop=bool(config.get("early_stop", True)),
        precision=precision(config),
    )


def block_length(
    flag: flags.FlagHolder[int | None], config: ConfigDict, is_block_causal: bool
) -> int | None:
    """The tokens per block that a flag asks for or, without it, the config.

    The config's are LLaDA's. A block-causal model was trained with its own, which is
    used for None.
    """
    if flag.value is not None or is_block_causal:
        return flag.value
    return config.block_length


def define_sharing() -> flags.FlagHolder[int | None]:
    """Defines --devices_per_model, see `runner.load`."""
    return flags.DEFINE_integer(
        "devices_per_model",
        None,
        "Devices that share one copy of the weights; by default each has its own.",
    )


def define_hosts(may_be_alone: bool = False) -> Callable[..., hosts.Host]:
    """Defines the flags of runs over several hosts.

    Args:
      may_be_alone: see `hosts.start`.

    Returns:
      What joins the other processes; to be called before JAX is used. Takes `may_part`,
      see `hosts.start`.
    """
    coordinator = flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, if several processes share the work.",
    )
    num_processes = flags.DEFINE_integer(
        "num_processes", None, "Number of processes that share the work."
    )
    process_id = flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0."
    )
    is_cluster = flags.DEFINE_bool(
        "cluster",
        False,
        "Let a TPU pod, SLURM or Kubernetes set coordinator and process numbers.",
    )

    def start(may_part: bool = False) -> hosts.Host:
        return hosts.start(
            coordinator.value,
            num_processes.value,
            process_id.value,
            is_cluster=is_cluster.value,
            may_be_alone=may_be_alone,
            may_part=may_part,
        )

    return start


@contextlib.contextmanager
def kept_rows(is_kept: bool = True) -> Iterator[None]:
    """Says, when memory is full, that a run with files can be continued.

    Args:
      is_kept: the run has files; without, nothing is added.
    """
    try:
        yield
    except OutOfMemory as error:
        if not is_kept:
            raise
        raise OutOfMemory(
            f"{error}; finished rows are kept: the same command with a smaller "
            "--batch_size continues"
        ) from error


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses flags, runs main and exits: 1 after bad input, with one line on stderr.

    Bad input is a wrong flag, or what `_told` knows. Any other exception is a defect
    and keeps its traceback. A signal ends the script with one line, and with the status
    that shells expect: 128 and its number.
    """

    def guarded(argv: Sequence[str]) -> int:
        try:
            _prepare()
            if len(argv) > 1:
                raise InputError(f"unexpected arguments: {' '.join(argv[1:])}")
            main(argv)
            _flush()
            if remark := _programs.remark():
                print(remark, file=sys.stderr)
        except Exception as error:
            if (line := _told(error)) is None:
                raise
            _print(line)
            if isinstance(error, BrokenPipeError):
                # What is left in the buffer would fail again at exit.
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except _signals.Stopped as stop:
            if jax.distributed.is_initialized():
                # At exit, JAX would wait for the other processes.
                _flush()
                os._exit(int(str(stop.code)))
            raise
        return 0

    # --help lists the flags that a script shares with others, not only its own.
    for module, own in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments."):
            for flag in own:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    with _signals.handled():
        app.run(guarded, flags_parser=_parse_flags)


def _prepare() -> None:
    """Sets up what is of the process, and not of a script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Any text can be printed, also where the locale is not UTF-8.
            stream.reconfigure(errors="backslashreplace")
    _programs.keep()
    if not flags.FLAGS["verbosity"].present:
        # Orbax reports every step of its work, and warns where nothing is wrong.
        logging.set_verbosity(logging.ERROR)
    if getattr(flags.FLAGS, "dtype", None) == "float64":
        jax.config.update("jax_enable_x64", True)


def _told(error: Exception) -> str | None:
    """The line for a failure that is no defect of the code, None for others.

    That is bad input, what the machine refuses (disk full, permission denied, a sandbox
    that does not start), memory, a package or a backend that is not there, and what JAX
    raises because the environment asks it to be strict.
    """
    text = str(error)
    if isinstance(error, BrokenPipeError):
        return "the output was closed before all was written"
    if isinstance(error, (InputError, OSError)):
        return text or type(error).__name__
    if isinstance(error, MemoryError):
        return f"too little memory on this machine: {text or 'none is left'}"[:300]
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return f"too little memory for this batch and model: {text}"[:300]
    if isinstance(error, ModuleNotFoundError) and not _is_own(error.name):
        return f"the package {error.name} is not installed"
    if line := absent_backend(error):
        return line
    strict = [
        f"{name.upper()}={getattr(jax.config, name)}"
        for name, normal in _STRICT.items()
        if getattr(jax.config, name, normal) not in (normal, None)
    ]
    if strict:
        names = ", ".join(strict)
        kind = type(error).__name__
        return f"dlm_jax does not run with {names}: {kind}: {text}"[:300]
    return None


def _flush() -> None:
    if sys.stdout is not None:  # It may be closed.
        sys.stdout.flush()


def _is_own(module: str | None) -> bool:
    return (module or "dlm_jax").partition(".")[0] in ("dlm_jax", "experiments")


# Options of JAX that raise where code is otherwise correct, with their normal values.
_STRICT = {
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_check_tracer_leaks": False,
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_transfer_guard": "allow",
    "jax_transfer_guard_host_to_device": "allow",
    "jax_transfer_guard_device_to_host": "allow",
    "jax_transfer_guard_device_to_device": "allow",
    "jax_explain_cache_misses": False,
    "jax_disable_jit": False,
    "jax_enable_custom_prng": False,
    "jax_legacy_prng_key": "allow",
}


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
            _print(
                f"{', '.join(named or overrides)} is no field of the config: {reason}"
            )
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
