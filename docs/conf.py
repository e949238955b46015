"""How Sphinx builds this site.

sphinx-build -W --keep-going -b html docs docs/_build
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
# The package, the studies that pages include, and the extension beside this file.
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

import dlm_jax  # noqa: E402

project = "dlm_jax"
author = "The dlm_jax developers"
copyright = "the dlm_jax developers"
release = version = dlm_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "leaderboard",
]
exclude_patterns = ["_build", "examples"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "dlm_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Docstrings say shapes and dtypes in words, and write code in single backticks.
autodoc_typehints = "none"
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80


def _escape(app, what, name, obj, options, lines):
    """Docstrings are plain text: |x| is an absolute value, not a substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _escape)
