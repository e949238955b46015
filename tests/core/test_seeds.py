"""Seeds: all of 32 bits and nothing else, wherever one enters."""

import jax
import numpy as np
import pytest

from dlm_jax import tasks
from dlm_jax.core.keys import check_seed, row_keys
from dlm_jax.errors import InputError
from dlm_jax.evaluation import run as evaluation
from dlm_jax.models.registry import random_preset
from dlm_jax.training import loop as training
from experiments.timing import steps

BAD = [-1, 2**32, 2**64, -(2**70)]
MESSAGE = r"\(-?[\d.]+\) must be an integer from 0 to 4294967295$"


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, np.int64(7), np.uint32(3)])
def test_seeds_of_32_bits_are_taken(seed):
    check_seed(seed)


@pytest.mark.parametrize(
    ("seed", "shown"),
    [
        *((seed, str(seed)) for seed in BAD),
        (np.int64(-5), "-5"),
        (10**3000, "100000000000000000...0000000000000000000"),
        (1.0, "1.0"),
        (True, "True"),
        (None, "None"),
        ("7", "'7'"),
    ],
)
def test_anything_else_is_refused_in_one_line(seed, shown):
    with pytest.raises(InputError) as error:
        check_seed(seed, "example_seed")
    message = f"example_seed ({shown}) must be an integer from 0 to 4294967295"
    assert str(error.value) == message


def test_every_seed_and_id_has_draws_of_its_own():
    numbers = [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    rows = [row_keys(seed, np.array([0])) for seed in numbers]
    rows.append(row_keys(5, np.array(numbers)))
    found = np.concatenate([jax.random.key_data(keys) for keys in rows])
    assert len(np.unique(found, axis=0)) == 2 * len(numbers)


@pytest.mark.parametrize("seed", BAD)
def test_keys_of_rows_do_not_wrap(seed):
    with pytest.raises(InputError, match=f"^seed {MESSAGE}"):
        row_keys(seed, np.arange(2))


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_ids_of_rows_do_not_wrap(bad):
    with pytest.raises(InputError, match=f"^ids {MESSAGE}"):
        row_keys(0, np.array([0, bad, 1]))


@pytest.mark.parametrize("seed", BAD)
@pytest.mark.parametrize(
    "take",
    [
        lambda seed: evaluation.lanes(["saber"], (0, seed), is_mixed=False),
        lambda seed: random_preset("tiny", seed=seed),
        lambda seed: training.TrainConfig(num_steps=200, seed=seed),
        lambda seed: steps.synthetic(1, 2, 2, vocab_size=9, seed=seed),
        *(
            lambda seed, name=name: tasks.get(name).examples("valid", 1, seed)
            for name in ("sudoku", "maze", "countdown", "program")
        ),
    ],
)
def test_a_library_call_refuses_other_seeds(take, seed):
    with pytest.raises(InputError, match=MESSAGE):
        take(seed)


@pytest.mark.parametrize("name", ["sudoku", "maze", "countdown", "program"])
@pytest.mark.parametrize(("own", "of_stage"), [(2**32, 0), (0, 2**32)])
def test_training_data_refuse_other_seeds(name, own, of_stage, tmp_path):
    if name == "program":  # Its data have no seed of their own.
        data, of_stage = {}, 2**32
    else:
        data = {"seed": own, "num": 1, "is_advanced": False}
    with pytest.raises(InputError, match=MESSAGE):
        tasks.trainable(name).training_batches(
            data, batch_size=2, seed=of_stage, workdir=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_the_largest_seed_makes_weights():
    one, other = (random_preset("tiny", seed=seed).head for seed in (0, 2**32 - 1))
    assert (one != other).mean() > 0.9


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999"])
@pytest.mark.parametrize(
    ("script", "flag", "name"),
    [
        ("generate --checkpoint=absent", "seed", "seed"),
        ("evaluate --checkpoint=absent --workdir={w}", "seeds", "seeds"),
        ("evaluate --checkpoint=absent --workdir={w}", "example_seed", "example_seed"),
        ("sweep --checkpoint=absent --workdir={w}", "config.seed", "seeds"),
        ("sweep --checkpoint=absent --workdir={w}", "example_seed", "example_seed"),
        ("benchmark --checkpoint=absent", "seed", "seed"),
        ("benchmark --preset=tiny", "seed", "seed"),
        ("leaderboard --workdir={w} --out={w}", "config.seed", "seed"),
        ("leaderboard --workdir={w} --out={w}", "config.example_seed", "example_seed"),
        ("report_eb --checkpoints=absent --workdir={w}", "config.seed", "seed"),
        ("report_saber --checkpoints=absent --workdir={w}", "config.seed", "seed"),
        ("train --workdir={w}", "config.seed", "seed"),
        ("train --workdir={w}", "config.data.seed", "data.seed"),
    ],
)
def test_scripts_refuse_other_seeds_before_they_load(
    script, flag, name, seed, run_script, tmp_path
):
    if script.startswith("sweep"):
        pytest.importorskip("matplotlib")
    arguments = script.format(w=tmp_path / "work").split()
    status, output, errors = run_script(*arguments, f"--{flag}={seed}")
    assert (status, output) == (1, "")
    assert errors == (
        f"error: {name} ({seed}) must be an integer from 0 to 4294967295\n"
    )
    assert not list(tmp_path.iterdir())


def test_the_seed_of_a_later_stage_is_refused_first(run_script, tmp_path):
    status, output, errors = run_script(
        "train", "--config.stages[1].train.seed=-1", f"--workdir={tmp_path}/w"
    )
    assert (status, output) == (1, "")
    assert errors == "error: seed (-1) must be an integer from 0 to 4294967295\n"
    assert not list(tmp_path.iterdir())
