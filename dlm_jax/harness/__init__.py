"""lm-evaluation-harness with `dlm_jax` among its models; needs the extra `eval`.

lm_eval looks for no plugins, so something has to import this package before lm_eval
looks for the model: `python -m dlm_jax.harness` does, and then runs lm_eval's own
command line. In Python, `import dlm_jax.harness` is enough.
"""

try:
    # lm_eval fills an empty registry only, so its own models are registered first.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise ModuleNotFoundError(
        "dlm_jax.harness needs lm-eval: pip install 'dlm_jax[eval]'", name=error.name
    ) from None

__all__ = ["NAME"]

# What `--model` calls it.
NAME = "dlm_jax"

if NAME not in model_registry:
    # Registered by its path, so that listing tasks does not import JAX.
    model_registry.register(NAME, target="dlm_jax.harness.adapter:DlmJax")
