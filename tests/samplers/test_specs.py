"""Specs of samplers: what is written is read back, and everything else is refused."""

import dataclasses
import itertools
import math
import pathlib
import sys

import flax.struct
import jax
import numpy as np
import pytest
from helpers import TABLE

from dlm_jax import samplers
from dlm_jax.core.sampler import Sampler, canonical
from dlm_jax.errors import InputError
from dlm_jax.samplers import spec as spec_module
from dlm_jax.samplers.schedules import Cosine, Dream, Fixed, Linear, Quota

SCHEDULED = ["random", "left_to_right", "low_confidence", "margin", "entropy"]
SCHEDULES = ["fixed(k=3)", "quota(steps=3)", "linear(steps=7)", "cosine(steps=9)"]
SCHEDULES += ["dream(steps=5, eps=0.01)"]
SPECS = [
    *(f"{name}(schedule={schedule})" for name in SCHEDULED for schedule in SCHEDULES),
    "threshold(threshold=0.75)",
    "dynamic(threshold=0.75, schedule=quota(steps=8))",
    "dynamic(threshold=0.75, schedule=fixed(k=2))",
    "factor(factor=1.5)",
    "factor_released(factor=0.5)",
    *(
        f"entropy_bound(gamma=0.2, error_proxy={proxy!r})"
        for proxy in ("entropy", "confidence", "margin")
    ),
    "entropy_bound(gamma=inf, error_proxy='entropy')",
    "saber(n=3, mu=4.5, threshold=0.8, acceleration=True, backtracking=False)",
    "saber(n=3, mu=4.5, threshold=None, acceleration=False, backtracking=False)",
    "saber(n=3, mu=4.5, threshold=None, acceleration=True, backtracking=True)",
    "saber_released(n=4)",
    *map(samplers.canonical_spec, TABLE),
]


@pytest.mark.parametrize("spec", SPECS)
def test_to_spec_gives_back_what_was_parsed(spec):
    sampler = samplers.parse(spec)
    assert samplers.to_spec(sampler) == spec
    assert samplers.parse(samplers.to_spec(sampler)) == sampler


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_bare_name_takes_the_defaults(name):
    sampler = samplers.parse(name)
    assert type(sampler) is samplers.SAMPLERS[name]
    assert sampler == samplers.SAMPLERS[name]()
    assert samplers.parse(f"  {name}( )\n") == sampler
    assert samplers.parse(samplers.to_spec(sampler)) == sampler


def test_a_file_is_all_that_a_new_sampler_needs(tmp_path, monkeypatch):
    """The registry finds every class in a file of the package."""
    written = pathlib.Path(samplers.__file__).with_name("threshold.py").read_text()
    (tmp_path / "my_threshold.py").write_text(
        written.replace("class Threshold", "class MyThreshold")
    )
    paths = [*samplers.__path__, str(tmp_path)]
    monkeypatch.setattr(samplers, "__path__", paths)
    monkeypatch.setattr(spec_module, "FOLDERS", paths)
    found = spec_module.find_samplers()
    assert set(found) == {*samplers.SAMPLERS, "my_threshold"}
    assert issubclass(found["my_threshold"], Sampler)
    sys.modules.pop("dlm_jax.samplers.my_threshold")


def test_specs_cover_every_sampler():
    assert {spec.partition("(")[0] for spec in SPECS} == set(samplers.SAMPLERS)


def test_no_two_classes_share_a_compiled_program():
    # JAX finds compiled programs by the equality of tree structures.
    structures = {}
    for spec in SPECS:
        sampler = samplers.parse(spec)
        classes = (type(sampler), type(getattr(sampler, "schedule", None)))
        structures.setdefault(classes, []).append(jax.tree.structure(sampler))
    for one, other in itertools.combinations(structures, 2):
        for left, right in itertools.product(structures[one], structures[other]):
            assert left != right


def test_a_rule_cannot_be_registered_as_another_dataclass():
    with pytest.raises((TypeError, ValueError)):

        @flax.struct.dataclass
        class Mine(samplers.LowConfidence):
            pass


def test_rules_are_trees_of_their_numbers():
    rule = samplers.parse("saber(n=3, mu=4.5, backtracking=False)")
    leaves, structure = jax.tree.flatten_with_path(rule)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert names == [".n", ".mu"]
    assert jax.tree.unflatten(structure, [3, 4.5]) == rule
    assert structure != jax.tree.structure(samplers.parse("saber(n=3, mu=4.5)"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.n = 4


def test_fields_arrive_where_they_are_named():
    saber = samplers.parse("saber(mu=4, n=3, backtracking=False)")
    assert (saber.n, saber.mu, saber.backtracking) == (3, 4, False)
    assert samplers.parse("entropy_bound(gamma=inf)").gamma == math.inf
    for spec, schedule in [
        ("fixed", Fixed(1)),
        ("quota(steps=16)", Quota(16)),
        ("linear(steps=16)", Linear(16)),
        ("cosine(steps=3)", Cosine(3)),
        ("dream(eps=0.5, steps=9)", Dream(9, 0.5)),
    ]:
        assert samplers.parse(f"margin(schedule={spec})").schedule == schedule


def test_spec_of_a_sampler_with_arrays_reads_back():
    """`canonical` turns fields into arrays; a table of results still names them."""
    sampler = samplers.parse("saber(n=3, mu=0.1)")
    again = samplers.parse(samplers.to_spec(canonical(sampler)))
    assert (again.n, np.float32(again.mu)) == (3, np.float32(0.1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "entropy_bound(error_proxy=margin)",
            "must be a literal; if it is a text, in quotes: error_proxy='margin'",
        ),
        ("sabre", "sampler (sabre) must be one of dynamic, entropy, entropy_b"),
        ("sabre(n=2)", "sampler (sabre) must be one of"),
        ("samplers.saber(n=2)", "sampler (samplers.saber) must be one of"),
        ("linear(steps=4)", "sampler (linear) must be one of"),
        ("3", "sampler (3) must be one of"),
        ("saber(tau=2)", "saber has no field tau; it takes n, mu, threshold"),
        ("saber(needs=())", "saber has no field needs"),
        ("saber(2)", "sampler ('saber(2)'): write fields as name=value"),
        ("saber(**{'n': 2})", "write fields as name=value"),
        ("saber(n=2, n=3)", "saber: n is given twice"),
        ("saber(n=m)", "saber: n (m) must be a literal"),
        ("saber(n=1 + 1)", "saber: n (1 + 1) must be a literal"),
        ("saber(n=exit())", "saber: n (exit()) must be a literal"),
        ("threshold(threshold={[]: 1})", "must be a literal"),
        ("saber(n=2.5)", "n (2.5) must be an integer"),
        ("saber(n=inf)", "n (inf) must be an integer"),
        ("saber(n=None)", "n (None) must be an integer"),
        ("saber(n=True)", "n (True) must be an integer"),
        ("saber(n=99999999999)", "n (99999999999) must be an integer of 32 bits"),
        ("saber(mu='8')", "mu ('8') must be a number"),
        ("saber(mu=None)", "mu (None) must be a number"),
        ("saber(acceleration=2)", "acceleration (2) must be True or False"),
        (
            "saber(acceleration=False, threshold=0.5)",
            "threshold (0.5) has no effect without acceleration",
        ),
        ("saber(backtracking='no')", "backtracking ('no') must be True or False"),
        ("threshold(threshold=(0.9, 0.8))", "threshold ((0.9, 0.8)) must be a number"),
        ("threshold(threshold=0.5j)", "threshold (0.5j) must be a number"),
        (
            "entropy_bound(error_proxy='luck')",
            "error_proxy ('luck') must be one of ent",
        ),
        ("entropy_bound(error_proxy=['entropy'])", "error_proxy (['entropy']) must be"),
        ("saber_released(n=0)", "n (0) must be an integer of at least 1"),
        ("saber_released(n=2.0)", "n (2.0) must be an integer of at least 1"),
        ("random(schedule=3)", "schedule (3) must be one of fixed, quota, linear"),
        ("random(schedule=saber(n=2))", "schedule (saber) must be one of fixed"),
        ("random(schedule='linear')", "schedule ('linear') must be one of fixed"),
        ("random(schedule=linear(16))", "write fields as name=value"),
        ("random(schedule=linear(k=1))", "linear has no field k; it takes steps"),
        ("random(schedule=linear(steps=2.5))", "steps (2.5) must be an integer"),
        ("random(schedule=linear(steps=fixed))", "steps (fixed) must be a literal"),
        ("random(schedule=dream(steps=0))", "steps (0) must be an integer of at least"),
        ("random(schedule=dream(steps='4'))", "steps ('4') must be an integer"),
        ("random(schedule=dream(eps='x'))", "eps ('x') must be a number"),
        ("saber(n=0)", "saber: n (0) must be at least 1"),
        ("saber(mu=0)", "saber: mu (0) must be above 0"),
        ("saber(threshold=-0.1)", "saber: threshold (-0.1) must be at least 0"),
        ("saber(threshold=inf)", "saber: threshold (inf) must be at most 1"),
        ("threshold(threshold=2)", "threshold: threshold (2) must be at most 1"),
        ("factor(factor=-1)", "factor: factor (-1) must be at least 0"),
        ("factor_released(factor=-1)", "factor_released: factor (-1) must be at least"),
        ("entropy_bound(gamma=-1)", "entropy_bound: gamma (-1) must be at least 0"),
        ("margin(schedule=fixed(k=0))", "fixed: k (0) must be at least 1"),
        ("margin(schedule=linear(steps=0))", "linear: steps (0) must be at least 1"),
        ("margin(schedule=cosine(steps=-2))", "cosine: steps (-2) must be at least 1"),
        ("margin(schedule=dream(eps=1.5))", "dream: eps (1.5) must be at most 1"),
        ("saber(n=2", "sampler ('saber(n=2') must be a name or a call like saber(n=2)"),
        ("", "sampler ('') must be a name or a call"),
        ("saber; random", "must be a name or a call"),
        ("saber\0", "must be a name or a call"),
        ("saber(n=" + "-" * 5000 + "1)", "must be a name or a call"),
    ],
)
def test_bad_specs_answer_with_one_clear_line(spec, message):
    with pytest.raises(InputError) as error:
        samplers.parse(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("threshold(threshold={})", "0 1 0.1"),
        ("factor(factor={})", "0 1 0.1 inf"),
        ("entropy_bound(gamma={})", "0 1 0.1 inf"),
        ("saber(mu={}, threshold=0.5)", "1 0.1 inf"),
        ("saber(threshold={})", "0 1 0.1"),
        ("entropy(schedule=dream(eps={}))", "0 1 0.1"),
    ],
)
def test_any_number_leads_to_the_same_types(spec, values):
    """So that a change of threshold does not compile again."""
    one = canonical(samplers.parse(spec.format("0.9")))
    hash(jax.tree.structure(one))
    for value in values.split():
        other = canonical(samplers.parse(spec.format(value)))
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert jax.tree.map(jax.typeof, one) == jax.tree.map(jax.typeof, other)


def test_a_value_per_row_is_checked_like_one():
    rule = samplers.Saber(mu=np.array([4.0, 0.5, np.inf]), threshold=np.float32(0.5))
    assert canonical(rule, (3,)).mu.tolist() == [4, 0.5, np.inf]
    with pytest.raises(InputError, match=r"^Saber: mu \(-2.0\) must be above 0$"):
        canonical(samplers.Saber(mu=np.array([4.0, -2.0, -3.0])), (3,))


def test_numbers_that_jax_traces_are_not_checked():
    """What is sampled has been; in a transformation nobody knows them."""
    rule = canonical(samplers.parse("saber(n=3, threshold=0.5)"))
    assert jax.jit(lambda rule: jax.tree.map(lambda x: -x, rule))(rule).n == -3
