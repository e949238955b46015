"""Masked diffusion language models sampled in JAX, in one compiled loop.

    import dlm_jax as dlm

    model = dlm.load("llada-8b", dtype="bfloat16")
    out = model.generate("How many primes are below 50?", "saber(n=2, mu=8)")
    print(out.text, out.nfe)

`__all__` is what stays from release to release; all else is private.
"""

from importlib.metadata import PackageNotFoundError, version

from dlm_jax import caches, likelihood, zoo
from dlm_jax.core.cache import CachePlan
from dlm_jax.core.canvas import (
    Canvas,
    Decision,
    Generation,
    Prediction,
    Prompts,
    Trajectory,
    View,
)
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler, number
from dlm_jax.errors import InputError
from dlm_jax.model import Model, load, sample
from dlm_jax.models import as_denoiser
from dlm_jax.samplers import (
    Cosine,
    Dream,
    Dynamic,
    Entropy,
    EntropyBound,
    Factor,
    FactorReleased,
    Fixed,
    LeftToRight,
    Linear,
    LowConfidence,
    Margin,
    Quota,
    Random,
    Saber,
    SaberReleased,
    Threshold,
    parse,
    select,
    to_spec,
)
from dlm_jax.samplers.schedules import Schedule
from dlm_jax.text.output import Output

try:
    __version__ = version("dlm_jax")
except PackageNotFoundError:  # A clone that was not installed.
    __version__ = "unknown"

__all__ = [
    "CachePlan",
    "Canvas",
    "Cosine",
    "Decision",
    "Denoiser",
    "Dream",
    "Dynamic",
    "Entropy",
    "EntropyBound",
    "Factor",
    "FactorReleased",
    "Fixed",
    "Generation",
    "InputError",
    "LeftToRight",
    "Linear",
    "LowConfidence",
    "Margin",
    "Model",
    "Options",
    "Output",
    "Prediction",
    "Prompts",
    "Quota",
    "Random",
    "Saber",
    "SaberReleased",
    "Sampler",
    "Schedule",
    "Threshold",
    "Trajectory",
    "View",
    "__version__",
    "as_denoiser",
    "caches",
    "likelihood",
    "load",
    "number",
    "parse",
    "sample",
    "select",
    "to_spec",
    "zoo",
]
