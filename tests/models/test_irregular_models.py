"""The irregular cells on TVM: what Relax computes is what PyTorch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("tvm")

import tvm
from tvm import relax

from chameleon.models.irregular import cell
from chameleon.models.load import input_arrays, load_model
from chameleon.models.pytorchcv import zoo_network

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize("name", ["randwire-cifar100-c", "darts-normal-cell", "swiftnet-hpd", "ws16", "ws32-mixed"])
def test_relax_computes_what_pytorch_does(name: str) -> None:
    model = load_model(name, seed=3)
    assert {spec.name: spec.shape[1:] for spec in model.inputs} == cell(name).inputs
    assert "batch_norm" not in model.mod.script(show_meta=False)
    arrays = input_arrays(model, np.random.default_rng(1))
    with torch.no_grad():
        expected = zoo_network(name, 3).module(*map(torch.from_numpy, arrays)).numpy()
    assert model.outputs[0].shape == expected.shape
    result = relax.VirtualMachine(tvm.compile(model.mod, "llvm"), tvm.cpu())["main"](*map(tvm.runtime.tensor, arrays))
    found = (result if isinstance(result, tvm.runtime.Tensor) else result[0]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


def test_an_irregular_cell_takes_other_resolutions_and_refuses_other_channels() -> None:
    assert load_model("ws16", input_shape=(1, 16, 8, 8)).outputs[0].shape == (1, 16, 8, 8)
    smaller = {"s0": (1, 48, 14, 14), "s1": (1, 48, 14, 14)}
    assert load_model("darts-normal-cell", input_shape=smaller).outputs[0].shape == (1, 48, 14, 14)
    with pytest.raises(Exception, match="ws16: PyTorch cannot"):
        load_model("ws16", input_shape=(1, 3, 16, 16))
