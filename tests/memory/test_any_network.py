"""Networks of every kind are planned: the outputs stay, and a run takes what the arena has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.target import Target

from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.lower import build, kernels_of
from chameleon.memory.lower import lean
from chameleon.memory.measured_peak import measure_peak
from chameleon.memory.plan import MemoryOptions, plan_memory

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 1})
op = relax.op
Arrays = list[NDArray[np.generic]]


def tensor(dtype: str, *shape: int) -> relax.TensorType:
    return relax.TensorType(shape, dtype)


def const(dtype: str, *shape: int) -> relax.Expr:
    return relax.const((np.arange(int(np.prod(shape))).reshape(shape) % 7 - 3).astype(dtype))


def ids(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """An embedding: 64-bit indices in a kernel."""
    return b.emit(op.matmul(b.emit(op.take(const("float32", 9, 32), x, axis=0)), const("float32", 32, 32)))


def row(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """Square matrix products of one row: each may overwrite its input once the whole row is summed up."""
    for _ in range(3):
        x = b.emit(op.tanh(b.emit(op.matmul(x, const("float32", 32, 32)))))
    return x


def halves(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """The same in half precision: 400 channels are less than the stack holds and more than a row of a lean kernel."""
    for _ in range(3):
        x = b.emit(
            op.nn.relu(
                b.emit(op.multiply(b.emit(op.matmul(x, const("float16", 400, 400))), relax.const(0.01, "float16")))
            )
        )
    return x


def scalar(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    low, high = b.emit(op.min(x)), b.emit(op.max(x))
    return b.emit(op.divide(b.emit(op.subtract(x, low)), b.emit(op.subtract(high, low))))


def same_input(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.Tuple([x, b.emit(op.exp(x))])


def twice(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    y = b.emit(op.exp(x))
    return relax.Tuple([y, relax.Tuple([y, b.emit(op.negative(y))])])


def constant(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.Tuple([const("float32", 3), b.emit(op.exp(x))])


def nothing(_: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return x


def empty(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """A concatenation one of whose parts is empty."""
    none = b.emit(op.strided_slice(x, [1], [0], [0], assume_inbound=False))
    return b.emit(op.nn.relu(b.emit(op.concat([b.emit(op.exp(x)), b.emit(op.exp(none))], axis=1))))


def best(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """Kernels that TVM did not make: sorting is a packed function."""
    found = b.emit(op.topk(b.emit(op.exp(x)), k=3, axis=-1, ret_type="both", dtype="int64"))
    values, places = b.emit(relax.TupleGetItem(found, 0)), b.emit(relax.TupleGetItem(found, 1))
    return relax.Tuple([b.emit(op.negative(values)), places, b.emit(op.cumsum(x, axis=-1))])


def packed(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """A function that returns a view of its argument: the argument must stay as long as the view is read."""
    y = b.emit(op.exp(x))
    view = b.emit(
        op.call_pure_packed("vm.builtin.reshape", y, relax.ShapeExpr([32, 4]), ty_args=tensor("float32", 32, 4))
    )
    z = b.emit(op.negative(b.emit(op.tanh(b.emit(op.matmul(x, const("float32", 32, 32)))))))
    return b.emit(op.add(view, b.emit(op.reshape(z, (32, 4)))))


def flags(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """Booleans, and a choice by them."""
    positive = b.emit(op.greater(x, relax.const(0.0, "float32")))
    return relax.Tuple([b.emit(op.where(positive, x, b.emit(op.exp(x)))), b.emit(op.logical_not(positive))])


def depthwise_transposed(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """A ConvNeXt block: the transpose is part of the kernel that pads."""
    y = b.emit(op.permute_dims(x, [0, 2, 3, 1]))
    options = {"groups": 16, "padding": 3, "data_layout": "NHWC", "kernel_layout": "HWIO"}
    y = b.emit(op.nn.conv2d(y, const("float32", 7, 7, 1, 16), **options))
    y = b.emit(op.nn.gelu(b.emit(op.matmul(y, const("float32", 16, 64)))))
    y = b.emit(op.matmul(y, const("float32", 64, 16)))
    return b.emit(op.add(x, b.emit(op.permute_dims(y, [0, 3, 1, 2]))))


def boxes(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """Non-maximum suppression: how many boxes are left, only a run tells."""
    scores = b.emit(op.reshape(b.emit(op.sum(b.emit(op.exp(x)), axis=[2])), (1, 1, 20)))
    limits = relax.const(5, "int64"), relax.const(0.5, "float32"), relax.const(0.0, "float32")
    found = b.emit(op.vision.all_class_non_max_suppression(x, scores, *limits, output_format="onnx"))
    return b.emit(relax.TupleGetItem(found, 0))


MEASURED = ("row", "scalar", "an empty part", "an output twice", "best", "depthwise_transposed")
"""The networks whose peak is measured; it takes a few seconds for each."""

NETWORKS: dict[str, tuple[Callable[..., relax.Expr], relax.TensorType]] = {
    "ids": (ids, tensor("int64", 1, 5)),
    "row": (row, tensor("float32", 1, 32)),
    "halves": (halves, tensor("float16", 2, 400)),
    "scalar": (scalar, tensor("float32", 4, 8)),
    "scalar input": (lambda b, x: b.emit(op.exp(b.emit(op.exp(x)))), tensor("float32")),
    "an input that is an output": (same_input, tensor("float32", 4, 32)),
    "an output twice": (twice, tensor("float32", 4, 32)),
    "a constant as output": (constant, tensor("float32", 4, 32)),
    "nothing to compute": (nothing, tensor("float32", 4, 32)),
    "an empty part": (empty, tensor("float32", 1, 8, 4, 4)),
    "an empty input": (lambda b, x: b.emit(op.exp(x)), tensor("float32", 0, 4)),
    "best": (best, tensor("float32", 4, 32)),
    "packed": (packed, tensor("float32", 4, 32)),
    "boxes": (boxes, tensor("float32", 1, 20, 4)),
    "flags": (flags, tensor("float32", 4, 32)),
    "depthwise_transposed": (depthwise_transposed, tensor("float32", 1, 16, 8, 8)),
}


def network(make: Callable[..., relax.Expr], ty: relax.TensorType) -> tvm.IRModule:
    builder, x = relax.BlockBuilder(), relax.Var("x", ty)
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(make(builder, x))
        builder.emit_func_output(result)
    return kernels_of(relax.transform.CanonicalizeBindings()(builder.get()), CPU)


def arrays(ty: relax.TensorType) -> Arrays:
    rng, shape = np.random.default_rng(0), tuple(int(d) for d in ty.shape)
    if str(ty.dtype) == "int64":
        return [rng.integers(0, 9, shape)]
    return [np.asarray(rng.standard_normal(shape)).astype(str(ty.dtype))]


def run(executable: object, given: Arrays) -> Arrays:
    def flat(value: object) -> Arrays:
        return [value.numpy()] if hasattr(value, "numpy") else [leaf for part in value for leaf in flat(part)]  # type: ignore[attr-defined]

    return flat(relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, given)))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_planned_and_stays_the_same(name: str) -> None:
    make, ty = NETWORKS[name]
    mod, given = network(make, ty), arrays(ty)
    with CPU:
        planned, plan = plan_memory(lean(mod, CPU))
        plain, _ = plan_memory(schedule_defaults(mod, CPU), options=MemoryOptions(hoist=False))
    expected = run(build(schedule_defaults(mod, CPU), CPU), given)
    for theirs in (build(planned, CPU), build(plain, CPU)):
        ours = run(theirs, given)
        assert [a.shape for a in ours] == [a.shape for a in expected]
        tolerance = 1e-2 if str(ty.dtype) == "float16" else 1e-5
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert plan.unplanned == {"boxes": ("gv",), "packed": ("lv1",)}.get(name, ())
    if name not in MEASURED:
        return
    measured = measure_peak(build(planned, CPU), given)
    assert measured.tensor_peak_bytes == plan.arena.size_bytes
