"""A small model and races of it, for several tests."""

from dlm_jax import samplers
from dlm_jax.core.options import Options
from dlm_jax.tasks import sudoku
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import pad
from experiments.timing import races

SUDOKU = sudoku.Sudoku()
SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 2, "mlp_hidden_size": 48}


def prompts_of(num):
    config = SUDOKU.model_config(**SHAPE)
    codec = Codec.of(SUDOKU.tokenizer(), config)
    return pad(SUDOKU.encode(codec, SUDOKU.examples("test", num)), 90)


def race(
    parallel,
    specs,
    num_slots=1,
    num_pairs=2,
    block_length=None,
    references=None,
    **options,
):
    """A race of two rows; references fill, whatever the options."""
    references = references or {}
    rules = {spec: samplers.parse(spec) for spec in specs}
    loop = Options(60, block_length, num_slots=num_slots)
    return races.race(
        parallel,
        rules,
        prompts_of(2),
        loop,
        forward=float,
        num_pairs=num_pairs,
        references={
            name: lambda options, fill=fill: fill for name, fill in references.items()
        },
        **options,
    )
