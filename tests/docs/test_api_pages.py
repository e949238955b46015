"""Every public name is on the API page, and every sampler has a page of its own."""

import pathlib
import re

import pytest

import dlm_jax as dlm
from dlm_jax import samplers

DOCS = pathlib.Path(__file__).parents[2] / "docs"
# The template of a sampler's page.
HEADINGS = [
    "Rule",
    "Parameters",
    "Cost in forwards",
    "When to use it",
    "Published numbers",
    "Measured numbers",
    "Source",
]


def test_the_api_page_has_the_public_names_and_no_other():
    text = (DOCS / "api.md").read_text()
    directives = re.findall(r"^\.\. auto\w+:: dlm_jax\.([\w.]+)", text, re.MULTILINE)
    modules = re.findall(r"^### dlm_jax\.(\w+)$", text, re.MULTILINE)
    names = [name for name in directives if "." not in name and name not in modules]
    found = [*names, *modules, "__version__"]
    assert "`dlm_jax.__version__`" in text
    assert sorted(found) == sorted(dlm.__all__)
    # `select` is documented where it is defined.
    for module in modules:
        assert getattr(dlm, module).__name__ in {f"dlm_jax.{x}" for x in directives}


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_each_sampler_has_a_page_on_the_template(name):
    text = (DOCS / "samplers" / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    # The two ways to name it: both are the same sampler.
    spec = re.search(r"--sampler='(.*)'", text).group(1)
    call = re.search(r"^ +(dlm\..*)$", text, re.MULTILINE).group(1)
    rule = eval(call, {"dlm": dlm})
    assert samplers.parse(spec) == rule
    assert type(rule) is samplers.SAMPLERS[name]
    # Every field is explained, with its default.
    parameters = text.split("## Parameters")[1].split("## Cost")[0]
    for field in vars(rule):
        assert f"| `{field}` |" in parameters


@pytest.mark.parametrize("page", ["README.md", "docs/samplers/index.md"])
def test_the_tables_of_samplers_are_complete(page):
    text = (DOCS.parent / page).read_text()
    table = text.split("| spec, with defaults |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| \[?`(\w+)", table, re.MULTILINE)
    assert sorted(rows) == sorted(samplers.SAMPLERS)


def test_readme_is_short():
    assert len((DOCS.parent / "README.md").read_text().splitlines()) <= 150


def test_the_architecture_names_every_module_and_no_other():
    text = (DOCS / "architecture.md").read_text()
    table = text.split("## One line per module")[1].split("Outside of the package")[0]
    named = set(re.findall(r"`([\w/]+\.py)`", table))
    package = DOCS.parent / "dlm_jax"
    paths = {name.removeprefix("dlm_jax/") for name in named}
    assert [path for path in sorted(paths) if not (package / path).is_file()] == []
    # Complete for all rooms.
    files = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(files - paths) == []
