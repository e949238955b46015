"""What importing the package does not import."""

import pathlib
import subprocess
import sys

import dlm_jax

# Each takes long to import, and is needed by few.
_LATER = ("orbax", "transformers", "torch", "tensorstore", "matplotlib")


def test_no_room_imports_what_only_some_calls_need():
    root = pathlib.Path(dlm_jax.__file__).parent
    modules = {
        ".".join(("dlm_jax", *path.relative_to(root).with_suffix("").parts))
        for path in root.rglob("*.py")
        if path.name != "__init__.py"
    }
    # Those that are run as programs of their own, and those that are PyTorch's side.
    alone = {"dlm_jax.sandbox.child"}
    alone |= {name for name in modules if name.startswith("dlm_jax.parity.")}
    # Needs the extra eval.
    alone |= {name for name in modules if name.startswith("dlm_jax.harness.")}
    script = f"""
import importlib, sys
for name in {sorted(modules - alone)!r}:
    importlib.import_module(name)
print([name for name in {_LATER!r} if name in sys.modules])
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root.parent)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
