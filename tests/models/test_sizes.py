"""Small files that ask for more memory than there is: the message says which tensor, and nothing is allocated."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper

from chameleon.models.load import ModelError, load_model

pytestmark = pytest.mark.tvm


def graph_file(path: Path, nodes: list[onnx.NodeProto], **weights: list[int]) -> str:
    values = [numpy_helper.from_array(np.array(v, dtype=np.int64), n) for n, v in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return str(path)


node = helper.make_node
TOTAL = [node("ReduceSum", ["huge"], ["sum"], keepdims=0), node("Add", ["x", "sum"], ["y"])]


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("ConstantOfShape", ["s"], ["huge"])], {"s": [1 << 20, 1 << 20]}),
        ([node("Cast", ["s"], ["f"], to=1), node("Expand", ["f", "t"], ["huge"])], {"s": [1], "t": [1 << 40]}),
        ([node("Cast", ["s"], ["f"], to=1), node("Tile", ["f", "t"], ["huge"])], {"s": [1, 2], "t": [1 << 40]}),
        # the size is only known when another constant has been computed, which ONNX's inference does not follow
        ([node("Pow", ["s", "t"], ["p"]), node("ConstantOfShape", ["p"], ["huge"])], {"s": [1 << 10], "t": [4]}),
    ],
    ids=["fill", "expand", "tile", "computed"],
)
def test_a_constant_of_an_onnx_file_that_no_memory_holds(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, list[int]]
) -> None:
    path = graph_file(tmp_path / "small.onnx", [*nodes, *TOTAL], **weights)
    with pytest.raises(ModelError, match=r"small\.onnx: tensor 'huge' .* GiB, this machine has"):
        load_model(path)


def test_an_input_that_no_memory_holds(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "open.onnx", [node("Relu", ["x"], ["y"])])
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="tensor 'x' has the shape"):
        load_model(path, dims={"batch": 1 << 40})
    with pytest.raises(ModelError, match="input 'x' has the shape"):
        load_model("resnet20_cifar10", input_shape=(1 << 40, 3, 32, 32))


class Filling(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(1 << 20, 1 << 22).sum()


def test_a_tensor_of_an_exported_program_that_no_memory_holds(tmp_path: Path) -> None:
    path = tmp_path / "filling.pt2"
    torch.export.save(torch.export.export(Filling(), (torch.zeros(4),)), path)
    with pytest.raises(ModelError, match=r"filling\.pt2: tensor 'ones' has the shape"):
        load_model(str(path))


def test_an_archive_that_unpacks_to_more_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", bytes(1 << 24))
    assert path.stat().st_size < 1 << 15
    monkeypatch.setattr("chameleon.models.sizes.usable_memory_bytes", lambda: 1 << 23)
    with pytest.raises(ModelError, match="it unpacked takes"):
        load_model(str(path))
