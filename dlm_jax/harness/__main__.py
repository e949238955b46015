"""lm_eval's own command line, with `dlm_jax` among the models.

    python -m dlm_jax.harness --model dlm_jax --model_args checkpoint=DIR --tasks gsm8k

All arguments are lm_eval's. Errors that a user can fix are one line.
"""

import sys

from lm_eval.__main__ import cli_evaluate

from dlm_jax.errors import InputError

if __name__ == "__main__":
    try:
        cli_evaluate()
    except InputError as error:
        sys.exit(f"dlm_jax: {error}")
