"""Concatenations whose parts are written in place: the outputs of built networks, and the memory that it saves."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

from chameleon.kernels.lower import kernels_of
from chameleon.memory.graph import extract_graph
from chameleon.memory.placed_concats import place_parts, placeable_concats
from chameleon.memory.plan import MemoryOptions, plan_memory, prepare
from chameleon.memory.rewrite import apply_sites, find_sites

pytestmark = pytest.mark.tvm
TARGET = Target({"kind": "llvm", "num-cores": 1})
SIDE = 8


def network(layout: str, build) -> IRModule:
    """A module of kernels; `build(conv, concat, relu, x)` says what it computes, `conv(x, out)` a 3x3 convolution."""
    builder, rng = relax.BlockBuilder(), np.random.default_rng(0)
    axis = layout.index("C")
    kernel_layout = "OIHW" if layout == "NCHW" else "HWIO"
    x = relax.Var("x", relax.TensorType((1, 4, SIDE, SIDE) if axis == 1 else (1, SIDE, SIDE, 4), "float32"))

    def conv(data: relax.Expr, out: int) -> relax.Expr:
        into = int(data.ty.shape[axis])
        kernel = rng.standard_normal((out, into, 3, 3) if axis == 1 else (3, 3, into, out)).astype("float32")
        layouts = {"data_layout": layout, "kernel_layout": kernel_layout, "out_layout": layout}
        return builder.emit(relax.op.nn.conv2d(data, relax.const(kernel / into), padding=1, **layouts))

    def concat(*parts: relax.Expr) -> relax.Expr:
        return builder.emit(relax.op.concat(list(parts), axis))

    def relu(data: relax.Expr) -> relax.Expr:
        return builder.emit(relax.op.nn.relu(data))

    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(build(conv, concat, relu, x))
        builder.emit_func_output(result)
    mod = builder.get()
    alone = [site for site in find_sites(mod) if site.kind == "zero_copy"]
    return kernels_of(apply_sites(mod, alone), TARGET)


def wide(conv, concat, relu, x):
    """Many parts, of which the input cannot be in place."""
    return concat(*(relu(conv(x, 5)) for _ in range(6)), x)


def nested(conv, concat, relu, x):
    """A concatenation in another, both read by convolutions; a part that a convolution reads as well."""
    a, b = conv(x, 3), conv(x, 2)
    first = concat(a, b)
    second = concat(conv(first, 4), first, conv(a, 1))
    return relax.Tuple([conv(second, 2), relu(second)])


def crossing(conv, concat, relu, x):
    """A part of two concatenations, and one that is there twice."""
    a, b = conv(x, 3), conv(x, 2)
    return relax.Tuple([conv(concat(a, b), 2), concat(b, a, b), conv(concat(a, relu(a)), 3)])


def outputs(mod: IRModule) -> list[np.ndarray]:
    x = np.random.default_rng(1).standard_normal([int(d) for d in mod["main"].params[0].ty.shape]).astype("float32")
    executable = tvm.compile(mod, TARGET, relax_pipeline="default_build")
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x))
    return [r.numpy() for r in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("build", [wide, nested, crossing])
def test_parts_in_place_give_the_same_outputs(build, layout: str) -> None:
    mod = network(layout, build)
    prepared = prepare(mod)
    concats = placeable_concats(prepared)
    assert len(concats) == {"wide": 1, "nested": 2, "crossing": 2}[build.__name__]
    placed = place_parts(prepared, list(concats))
    relax.analysis.well_formed(placed)
    inside = [node for node in extract_graph(placed).graph.nodes if node.storage]
    assert len(inside) == sum(len(parts) for parts in concats.values())
    planned, plan = plan_memory(placed, options=MemoryOptions(rewrite_kernels=False))
    assert [n.name for n in plan.graph.nodes if n.storage] == [n.name for n in inside]
    for found, expected in zip(outputs(planned), outputs(mod), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_pass_places_parts_where_that_lowers_the_peak(layout: str) -> None:
    mod = network(layout, wide)
    planned, plan = plan_memory(mod)
    _, copied = plan_memory(mod, options=MemoryOptions(rewrite_kernels=False))
    tensor = SIDE * SIDE * 4
    assert copied.schedule.peak_bytes == (6 * 5 + 34) * tensor  # the parts and their copy
    assert plan.schedule.peak_bytes < 34 * tensor + copied.schedule.peak_bytes / 2
    assert sum(bool(node.storage) for node in plan.graph.nodes) == 6
    for found, expected in zip(outputs(planned), outputs(mod), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_the_function_returns_or_reshapes_is_no_part() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 4, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            parts = [builder.emit(relax.op.nn.relu(x)), builder.emit(relax.op.exp(x)), builder.emit(relax.op.tanh(x))]
            flat = builder.emit(relax.op.reshape(parts[1], (1, 32)))
            concat = builder.emit(relax.op.concat(parts, 1))
            result = builder.emit_output(relax.Tuple([parts[0], builder.emit(relax.op.sum(flat)), concat]))
        builder.emit_func_output(result)
    mod = builder.get()
    mod = kernels_of(apply_sites(mod, [site for site in find_sites(mod) if site.kind == "zero_copy"]), TARGET)
    assert list(placeable_concats(prepare(mod)).values()) == [(2,)]
