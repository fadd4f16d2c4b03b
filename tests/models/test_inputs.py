"""Random inputs: ids inside the smallest table that they index, masks that mask, whole ranges of 8-bit numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from chameleon.models.inputs import SMALL, index_limits, input_arrays
from chameleon.models.load import load_model

pytestmark = pytest.mark.tvm

INT64, FLOAT, UINT8 = TensorProto.INT64, TensorProto.FLOAT, TensorProto.UINT8


def write(path: Path, nodes: list, inputs: list, output: tuple, weights: dict[str, np.ndarray]) -> str:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [info(*i) for i in inputs],
        [info(*output)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return str(path)


def tables(*rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"t{i}": rng.standard_normal((n, 4)).astype("float32") for i, n in enumerate(rows)}


def test_ids_stay_below_the_smallest_table(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Gather", ["t0", "ids"], ["a"]),
        node("Gather", ["t1", "ids"], ["b"]),
        node("Gather", ["t2", "types"], ["c"]),
        node("Add", ["a", "b"], ["ab"]),
        node("Add", ["ab", "c"], ["abc"]),
        node("Cast", ["attention_mask"], ["m"], to=FLOAT),
        node("Unsqueeze", ["m", "axes"], ["mm"]),
        node("Mul", ["abc", "mm"], ["y"]),
    ]
    inputs = [("ids", INT64, [1, 300]), ("types", INT64, [1, 300]), ("attention_mask", INT64, [1, 300])]
    weights = {**tables(90, 50, 3), "axes": np.array([-1])}
    model = load_model(write(tmp_path / "net.onnx", nodes, inputs, ("y", FLOAT, [1, 300, 4]), weights))
    assert index_limits(model.mod) == {0: 50, 1: 3}
    ids, types, mask = input_arrays(model, np.random.default_rng(0))
    assert (ids.min(), ids.max()) == (0, 49)
    assert set(types.ravel()) == {0, 1, 2}
    assert mask.ravel().tolist() == [1] * 200 + [0] * 100


def test_arithmetic_before_the_index_leaves_zeros_and_ones(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [node("Mul", ["ids", "ids"], ["squares"]), node("Gather", ["t0", "squares"], ["y"])]
    path = write(tmp_path / "net.onnx", nodes, [("ids", INT64, [1, 50])], ("y", FLOAT, [1, 50, 4]), tables(20))
    (ids,) = input_arrays(load_model(path), np.random.default_rng(0))
    assert set(ids.ravel()) == {0, 1}


def test_floats_that_become_an_index_are_whole_and_inside(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [node("Cast", ["ids"], ["whole"], to=INT64), node("Gather", ["t0", "whole"], ["y"])]
    path = write(tmp_path / "net.onnx", nodes, [("ids", FLOAT, [1, 200])], ("y", FLOAT, [1, 200, 4]), tables(20))
    (ids,) = input_arrays(load_model(path), np.random.default_rng(0))
    assert set(ids.ravel()) == set(range(20))


def test_what_indexes_nothing(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["i"], to=FLOAT),
        node("Cast", ["count"], ["c"], to=FLOAT),
        node("Add", ["i", "c"], ["y"]),
    ]
    inputs = [("image", UINT8, [1, 3000]), ("count", INT64, [1, 3000])]
    model = load_model(write(tmp_path / "net.onnx", nodes, inputs, ("y", FLOAT, [1, 3000]), {}))
    image, count = input_arrays(model, np.random.default_rng(0))
    assert (image.min(), image.max()) == (0, 255)
    assert (count.min(), count.max()) == (0, SMALL - 1)
