"""The report on EB-Sampler: its rules on made-up results, its parts, a tiny run."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import TableDenoiser, prompts_of
from scipy.sparse import csgraph

from dlm_jax import checkpoints, samplers
from dlm_jax.core import loop
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.evaluation import stats
from dlm_jax.evaluation.run import Summary
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import maze
from experiments.studies.eb_sampler import claims, config, maze_split, report
from experiments.studies.eb_sampler.error_split import Split

CLAIM = claims.Claim(min_ratio=2.5, margin=0.02, floor=0.1)
BASE = "low_confidence"
BOUNDS = ("entropy_bound(gamma=0.1)", "entropy_bound(gamma=0.01)")
OWN = "margin"
COMPARED = tuple((spec, OWN) for spec in BOUNDS)
CURVES = {"one": (BASE,), "own": (OWN,), "bound": BOUNDS}
SHAPE = {"d_model": 8, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 8}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The rules do not depend on how finely an interval is known."""
    monkeypatch.setattr(stats, "_NUM_RESAMPLES", 1000)


def summary(spec, num_right, num, nfe):
    full = samplers.canonical_spec(spec)
    is_correct = np.arange(num)[None] < num_right
    return Summary(
        sampler=full,
        cache="none",
        is_correct=is_correct,
        nfe=np.full((1, num), nfe),
        num_whole=np.full((1, num), nfe),
        num_tokens=np.full((1, num), 30),
        seconds=1.0,
        compile_seconds=0.0,
    )


def section_of(rights, nfes, num=1000):
    """`margin`, the own order of both, has half of the examples right."""
    specs = (BASE, *BOUNDS, OWN)
    ends = (*rights, num // 2), (*nfes, nfes[0])
    results = [summary(s, r, num, n) for s, r, n in zip(specs, *ends, strict=True)]
    return report.section("sudoku", 1000, CURVES, results, BASE, COMPARED, CLAIM)


def judge(rights, nfes, num=1000):
    section = section_of(rights, nfes, num)
    return claims.verdict(section.pairings, rights[0] / num, CLAIM)


def test_pairings_are_differences_on_the_same_examples():
    first, second = section_of((900, 880, 910), (50.0, 10.0, 25.0)).pairings
    assert first.comparison.difference == pytest.approx(-0.02)
    assert (first.comparison.num_first_only, first.comparison.num_second_only) == (
        0,
        20,
    )
    assert first.comparison.p_value == pytest.approx(2 * 0.5**20)
    assert first.ratio == 5.0 and second.ratio == 2.0
    assert (first.tokens_per_forward, second.tokens_per_forward) == (3, 1.2)
    assert first.own_order.difference == pytest.approx(0.38)
    assert second.own_order.difference == pytest.approx(0.41)
    # Two intervals that hold together are each wider than one alone.
    low, high = first.comparison.interval
    assert first.interval[0] < low < -0.02 < high < first.interval[1]
    # Wilson's interval of 900 of 1,000 begins at 0.880; the second is too slow.
    assert not section_of((900, 879, 900), (50.0, 10.0, 25.0)).pairings[0].is_within
    assert section_of((900, 881, 900), (50.0, 10.0, 25.0)).pairings[0].is_within
    assert not second.is_within


@pytest.mark.parametrize(
    ("rights", "nfes", "num", "word", "says"),
    [
        ((900, 899, 880), (50.0, 10.0, 25.0), 1000, "reproduced", "5.00 times fewer"),
        # Neither faster one that loses nor a good one that is slow shows the claim.
        ((900, 850, 900), (50.0, 10.0, 25.0), 1000, "not reproduced", "-5.0 points"),
        ((900, 850, 900), (50.0, 10.0, 18.0), 1000, "reproduced", "+0.0 points"),
        ((900, 900, 900), (50.0, 21.0, 25.0), 1000, "not reproduced", "has 2.38"),
        ((900, 880, 850), (50.0, 10.0, 10.0), 1000, "not reproduced", "-2.0 points"),
        ((45, 44, 43), (50.0, 10.0, 10.0), 50, "unclear", "neither excludes"),
        ((50, 50, 50), (50.0, 10.0, 10.0), 1000, "unclear", "5.0% correct"),
        ((900, 890, 850), (50.0, 10.0, 10.0), 1000, "reproduced", "smaller loss"),
    ],
)
def test_the_verdict_follows_from_intervals(rights, nfes, num, word, says):
    found, why = judge(rights, nfes, num)
    assert found == word and says in why


def test_tasks_that_disagree_get_no_common_verdict():
    same = {"sudoku": ("unclear", ""), "maze": ("unclear", "")}
    assert claims.overall(same).endswith("claim is **unclear**.")
    text = claims.overall(same | {"maze": ("reproduced", "")})
    assert "**unclear** on sudoku" in text and "**reproduced** on maze" in text


def ways(prompt):
    """All shortest paths by breadth-first search over the places of the text."""
    size = maze.NUM_TOKENS
    is_free = np.isin(prompt, [maze.VOCABULARY.index(mark) for mark in "SG"])
    is_free |= prompt == maze.MASK_ID
    graph = np.zeros((size, size))
    for gap in (1, maze.PERIOD):
        (here,) = np.nonzero(is_free[:-gap] & is_free[gap:])
        graph[here, here + gap] = graph[here + gap, here] = 1
    start, goal = (
        int(np.flatnonzero(prompt == maze.VOCABULARY.index(mark))[0]) for mark in "SG"
    )
    left = csgraph.shortest_path(graph, unweighted=True, indices=goal)
    found = [(start,)]
    while found[0][-1] != goal:
        found = [
            (*path, int(place))
            for path in found
            for place in np.flatnonzero(graph[path[-1]])
            if left[place] == left[path[-1]] - 1
        ]
    return {frozenset(path[1:-1]) for path in found}


def test_the_joint_of_a_maze_is_all_its_shortest_paths():
    prompts, paths = maze.random_mazes(np.random.default_rng(0), 25)
    num_several = 0
    for prompt, drawn in zip(prompts, paths, strict=True):
        joint = maze_split.joint(prompt)
        on = maze.VOCABULARY.index("o")
        found = [
            frozenset(np.flatnonzero(row == on).tolist()) for row in joint.outcomes
        ]
        assert len(set(found)) == len(found) and set(found) == ways(prompt)
        np.testing.assert_allclose(joint.probability, 1 / len(found))
        # What the task draws for training is one of them.
        assert (joint.outcomes == drawn).all(1).any()
        num_several += len(found) > 1
    assert num_several > 5


def split_of(nfe, model, dependence, num=40):
    noise = np.random.default_rng(0).uniform(0.9, 1.1, num)
    values = dependence * noise
    return Split(model * noise, values, values / 2, np.full(num, nfe))


def test_sentences_on_the_split_follow_from_intervals():
    splits = {
        "entropy_bound(gamma=0.1)": split_of(20, 1.0, 0.2),
        "entropy_bound(gamma=2)": split_of(5, 1.0, 2.0),
        "entropy_bound(gamma=inf)": split_of(1, 1.0, 5.0),
        "entropy(schedule=fixed(k=4))": split_of(25, 1.0, 0.6),
        "entropy(schedule=fixed(k=20))": split_of(5, 1.0, 1.0),
    }
    assert maze_split.nearest("entropy_bound(gamma=0.1)", splits).endswith("k=4))")
    assert maze_split.nearest("entropy_bound(gamma=inf)", splits) is None
    assert maze_split.sentences(splits) == [
        "At gamma 2, joint dependence costs more than the model's errors.",
        "At gamma 0.1, the model's errors cost more than joint dependence.",
        "At gamma 0.1, the joint dependence error is smaller than that of the fixed k "
        "nearest in forwards.",
        "At gamma 2, the joint dependence error is larger than that of the fixed k "
        "nearest in forwards.",
    ]
    # One token a step depends on nothing: no bound is compared with it.
    alone = split_of(20, 1.0, 0.0)
    splits["entropy(schedule=fixed(k=1))"] = alone
    assert maze_split.nearest("entropy_bound(gamma=0.1)", splits).endswith("k=4))")
    del splits["entropy(schedule=fixed(k=1))"]
    rows = [line.split("|")[1:-1] for line in maze_split.table(splits).splitlines()[2:]]
    assert [row[1].strip() for row in rows] == [
        "20.00",
        "5.00",
        "1.00",
        "25.00",
        "5.00",
    ]
    # Steps of half the error: about 0.1 of a bound of 0.1, 1 of 2, 2.5 of infinity.
    above = float(rows[0][-1].strip().rstrip("%"))
    assert 0 < above < 100 and rows[1][-1].strip() == "0.0%"
    assert len(maze_split.matched_table(splits).splitlines()) == 4


def test_a_report_holds_its_numbers_and_figures(tmp_path):
    section = section_of((900, 899, 850), (50.0, 10.0, 8.0))
    path = tmp_path / "reports" / "eb.md"
    report.write(path, "the command", ["a cpu"], "Set.", [section], {}, CLAIM)
    text = path.read_text()
    assert text.splitlines()[2] == "    the command"
    assert "Set. Measured on a cpu." in text
    assert "- sudoku: **reproduced**: `entropy_bound(gamma=0.1)`" in text
    assert "90.0% correct, NFE 50.00, 0.60 tokens of an answer per forward" in text
    for figure in re.findall(r"\]\((.*?\.png)\)", text):
        assert (path.parent / figure).read_bytes().startswith(b"\x89PNG")
    assert "Where the error comes from" not in text


def test_the_config_compares_what_its_curves_hold():
    whole, quick = config.get_config(), config.get_config()
    quick.update(quick.quick)
    for one in (whole, quick):
        known = {
            samplers.canonical_spec(spec)
            for line in one.curves.values()
            for spec in line
        }
        asked = [samplers.canonical_spec(spec) for spec, _ in one.compared]
        assert len(asked) == 9 and known >= {*asked}
        assert known >= {samplers.canonical_spec(own) for _, own in one.compared}
        assert samplers.to_spec(samplers.parse(one.baseline)) in known


def test_one_token_a_step_has_the_order_of_the_bound_beside_it():
    table = 2 * jax.random.normal(jax.random.key(0), (12, 300))
    prompts = prompts_of([0], 12)
    options = Options(gen_length=12)

    def order(sampler):
        keys = row_keys(0, np.arange(1))
        found = loop.generate(
            TableDenoiser(mask_id=299), table, sampler, prompts, keys, options
        )
        return found.commit_step[0].tolist()

    pairs = dict(config.get_config().compared)
    ways = {own: order(samplers.parse(own)) for own in set(pairs.values())}
    assert len(set(map(tuple, ways.values()))) == 3
    for spec, own in pairs.items():
        # A bound of 0 commits the first position of its order alone.
        alone = dataclasses.replace(samplers.parse(spec), gamma=0.0)
        assert order(alone) == ways[own], spec


CONFIG = """
from experiments.studies.eb_sampler import config as report_eb

def get_config():
    config = report_eb.get_config()
    with config.unlocked():
        config.curves = {
            "one": ("low_confidence",),
            "bound": ("entropy_bound(gamma=0.1)", "entropy_bound(gamma=0.01)"),
        }
    config.compared = [(spec, "low_confidence") for spec in config.curves.bound]
    config.num_examples = 3
    config.batch_size = config.queue_length = 3
    config.error_split_specs = ("entropy_bound(gamma=inf)", "entropy_bound")
    config.error_split_examples = 2
    return config
"""


@pytest.mark.parametrize(
    ("curves", "compared", "message"),
    [
        (CURVES, (), "compared must name at least one sampler"),
        ({"bound": BOUNDS}, COMPARED, "curves must have entropy_bound and another"),
        ({"one": (BASE,)}, COMPARED, "curves must have entropy_bound and another"),
        ({**CURVES, "own": ("entropy",)}, COMPARED, "margin is compared, so it must"),
    ],
)
def test_what_cannot_be_compared_is_refused(curves, compared, message):
    with pytest.raises(InputError, match=message):
        report.check(curves, BASE, compared)
    report.check(CURVES, BASE, COMPARED)


def test_what_is_compared_must_stand_in_a_curve(tmp_path, run_script):
    text = CONFIG.replace('"low_confidence"', '"margin"')
    (tmp_path / "config.py").write_text(text)
    status, _, err = run_script(
        "report_eb", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'x'}"
    )
    assert status == 1 and not (tmp_path / "x").exists()
    assert err == (
        "error: low_confidence is compared, so it must be in one of curves\n"
    )


def test_the_script_writes_a_report_and_repeats_it_from_its_records(
    tmp_path, run_script
):
    task = maze.Maze()
    graph, params = nnx.split(LLaDA(task.model_config(**SHAPE), rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, jax.tree.map(lambda weight: 4 * weight, params))
    files = task.tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoints.save_hf(model, tmp_path / "models" / "maze", files)
    (tmp_path / "config.py").write_text(CONFIG)
    arguments = (
        f"--config={tmp_path / 'config.py'}",
        "--tasks=maze",
        f"--checkpoints={tmp_path / 'models'}",
        f"--workdir={tmp_path / 'runs'}",
        f"--output={tmp_path / 'eb.md'}",
    )
    status, out, err = run_script("report_eb", *arguments)
    assert status == 0, err
    assert out == f"Wrote {tmp_path / 'eb.md'}\n"
    text = (tmp_path / "eb.md").read_text()
    assert "## maze" in text and "Where the error comes from" in text
    # One step writes everything, whatever the model: what depends is lost.
    (line,) = re.findall(r"\n\| `entropy_bound\(gamma=inf\)`.*", text)
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    assert cells[1] == "1.00" and float(cells[3].split()[0]) > 0
    stored = sorted(p for p in tmp_path.rglob("runs/**/*") if p.is_file())
    before = [p.stat().st_mtime_ns for p in stored]
    assert len(stored) == 4
    assert run_script("report_eb", *arguments)[0] == 0
    assert [p.stat().st_mtime_ns for p in stored] == before
    assert (tmp_path / "eb.md").read_text() == text
