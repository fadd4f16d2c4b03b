"""Models from all three sources, and what is said of those that cannot be loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("tvm")

import tvm
from onnx import TensorProto, helper
from tvm import relax

from chameleon.errors import ChameleonError, UsageError
from chameleon.models.load import ModelError, input_arrays, load_model, model_names
from tests.support.tiny_models import NETWORKS, reference, save_onnx, save_pt2

pytestmark = pytest.mark.tvm
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def run(mod: tvm.IRModule, x: np.ndarray) -> np.ndarray:
    result = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())["main"](tvm.runtime.tensor(x))
    return (result if isinstance(result, tvm.runtime.Tensor) else result[0]).numpy()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_file_computes_what_pytorch_does_without_batch_norms(name: str, suffix: str, tmp_path: Path) -> None:
    path = (save_pt2 if suffix == "pt2" else save_onnx)(name, tmp_path / f"{name}.{suffix}")
    model = load_model(str(path))
    (x,) = input_arrays(model, np.random.default_rng(1))
    assert (model.name, model.inputs[0].name, model.inputs[0].shape) == (name, "x", NETWORKS[name][1])
    text = model.mod.script(show_meta=False)
    assert "batch_norm" not in text
    assert "dropout" not in text
    expected = reference(name, x)
    assert model.outputs[0].shape == expected.shape
    np.testing.assert_allclose(run(model.mod, x), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_disappears_into_the_convolution_before_it(tmp_path: Path) -> None:
    text = load_model(str(save_pt2("residual", tmp_path / "r.pt2"))).mod.script(show_meta=False)
    assert text.count("R.nn.conv2d(") == 3
    assert text.count("R.add(") == 3 + 1 + 1  # a bias each, the residual sum, the dense layer's bias
    assert "R.multiply(" not in text
    shared = load_model(str(save_pt2("shared", tmp_path / "s.pt2"))).mod.script(show_meta=False)
    assert shared.count("R.nn.conv2d(") == 1  # not once for each reader


def test_the_fingerprint_sees_weights_and_is_the_same_in_another_process(tmp_path: Path) -> None:
    path = save_pt2("residual", tmp_path / "r.pt2")
    ours = load_model(str(path)).fingerprint
    code = f"from chameleon.models.load import load_model; print(load_model({str(path)!r}).fingerprint)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.split()[-1] == ours
    assert load_model(str(save_pt2("mobile", tmp_path / "m.pt2"))).fingerprint != ours
    assert load_model("resnet20_cifar10", seed=1).fingerprint != load_model("resnet20_cifar10").fingerprint


def test_a_zoo_network_needs_no_download_and_leaves_the_random_state() -> None:
    before = torch.random.get_rng_state()
    model = load_model("ResNet20_CIFAR10", input_shape=(2, 3, 32, 32))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (model.name, model.outputs[0].shape) == ("resnet20_cifar10", (2, 10))
    assert "resnet18" in model_names()
    with pytest.raises(UsageError, match="resnet18"):
        load_model("resnet_18")
    with pytest.raises(ModelError, match="resnet18: PyTorch cannot"):
        load_model("resnet18", input_shape=(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet"])
def test_the_networks_that_come_with_onnx_load(name: str) -> None:
    model = load_model(str(LIGHT / f"{name}.onnx"))
    text = model.mod.script(show_meta=False)
    assert all(op not in text for op in ("batch_norm", "dropout", "R.stack("))


def test_open_dimensions_are_named_and_can_be_fixed(tmp_path: Path) -> None:
    path = save_onnx("residual", tmp_path / "r.onnx", dynamic_axes={"x": {0: "batch", 2: "height"}})
    with pytest.raises(ModelError, match=r"'x'.*0 \('batch'\), 2 \('height'\).*--input-shape 1,3,224,16"):
        load_model(str(path))
    assert load_model(str(path), input_shape=(2, 3, 16, 16)).outputs[0].shape == (2, 10)
    assert load_model(str(path), input_shape={"x": (2, 3, 16, 16)}).inputs[0].shape == (2, 3, 16, 16)
    with pytest.raises(ModelError, match="does not fit"):
        load_model(str(path), input_shape=(2, 4, 16, 16))
    with pytest.raises(ChameleonError, match="did you mean x"):
        load_model(str(path), input_shape={"xx": (2, 3, 16, 16)})
    dynamic = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=2, max=8)},)}
    exported = save_pt2("attention", tmp_path / "a.pt2", **dynamic)
    with pytest.raises(ModelError, match=r"'x'.*dimension 0 "):
        load_model(str(exported))
    model = load_model(str(exported), input_shape=(3, 6, 16))
    (x,) = input_arrays(model, np.random.default_rng(0))
    np.testing.assert_allclose(run(model.mod, x), reference("attention", x), rtol=1e-4, atol=1e-5)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    whole = save_onnx("residual", tmp_path / "whole.onnx").read_bytes()
    for name, content, words in [
        ("cut.onnx", whole[: len(whole) // 2], "cut off|broken|not an ONNX"),
        ("text.onnx", b"hello, I am text", "not an ONNX file"),
        ("empty.onnx", b"", "not an ONNX file"),
        ("text.pt2", b"hello", "torch.export.save"),
        ("weights.pth", b"", "torch.export.save"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=words):
            load_model(str(tmp_path / name))
    with pytest.raises(UsageError, match="no such file"):
        load_model(str(tmp_path / "missing.onnx"))


def test_unsupported_operators_are_named_with_their_place(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="strange", domain="made.up")
    graph = helper.make_graph([node], "g", [value], [out])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("made.up", 1)]
    path = tmp_path / "strange.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    with pytest.raises(ModelError, match="Frobnicate at 'strange'"):
        load_model(str(path))

    class Strange(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x @ x.T)

    torch.export.save(torch.export.export(Strange(), (torch.randn(3, 3),)), tmp_path / "strange.pt2")
    with pytest.raises(ModelError, match=r"unsupported operator .*eigh.* \(test_model.py:\d+\)"):
        load_model(str(tmp_path / "strange.pt2"))
