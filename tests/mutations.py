"""Breaks the core on purpose and counts how many of the breaks the tests notice.

    python tests/mutations.py [NAME ...]

Each mutation replaces one piece of text in one file of a copy of the repository and
runs the tests that belong to it. A mutation that no test catches is printed, as is the
share caught; equivalent ones, which change nothing, are named with the reason and not
counted. Tests that take five times as long as without the mutation, and a minute, count
as noticing. Exit status 1 if less than 95 % are caught. Takes long, so it is run by
hand; the result is in WORKSPACE.md.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from mutation_list import MUTATIONS, Mutation

ROOT = pathlib.Path(__file__).parents[1]
LEAST_SHARE = 0.95


def _run(
    tests: tuple[str, ...], copy: pathlib.Path, seconds: float | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    return subprocess.run(
        command, cwd=copy, capture_output=True, text=True, timeout=seconds
    )


@functools.cache
def _limit(tests: tuple[str, ...], copy: pathlib.Path) -> float:
    """Seconds after which tests do not end; they pass without a mutation."""
    start = time.perf_counter()
    run = _run(tests, copy)
    if run.returncode:
        raise SystemExit(f"error: without a mutation: {run.stdout[-2000:]}")
    return 60 + 5 * (time.perf_counter() - start)


def check(mutation: Mutation, copy: pathlib.Path) -> bool:
    """Whether a test notices the mutation, made in a copy of the repository."""
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise SystemExit(
            f"error: {mutation.name!r}: its text stands {text.count(mutation.old)} "
            f"times in {mutation.file}, must stand once"
        )
    limit = _limit(mutation.tests, copy)
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        run = _run(mutation.tests, copy, limit)
    except subprocess.TimeoutExpired:
        return True  # Tests that do not end notice it too.
    finally:
        path.write_text(text, encoding="utf-8")
    # 1 is pytest's status for failed tests; others are mistakes in the list.
    if run.returncode not in (0, 1):
        raise SystemExit(f"error: {mutation.name!r}: {run.stdout[-2000:]}")
    return run.returncode == 1


def main(names: list[str]) -> int:
    """Makes the named mutations, or all; see the module's docstring."""
    unknown = set(names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        print(f"error: no mutation is named {', '.join(sorted(unknown))}")
        return 1
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    num_caught = num_counted = 0
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory, "copy")
        # Mutated programs differ from the others in places; the rest compiles once.
        os.environ["DLM_JAX_TEST_PROGRAMS"] = str(pathlib.Path(directory, "programs"))
        ignored = shutil.ignore_patterns(".git", "runs", "__pycache__", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutation in chosen:
            if mutation.equivalent:
                print(f"equivalent  {mutation.name}: {mutation.equivalent}", flush=True)
                continue
            is_caught = check(mutation, copy)
            num_caught += is_caught
            num_counted += 1
            verdict = "caught    " if is_caught else "SURVIVED  "
            print(f"{verdict}  {mutation.name}", flush=True)
    share = num_caught / max(num_counted, 1)
    print(f"{num_caught} of {num_counted} caught ({share:.0%})")
    return 0 if share >= LEAST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
