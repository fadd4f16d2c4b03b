"""ONNX operators that TVM's importer does not know or takes wrongly: what ONNX Runtime computes counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper

from chameleon.models.load import Model, ModelError, load_model
from tests.support.running import assert_same, outputs_of

pytestmark = pytest.mark.tvm

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


def weight(name: str, *shape: int, dtype: str = "float32", low: float = -1, high: float = 1) -> onnx.TensorProto:
    rng = np.random.default_rng(abs(hash_of(name)))
    return numpy_helper.from_array(np.asarray(rng.uniform(low, high, shape)).astype(dtype), name)


def hash_of(name: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**32


def array(name: str, values: Any, dtype: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=dtype), name)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Any]],
    weights: Sequence[onnx.TensorProto] = (),
    outputs: dict[str, tuple[int, Sequence[Any] | None]] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[tuple[str, int]] = (),
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in (outputs or {"y": (FLOAT, None)}).items()],
        list(weights),
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions)), path)
    return path


def expect_right(path: Path, tolerance: float = 1e-4, **options: Any) -> Model:
    """The network computes what ONNX Runtime does."""
    runtime = pytest.importorskip("onnxruntime")
    model = load_model(str(path), **options)
    arrays = [np.random.default_rng(2).standard_normal(i.shape).astype(i.dtype) for i in model.inputs]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {i.name: x for i, x in zip(session.get_inputs(), arrays, strict=True)})
    assert_same(outputs_of(model.mod, arrays), wanted, tolerance)
    return model


@pytest.mark.parametrize(
    "attributes",
    [
        {"output_shape": [10, 11], "strides": [2, 2]},
        {"output_shape": [11, 12], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"output_shape": [12, 12], "strides": [2, 2]},  # larger than without padding
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2], "dilations": [2, 1]},
        {"auto_pad": "VALID", "strides": [2, 2], "output_padding": [1, 0]},
        {"pads": [0, 1, 2, 1], "strides": [2, 2], "output_padding": [1, 1]},
    ],
)
def test_transposed_convolutions_have_the_size_that_the_file_says(attributes: dict[str, Any], tmp_path: Path) -> None:
    conv = node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    expect_right(write(tmp_path / "up.onnx", [conv], {"x": [1, 3, 5, 5]}, [weight("w", 3, 4, 3, 3)]))


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("size", "attributes"),
    [
        ([21], {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_LOWER"}),
        ([20], {"kernel_shape": [4], "strides": [3], "auto_pad": "SAME_UPPER"}),
        ([9, 12], {"kernel_shape": [2, 3], "strides": [2, 1], "auto_pad": "SAME_LOWER"}),
        ([6, 7, 8], {"kernel_shape": [2, 3, 2], "strides": [1, 2, 3], "auto_pad": "SAME_UPPER"}),
        ([9], {"kernel_shape": [2], "strides": [3], "auto_pad": "VALID"}),
    ],
)
def test_poolings_that_pad_by_themselves(
    operator: str, size: list[int], attributes: dict[str, Any], tmp_path: Path
) -> None:
    expect_right(write(tmp_path / "p.onnx", [node(operator, ["x"], ["y"], **attributes)], {"x": [1, 3, *size]}))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("opset", "scales"),
    [
        *((opset, scales) for opset in (7, 9, 10) for scales in ((1, 1, 2, 3), (1, 1, 1.5, 2.5))),
        (10, (1, 1, 0.5, 0.5)),
    ],
)
def test_old_ways_to_resize(opset: int, scales: tuple[float, ...], mode: str, tmp_path: Path) -> None:
    given = {"scales": [float(s) for s in scales]} if opset == 7 else {}
    inputs = ["x"] if given else ["x", "s"]
    resize = node("Resize" if opset == 10 else "Upsample", inputs, ["y"], mode=mode, **given)
    weights = [] if given else [array("s", scales, "float32")]
    expect_right(write(tmp_path / "up.onnx", [resize], {"x": [1, 3, 6, 8]}, weights, opset=opset))


@pytest.mark.parametrize("given", [{"value_floats": [1.5, -2.0, 3.0]}, {"value_float": 2.5}])
def test_constants_of_a_few_numbers(given: dict[str, Any], tmp_path: Path) -> None:
    nodes = [node("Constant", [], ["c"], **given), node("Add", ["x", "c"], ["y"])]
    outputs: dict[str, tuple[int, Any]] = {"y": (FLOAT, None), "c": (FLOAT, None)}  # an output is not folded
    expect_right(write(tmp_path / "c.onnx", nodes, {"x": [2, 3]}, outputs=outputs))


def test_outputs_that_differ_from_the_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chameleon.models.onnx_files.explicit_attributes", lambda *_: None)
    conv = node("ConvTranspose", ["x", "w"], ["y"], name="up", output_shape=[10, 10], strides=[2, 2])
    path = write(tmp_path / "up.onnx", [conv], {"x": [1, 3, 5, 5]}, [weight("w", 3, 4, 3, 3)])
    with pytest.raises(ModelError, match=r"output 'y' with shape \[1, 4, 11, 11\].*\[1, 4, 10, 10\].*at 'up'"):
        load_model(str(path))


def statistics(n: int) -> list[onnx.TensorProto]:
    return [weight(k, n, low=0.5, high=2) for k in ("s", "b", "m", "v")]


def test_a_batch_norm_in_training_mode_takes_the_statistics_of_the_batch(tmp_path: Path) -> None:
    names = ["x", "s", "b", "m", "v"]
    norm = node("BatchNormalization", names, ["y", "mo", "vo"], name="bn", training_mode=1)
    inputs: dict[str, Sequence[Any]] = {"x": [4, 3, 5, 5]}
    expect_right(write(tmp_path / "bn.onnx", [norm], inputs, statistics(3)))
    read: dict[str, tuple[int, Any]] = {"y": (FLOAT, None), "mo": (FLOAT, None)}
    with pytest.raises(ModelError, match=r"BatchNormalization at 'bn'.*training mode.*mo"):
        load_model(str(write(tmp_path / "read.onnx", [norm], inputs, statistics(3), read)))


@pytest.mark.parametrize("training", [False, True])
def test_a_dropout_in_training_mode_is_refused(training: bool, tmp_path: Path) -> None:
    drop = node("Dropout", ["x", "p", "t"], ["y"], name="drop")
    weights = [array("p", 0.5, "float32"), array("t", training, "bool")]
    path = write(
        tmp_path / "drop.onnx", [drop, node("Relu", ["y"], ["z"])], {"x": [2, 3]}, weights, {"z": (FLOAT, None)}
    )
    if training:
        with pytest.raises(ModelError, match=r"Dropout at 'drop'.*random"):
            load_model(str(path))
    else:
        expect_right(path)


def test_functions_of_the_file_are_inlined(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    inner = helper.make_function("my.own", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets)
    body = [node("Twice", ["a"], ["t"], domain="my.own"), node("MatMul", ["t", "w"], ["b"])]
    outer = helper.make_function("my.own", "Linear", ["a", "w"], ["b"], body, opsets)
    nodes = [node("Linear", ["x", "w"], ["h"], domain="my.own"), node("Linear", ["h", "w"], ["y"], domain="my.own")]
    weights = [weight("w", 4, 4)]
    expect_right(
        write(tmp_path / "f.onnx", nodes, {"x": [2, 4]}, weights, functions=[inner, outer], domains=[("my.own", 1)])
    )


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(f"{name}_out", FLOAT, None)])


def conditional(condition: Sequence[onnx.NodeProto], size: int = 1) -> list[onnx.NodeProto]:
    first = node("Squeeze", ["x", "axes"], ["yes_out"]) if size == 1 else node("Neg", ["x"], ["yes_out"])
    yes = branch("yes", first)
    no = branch("no", node("Sum", ["x", "x", "x"], ["no_out"]))
    return [
        *condition,
        node("If", ["c"], ["h"], name="choice", then_branch=yes, else_branch=no),
        node("Relu", ["h"], ["y"]),
    ]


@pytest.mark.parametrize("size", [1, 2])
def test_a_constant_condition_takes_its_branch(size: int, tmp_path: Path) -> None:
    condition = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["n"]),
        node("Equal", ["n", "one"], ["c"]),
    ]
    weights = [array("axes", [1], "int64"), array("one", 1, "int64")]
    expect_right(write(tmp_path / "if.onnx", conditional(condition, size), {"x": [4, size, 3]}, weights))


def test_a_condition_on_data_is_refused_with_its_place(tmp_path: Path) -> None:
    condition = [node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Cast", ["sum"], ["c"], to=TensorProto.BOOL)]
    path = write(tmp_path / "if.onnx", conditional(condition), {"x": [4, 1, 3]}, [array("axes", [1], "int64")])
    with pytest.raises(ModelError, match=r"condition 'c' of If at 'choice'.*depends on the network's input"):
        load_model(str(path))


def test_operators_are_expanded_as_onnx_defines_them(tmp_path: Path) -> None:
    attention = node("Attention", ["x", "x", "x"], ["a"], q_num_heads=2, kv_num_heads=2, is_causal=1)
    expect_right(write(tmp_path / "a.onnx", [attention, node("Relu", ["a"], ["y"])], {"x": [1, 6, 8]}, opset=23))
    celu = node("Celu", ["x"], ["y"], alpha=0.7)
    expect_right(write(tmp_path / "celu.onnx", [celu], {"x": [2, 3]}))


def test_an_operator_of_another_domain_is_not_taken_for_onnx_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.onnx",
        [node("Relu", ["x"], ["y"], name="n", domain="my.own")],
        {"x": [2]},
        domains=[("my.own", 1)],
    )
    with pytest.raises(ModelError, match=r"unsupported operator my.own::Relu at 'n'"):
        load_model(str(path))


def quantised(*nodes: onnx.NodeProto, scales: dict[str, Any]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    ends = [node("QuantizeLinear", ["x", "xs", "xz"], ["q"]), node("DequantizeLinear", ["o", "ys", "yz"], ["y"])]
    fixed = [
        array("xs", 0.03, "float32"),
        array("xz", 120, "uint8"),
        array("ys", 0.2, "float32"),
        array("yz", 100, "uint8"),
    ]
    return [ends[0], *nodes, ends[1]], [*fixed, *(array(k, v[0], v[1]) for k, v in scales.items())]


def exact(x: np.ndarray, accumulated: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The quantised result in exact arithmetic: ONNX Runtime's own kernels saturate on some processors."""
    integers = np.clip(np.rint(x / np.float32(0.03)) + 120, 0, 255) - 120
    return ((np.clip(np.rint(accumulated(integers) / 0.2) + 100, 0, 255) - 100) * 0.2).astype("float32")


def test_quantised_convolutions_and_products(tmp_path: Path) -> None:
    import torch

    w = np.random.default_rng(1).integers(-127, 128, (4, 3, 3, 3))
    bias, scales = [500, -300, 0, 40], [0.01, 0.02, 0.005, 0.01]
    conv = node("QLinearConv", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["o"], pads=[1, 1, 1, 1])
    parts = {"w": (w, "int8"), "ws": (scales, "float32"), "wz": ([0] * 4, "int8"), "b": (bias, "int32")}
    nodes, weights = quantised(conv, scales=parts)
    model = load_model(str(write(tmp_path / "c.onnx", nodes, {"x": [1, 3, 6, 6]}, weights)))
    x = np.random.default_rng(2).standard_normal((1, 3, 6, 6)).astype("float32")

    def convolved(integers: np.ndarray) -> np.ndarray:
        sums = torch.nn.functional.conv2d(
            torch.tensor(integers, dtype=torch.float64), torch.tensor(w).double(), padding=1
        )
        return (sums.numpy() + np.reshape(bias, (1, 4, 1, 1))) * 0.03 * np.reshape(scales, (1, 4, 1, 1))

    assert_same(outputs_of(model.mod, [x]), [exact(x, convolved)])
    b = np.random.default_rng(1).integers(-127, 128, (8, 5))
    product = node("QLinearMatMul", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["o"])
    nodes, weights = quantised(product, scales={"w": (b, "int8"), "ws": (0.01, "float32"), "wz": (3, "int8")})
    model = load_model(str(write(tmp_path / "m.onnx", nodes, {"x": [2, 8]}, weights)))
    x = np.random.default_rng(2).standard_normal((2, 8)).astype("float32")
    assert_same(outputs_of(model.mod, [x]), [exact(x, lambda q: q @ (b - 3) * 0.03 * 0.01)])


def test_shapes_that_depend_on_data_are_refused_by_their_operator(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("NonZero", ["r"], ["y"])]
    with pytest.raises(ModelError, match=r"NonZero at .*-> y makes depends on data") as error:
        load_model(str(write(tmp_path / "nz.onnx", nodes, {"x": [2, 3]}, outputs={"y": (INT64, None)})))
    assert "--input-shape" not in str(error.value)


def test_a_size_of_zero_is_a_size(tmp_path: Path) -> None:
    nodes = [node("Concat", ["past", "x"], ["all"], axis=1), node("MatMul", ["all", "w"], ["y"])]
    inputs: dict[str, Sequence[Any]] = {"x": [1, 4, 8], "past": [1, 0, 8]}
    model = expect_right(write(tmp_path / "past.onnx", nodes, inputs, [weight("w", 8, 8)]))
    assert model.inputs[1].shape == (1, 0, 8)


def test_open_dimensions_by_name(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["a", "w"], ["h"]), node("Add", ["h", "b"], ["y"])]
    inputs: dict[str, Sequence[Any]] = {"a": ["batch", 16], "b": ["batch", None]}
    path = write(tmp_path / "two.onnx", nodes, inputs, [weight("w", 16, 8)])
    with pytest.raises(ModelError, match=r"--dim batch=1 --dim b\.1=16"):
        load_model(str(path))
    model = expect_right(path, dims={"batch": 3, "b.1": 8})
    assert [i.shape for i in model.inputs] == [(3, 16), (3, 8)]
