"""Ways to run a program in the sandbox, for several tests."""

import sys

from dlm_jax.sandbox import sandbox
from dlm_jax.sandbox.sandbox import Limits

# A child starts slowly where the machine is busy.
PATIENT = Limits(wall_seconds=60.0)
IS_LINUX = sys.platform == "linux"


def first(source: str, *arguments, limits=PATIENT, **options):
    """Of a program that defines f: all calls, and the only result if there is one."""
    made = sandbox.calls(source, "f", [arguments], limits, **options)
    return made, made.results[0] if made.results else None


def judged(body: str, limits=PATIENT, **options):
    """Verdict on a program that should return 4 for f(2)."""
    return sandbox.run_tests(body, "f", [((2,), 4)], limits, **options)


def checked(body: str, checks: str, limits=PATIENT, **options):
    return sandbox.run_checks(
        body, f"def check(candidate):\n    {checks}\n", "f", limits, **options
    )
