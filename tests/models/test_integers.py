"""Quantised networks keep their integers, and compute what ONNX says that they compute."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

pytest.importorskip("tvm")

from tvm import relax

from chameleon.ir import is_call
from chameleon.models.load import Model, load_model
from tests.support.running import outputs_of

pytestmark = pytest.mark.tvm
node = helper.make_node
RNG = np.random.default_rng(0)


def integers(*shape: int, low: int = -127, high: int = 128, dtype: str = "int8") -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


def save(path: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...], outputs: dict, values: dict) -> Path:
    """Write a network with one input `x`; the outputs' types and shapes by name, and the constants."""
    info = helper.make_tensor_value_info
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()]
    ends = [info(name, *kind) for name, kind in outputs.items()]
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, shape)], ends, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
    return path


Y = {"y": (TensorProto.FLOAT, None)}


def network(path: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...], **values: np.ndarray) -> Path:
    """A network that quantises `x` to `q`, and turns the quantised `o` into `y`."""
    first = node("QuantizeLinear", ["x", "xs", "xz"], ["q"])
    return save(path, [first, *nodes, node("DequantizeLinear", ["o", "ys", "yz"], ["y"])], shape, Y, values)


def scales(zero: int, dtype: str, y_zero: int | None = None) -> dict[str, np.ndarray]:
    """Scales and zero points of `x` and `y`."""
    return {
        "xs": np.float32(0.02),
        "xz": np.array(zero, dtype),
        "ys": np.float32(0.1),
        "yz": np.array(zero if y_zero is None else y_zero, dtype),
    }


def read(*names: str, axis: int | None = None) -> onnx.NodeProto:
    """`names` are those of the integers; scale, zero point and result are named after them."""
    (name,) = names
    return node("DequantizeLinear", [name, f"{name}s", f"{name}z"], [f"{name}d"], axis=1 if axis is None else axis)


CONVOLUTION = [
    node("DequantizeLinear", ["q", "xs", "xz"], ["qd"]),
    read("w", axis=0),
    read("b", axis=0),
    node("Conv", ["qd", "wd", "bd"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3]),
    node("QuantizeLinear", ["c", "ys", "yz"], ["o"]),
]
PER_CHANNEL = {
    "w": integers(8, 4, 3, 3),
    "ws": np.linspace(0.001, 0.02, 8, dtype=np.float32),
    "wz": np.zeros(8, np.int8),
    "b": RNG.integers(-500, 500, 8).astype(np.int32),
    "bs": 0.02 * np.linspace(0.001, 0.02, 8, dtype=np.float32),
    "bz": np.zeros(8, np.int32),
}
ONE_FOR_ALL = {
    "w": integers(8, 4, 3, 3, low=0, high=200, dtype="uint8"),
    "ws": np.float32(0.01),
    "wz": np.uint8(100),
    "b": RNG.integers(-500, 500, 8).astype(np.int32),
    "bs": np.float32(0.0002),
    "bz": np.int32(0),
}
GEMM = [
    node("DequantizeLinear", ["q", "xs", "xz"], ["qd"]),
    read("w", axis=0),
    node("Gemm", ["qd", "wd"], ["c"], transB=1),
    node("QuantizeLinear", ["c", "ys", "yz"], ["o"]),
]
POOLED = [
    node("DequantizeLinear", ["q", "xs", "xz"], ["qd"]),
    node("MaxPool", ["qd"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
    node("QuantizeLinear", ["p", "xs", "xz"], ["pq"]),
    node("DequantizeLinear", ["pq", "xs", "xz"], ["pd"]),
    read("w", axis=0),
    read("b", axis=0),
    node("Conv", ["pd", "wd", "bd"], ["c"], kernel_shape=[3, 3]),
    node("QuantizeLinear", ["c", "ys", "yz"], ["o"]),
]
PRODUCT = [
    node("DequantizeLinear", ["q", "xs", "xz"], ["qd"]),
    read("w", axis=1),
    node("MatMul", ["qd", "wd"], ["c"]),
    node("QuantizeLinear", ["c", "ys", "yz"], ["o"]),
]
COLUMNS = {
    "w": integers(16, 8),
    "ws": np.linspace(0.001, 0.02, 8, dtype=np.float32),
    "wz": np.zeros(8, np.int8),
}
ROWS = {**COLUMNS, "w": np.ascontiguousarray(COLUMNS["w"].T)}
IMAGE = (1, 4, 7, 7)

NETWORKS = {
    "unsigned": (CONVOLUTION, IMAGE, {**scales(120, "uint8"), **PER_CHANNEL}),
    "unsigned, no zero point": (CONVOLUTION, IMAGE, {**scales(0, "uint8"), **PER_CHANNEL}),
    "signed": (CONVOLUTION, IMAGE, {**scales(0, "int8"), **PER_CHANNEL}),
    "signed, uneven": (CONVOLUTION, IMAGE, {**scales(-128, "int8", y_zero=5), **PER_CHANNEL}),
    "one scale, unsigned weights": (CONVOLUTION, IMAGE, {**scales(3, "uint8"), **ONE_FOR_ALL}),
    "dense": (GEMM, (3, 16), {**scales(-5, "int8"), **ROWS}),
    "product of a batch": (PRODUCT, (2, 3, 16), {**scales(128, "uint8"), **COLUMNS}),
    "pooled": (POOLED, (1, 4, 8, 8), {**scales(128, "uint8"), **PER_CHANNEL}),
}


def calls(model: Model, name: str) -> list[relax.Call]:
    found = []
    relax.analysis.post_order_visit(model.mod["main"], lambda e: found.append(e) if is_call(e, name) else None)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_of_integers_are_those_that_onnx_defines(name: str, tmp_path: Path) -> None:
    nodes, shape, values = NETWORKS[name]
    path = network(tmp_path / "n.onnx", nodes, shape, **values)
    model = load_model(str(path))
    sums = [*calls(model, "relax.nn.conv2d"), *calls(model, "relax.matmul")]
    assert [[str(a.ty.dtype) for a in call.args] for call in sums] == [["int16", "int8"]]
    assert [str(call.ty.dtype) for call in sums] == ["int32"]
    x = (1.5 * np.random.default_rng(3).standard_normal(shape)).astype(np.float32)
    (found,), (expected,) = outputs_of(model.mod, [x]), ReferenceEvaluator(str(path)).run(None, {"x": x})
    steps = np.abs(found - expected) / 0.1
    assert steps.max() < 1.01  # a value between two steps may go either way
    assert (steps > 0.5).mean() < 0.01
    assert np.unique(expected).size > 10


def plain(path: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...], **values: np.ndarray) -> Path:
    """A network from `x` to the integers `i`, whose output `y` they are as floats."""
    return save(path, [*nodes, node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)], shape, Y, values)


DYNAMIC = node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"])
SIGNED = [node("QuantizeLinear", ["x", "xs", "xz"], ["q"])]
OF_INTEGERS = {
    "dynamic": ([DYNAMIC, node("MatMulInteger", ["q", "w", "qz"], ["i"])], (3, 16), {"w": integers(16, 8)}),
    "dynamic, a batch, unsigned weights": (
        [DYNAMIC, node("MatMulInteger", ["q", "w", "qz", "wz"], ["i"])],
        (2, 3, 16),
        {"w": integers(16, 8, low=0, high=200, dtype="uint8"), "wz": np.uint8(99)},
    ),
    "a zero point for each column": (
        [DYNAMIC, node("MatMulInteger", ["q", "w", "qz", "wz"], ["i"])],
        (3, 16),
        {"w": integers(16, 8, low=-60, high=60), "wz": integers(8, low=-60, high=60)},
    ),
    "no zero point": ([DYNAMIC, node("MatMulInteger", ["q", "w"], ["i"])], (3, 16), {"w": integers(16, 8)}),
    "signed": (
        [*SIGNED, node("MatMulInteger", ["q", "w", "xz"], ["i"])],
        (3, 16),
        {"w": integers(16, 8), "xs": np.float32(0.02), "xz": np.int8(-7)},
    ),
    "signed, no zero point": (
        [*SIGNED, node("MatMulInteger", ["q", "w"], ["i"])],
        (3, 16),
        {"w": integers(16, 8), "xs": np.float32(0.02), "xz": np.int8(0)},
    ),
    "convolution": (
        [
            node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
            node("ConvInteger", ["q", "w", "xz"], ["i"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        ],
        IMAGE,
        {"w": integers(8, 4, 3, 3), "xs": np.float32(0.02), "xz": np.uint8(117)},
    ),
    "convolution, no zero point": (
        [
            node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
            node("ConvInteger", ["q", "w"], ["i"], kernel_shape=[3, 3]),
        ],
        IMAGE,
        {"w": integers(8, 4, 3, 3), "xs": np.float32(0.02), "xz": np.uint8(0)},
    ),
}


@pytest.mark.parametrize("name", OF_INTEGERS)
def test_products_of_integers_are_exact(name: str, tmp_path: Path) -> None:
    nodes, shape, values = OF_INTEGERS[name]
    path = plain(tmp_path / "n.onnx", nodes, shape, **values)
    model = load_model(str(path))
    sums = [*calls(model, "relax.nn.conv2d"), *calls(model, "relax.matmul")]
    assert [[str(a.ty.dtype) for a in call.args] for call in sums] == [["int16", "int8"]]
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    (found,), (expected,) = outputs_of(model.mod, [x]), ReferenceEvaluator(str(path)).run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)


def test_what_picks_values_picks_among_the_integers(tmp_path: Path) -> None:
    nodes, shape, values = NETWORKS["pooled"]
    model = load_model(str(network(tmp_path / "n.onnx", nodes, shape, **values)))
    (pool,) = calls(model, "relax.nn.max_pool2d")
    assert str(pool.ty.dtype) == "uint8"
    assert len(calls(model, "relax.quantize")) == 2


def test_a_pool_between_two_scales_stays_one_of_floats(tmp_path: Path) -> None:
    nodes, shape, values = NETWORKS["pooled"]
    nodes = [*nodes[:2], node("QuantizeLinear", ["p", "ys", "yz"], ["pq"]), *nodes[3:]]
    nodes[3] = node("DequantizeLinear", ["pq", "ys", "yz"], ["pd"])
    path = network(tmp_path / "n.onnx", nodes, shape, **values)
    model = load_model(str(path))
    assert [str(p.ty.dtype) for p in calls(model, "relax.nn.max_pool2d")] == ["float32"]
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    (found,), (expected,) = outputs_of(model.mod, [x]), ReferenceEvaluator(str(path)).run(None, {"x": x})
    assert np.abs(found - expected).max() < 0.101


@pytest.mark.parametrize(
    ("values", "attributes", "said"),
    [
        ({"w": integers(4, 1, 3, 3), "ws": np.float32(0.01), "wz": np.int8(0)}, {"group": 4}, "grouped conv2d"),
        ({"w": integers(8, 4, 3, 3), "ws": np.float32(0.01), "wz": np.int8(5)}, {}, "conv2d"),  # -127 - 5 is too small
    ],
    ids=["depthwise", "weights of nine bits"],
)
def test_what_has_no_integer_form_is_computed_as_floats(values, attributes, said, tmp_path, caplog) -> None:
    nodes = [
        node("DequantizeLinear", ["q", "xs", "xz"], ["qd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        node("Conv", ["qd", "wd"], ["c"], kernel_shape=[3, 3], **attributes),
        node("QuantizeLinear", ["c", "ys", "yz"], ["o"]),
    ]
    path = network(tmp_path / "n.onnx", nodes, IMAGE, **scales(7, "uint8"), **values)
    with caplog.at_level(logging.WARNING):
        model = load_model(str(path))
    assert [str(c.ty.dtype) for c in calls(model, "relax.nn.conv2d")] == ["float32"]
    assert ("no integer kernels for grouped conv2d" in caplog.text) == (said == "grouped conv2d")
    x = np.random.default_rng(3).standard_normal(IMAGE).astype(np.float32)
    (found,), (expected,) = outputs_of(model.mod, [x]), ReferenceEvaluator(str(path)).run(None, {"x": x})
    assert np.abs(found - expected).max() < 0.101


def test_signed_integers_that_leave_the_network_stay_signed(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["y"]),
    ]
    outputs = {"q": (TensorProto.INT8, [4]), "y": (TensorProto.FLOAT, [4])}
    path = save(tmp_path / "n.onnx", nodes, (4,), outputs, {"xs": np.float32(0.5), "xz": np.int8(-3)})
    q, y = outputs_of(load_model(str(path)).mod, [np.array([-100, -0.6, 0.6, 2], np.float32)])
    np.testing.assert_array_equal(q, np.array([-128, -4, -2, 1], np.int8))
    np.testing.assert_array_equal(y, np.array([-62.5, -0.5, 0.5, 2], np.float32))
