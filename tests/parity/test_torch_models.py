"""Weights that go from JAX to PyTorch in memory."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax import checkpoints
from dlm_jax.models import registry

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("dlm_jax.parity.torch_models")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_twin_is_what_its_files_load_as(dtype, tmp_path, monkeypatch):
    model = registry.random_preset("tiny", dtype)
    checkpoints.save_hf(model, tmp_path / "model")
    expected = torch_models.load(tmp_path / "model").state_dict()
    monkeypatch.setattr("builtins.open", None)  # No file is written or read.
    twin = torch_models.twin(model)
    found = twin.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
        # Laid out alike too, which matrix products notice.
        assert weight.dtype == expected[name].dtype
        assert weight.stride() == expected[name].stride()
    assert not twin.training


def test_a_twin_has_weights_of_its_own():
    model = registry.random_preset("tiny", "float32")
    twin = torch_models.twin(model)
    before = {name: weight.clone() for name, weight in twin.state_dict().items()}
    for weight in jax.tree.leaves(nnx.state(model)):
        weight.delete()
    for name, weight in twin.state_dict().items():
        assert torch.equal(weight, before[name])
    places = [weight.data_ptr() for weight in twin.state_dict().values()]
    assert len(set(places)) == len(places)


class Elsewhere:
    """An array on a device that PyTorch does not have."""

    def __init__(self, array):
        self.array = array

    def devices(self):
        return [types.SimpleNamespace(platform="tpu")]

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("place", [lambda x: x, Elsewhere])
def test_an_array_becomes_a_tensor_wherever_it_lies(place, dtype):
    array = jnp.linspace(-3, 7, 12, dtype=dtype).reshape(3, 4)
    found = torch_models.tensor(place(array))
    assert str(found.dtype) == f"torch.{array.dtype}"
    np.testing.assert_array_equal(found.float().numpy(), np.asarray(array, np.float32))
    # No copy where there need not be one.
    is_same = found.data_ptr() == array.unsafe_buffer_pointer()
    assert is_same == (place is not Elsewhere)
