"""Kernels that overwrite an input of which they read more than one element.

They run with input and output in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target
from tvm.tirx import PrimFunc

from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.in_place import in_place_inputs, overwriting, rolling_of
from chameleon.kernels.lower import kernels_of
from chameleon.memory.graph import extract_graph
from chameleon.memory.lower import lean
from chameleon.memory.measured_peak import measure_peak
from chameleon.memory.plan import MemoryOptions, plan_memory
from chameleon.serenity.accounting import peak_bytes

pytestmark = pytest.mark.tvm
ONE_CPU, TWO_CPUS = (Target({"kind": "llvm", "num-cores": n}) for n in (1, 2))
Build = Callable[[relax.BlockBuilder, relax.Var], relax.Expr]


def kernel(shape: tuple[int, ...], build: Build, target: Target = ONE_CPU) -> PrimFunc:
    """The one kernel, with its lean schedule, of what `build` computes of an input of this shape.

    Weights are arguments too.
    """
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(build(builder, x))
        builder.emit_func_output(result)
    return only_kernel(builder.get(), target)


def only_kernel(mod: IRModule, target: Target = ONE_CPU) -> PrimFunc:
    (func,) = filter(is_kernel, schedule_defaults(kernels_of(mod, target), target, lean=True).functions.values())
    return func


def is_kernel(func: object) -> bool:
    return isinstance(func, PrimFunc)


def conv(channels: int, size: int = 1, *, groups: int = 1, layout: str = "NHWC", **options: object) -> Build:
    """A convolution that keeps height and width."""

    def build(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        into = int(x.ty.shape[layout.index("C")])
        shape = (size, size, into // groups, channels) if layout == "NHWC" else (channels, into // groups, size, size)
        kernel_layout = "HWIO" if layout == "NHWC" else "OIHW"
        weight = relax.const(np.random.default_rng(1).standard_normal(shape).astype("float32"))
        padding = int(options.get("dilation", 1)) * (size - 1) // 2  # type: ignore[call-overload]
        layouts = {"data_layout": layout, "kernel_layout": kernel_layout, "out_layout": layout}
        return relax.op.nn.conv2d(x, weight, **{"padding": padding, "groups": groups, **layouts, **options})

    return build


def then(first: Build, *others: Callable[[relax.Expr], relax.Expr]) -> Build:
    def build(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        value = first(builder, x)
        for other in others:
            value = other(builder.emit(value))
        return value

    return build


def bias(value: relax.Expr) -> relax.Expr:
    return relax.op.add(value, relax.const(np.linspace(-1, 1, int(value.ty.shape[-1])).astype("float32")))


def dense(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    n = int(x.ty.shape[-1])
    return relax.op.matmul(x, relax.const(np.random.default_rng(1).standard_normal((n, n)).astype("float32")))


def pool(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.op.nn.max_pool2d(x, pool_size=(3, 3), padding=(1, 1), layout="NHWC")


PIXELWISE: dict[str, tuple[tuple[int, ...], Build]] = {
    "1x1": ((1, 5, 7, 8), conv(8)),
    "vectors": ((1, 6, 4, 48), then(conv(48), bias, relax.op.nn.relu)),
    "batch": ((2, 3, 5, 16), then(conv(16), relax.op.nn.relu)),
    "grouped": ((1, 6, 4, 32), conv(32, groups=4)),
    "dense": ((9, 20), dense),
}
ROLLING: dict[str, tuple[tuple[int, ...], Build]] = {
    "depthwise": ((1, 9, 7, 8), conv(8, 3, groups=8)),
    "vectors": ((1, 9, 7, 48), then(conv(48, 3, groups=48), bias, relax.op.nn.relu)),
    "5x5": ((1, 11, 6, 16), then(conv(16, 5, groups=16), bias)),
    "dilated": ((1, 9, 9, 16), conv(16, 3, groups=16, dilation=2)),
    "all channels": ((1, 8, 6, 16), then(conv(16, 3), bias, relax.op.nn.relu)),
    "few channels": ((1, 8, 6, 3), conv(3, 3)),
    "window above the image": ((1, 8, 6, 4), conv(4, 3, groups=4, padding=(2, 1, 0, 1))),
    "window below the image": ((1, 8, 6, 4), conv(4, 3, groups=4, padding=(0, 1, 2, 1))),
    "window larger than the image": ((1, 2, 2, 4), conv(4, 7, groups=4)),
    "max pooling": ((1, 8, 6, 16), pool),
}


def check_in_one_memory(func: PrimFunc, position: int, target: Target) -> None:
    """Run a kernel twice: with memory of its own for the output, and over its input."""
    assert not any(in_place_inputs(func.without_attr("chameleon.may_overwrite"), len(func.params) - 1))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([int(d) for d in p.shape]).astype("float32") for p in func.params]
    apart, over = ([tvm.runtime.tensor(a) for a in arrays] for _ in range(2))
    run(func, apart, target)
    over[-1] = over[position]
    run(overwriting(func, position, len(func.params) - 1), over, target)
    assert not np.array_equal(apart[-1].numpy(), arrays[-1])
    np.testing.assert_array_equal(over[-1].numpy(), apart[-1].numpy())


def run(func: PrimFunc, arguments: list[tvm.runtime.Tensor], target: Target) -> None:
    tvm.compile(IRModule({"main": func.with_attr("global_symbol", "main")}), target)["main"](*arguments)


@pytest.mark.parametrize("name", PIXELWISE)
def test_pixel_by_pixel(name: str) -> None:
    func = kernel(*PIXELWISE[name], TWO_CPUS)
    assert in_place_inputs(func, len(func.params) - 1) == [0]
    check_in_one_memory(func, 0, TWO_CPUS)


@pytest.mark.parametrize("name", ROLLING)
def test_row_by_row(name: str) -> None:
    usual = kernel(*ROLLING[name], TWO_CPUS)
    rolling = rolling_of(usual)
    assert rolling is not None
    assert in_place_inputs(usual, len(usual.params) - 1) == []
    assert in_place_inputs(rolling, len(rolling.params) - 1) == [0]
    check_in_one_memory(rolling, 0, TWO_CPUS)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([int(d) for d in p.shape]).astype("float32") for p in usual.params]
    found, expected = ([tvm.runtime.tensor(a) for a in arrays] for _ in range(2))
    run(rolling, found, TWO_CPUS)
    run(usual, expected, TWO_CPUS)
    np.testing.assert_allclose(found[-1].numpy(), expected[-1].numpy(), rtol=1e-5, atol=1e-5)


def of_itself(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """A convolution plus its own input, which is read by the sum after all."""
    return relax.op.add(builder.emit(conv(8, 3, groups=8)(builder, x)), x)


@pytest.mark.parametrize(
    ("shape", "build"),
    [
        ((1, 6, 6, 8), conv(16)),  # another shape
        ((1, 6, 6, 8), conv(8, 3, strides=2)),
        ((1, 6, 6, 8), conv(8, 3, strides=2, padding=(4, 4, 4, 4))),  # of one shape by its border
        ((1, 4, 4, 256), conv(256)),  # a pixel that does not fit on the stack
        ((2, 6, 6, 8), conv(8, 3, groups=8)),  # several images
        ((1, 8, 6, 6), conv(8, 3, groups=8, layout="NCHW")),
        ((1, 8, 6, 6), conv(8, layout="NCHW")),
        ((1, 6, 6, 8), of_itself),
        ((4, 8), lambda builder, x: relax.op.nn.softmax(x)),
    ],
)
def test_others_may_not(shape: tuple[int, ...], build: Build) -> None:
    func = kernel(shape, build)
    assert in_place_inputs(func, len(func.params) - 1) == []
    assert rolling_of(func) is None


def test_what_a_pixelwise_kernel_adds_may_be_overwritten_as_well() -> None:
    builder = relax.BlockBuilder()
    x, y = (relax.Var(name, relax.TensorType((1, 6, 6, 8), "float32")) for name in "xy")
    with builder.function("main", [x, y]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.add(builder.emit(conv(8)(builder, x)), y))
        builder.emit_func_output(result)
    func = only_kernel(builder.get())
    assert in_place_inputs(func, len(func.params) - 1) == [0, 2]  # the weights lie between


def test_not_if_the_call_has_the_tensor_twice() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((8, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value = builder.emit(relax.op.matmul(x, x))
            result = builder.emit_output(relax.op.matmul(value, value))
        builder.emit_func_output(result)
    graph = extract_graph(lean(kernels_of(builder.get(), ONE_CPU), ONE_CPU)).graph
    assert [node.in_place for node in graph.nodes] == ["", "", ""]


def blocks(n: int) -> IRModule:
    """A row of blocks: ReLU, depthwise and 1x1 convolution, all of one shape; then fewer channels."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 32, 32, 16), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value: relax.Expr = x
            for _ in range(n):
                value = builder.emit(relax.op.nn.relu(value))
                value = builder.emit(conv(16, 3, groups=16)(builder, value))
                value = builder.emit(conv(16)(builder, value))
            result = builder.emit_output(conv(4, 3)(builder, value))
        builder.emit_func_output(result)
    return kernels_of(builder.get(), ONE_CPU)


def test_a_row_of_convolutions_in_one_tensor() -> None:
    mod = blocks(2)
    with ONE_CPU:
        planned, plan = plan_memory(lean(mod, ONE_CPU))
        _, usual = plan_memory(lean(mod, ONE_CPU), options=MemoryOptions(rewrite_kernels=False))
    tensor, row = 32 * 32 * 16 * 4, 34 * 16 * 4
    assert usual.schedule.peak_bytes == 2 * tensor
    # The last convolution, to another shape, reads the tensor and writes a quarter of it.
    assert plan.schedule.peak_bytes == max(tensor + 3 * row, tensor + tensor // 4)
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 16)).astype("float32")
    ours, theirs = (
        measure_peak(tvm.compile(m, ONE_CPU, relax_pipeline="default_build"), [x], 1) for m in (planned, mod)
    )
    assert ours.tensor_peak_bytes == plan.arena.size_bytes == plan.schedule.peak_bytes
    np.testing.assert_allclose(ours.outputs[0], theirs.outputs[0], rtol=1e-5, atol=1e-5)


def test_only_calls_that_need_it_go_row_by_row() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 32, 32, 16), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value = builder.emit(conv(16, 3, groups=16)(builder, builder.emit(relax.op.nn.relu(x))))
            value = builder.emit(relax.op.nn.max_pool2d(value, (2, 2), strides=(2, 2), layout="NHWC"))
            value = builder.emit(conv(16, 3, groups=16)(builder, builder.emit(relax.op.nn.relu(value))))
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    mod = kernels_of(builder.get(), ONE_CPU)
    with ONE_CPU:
        planned, plan = plan_memory(lean(mod, ONE_CPU))
    work = [node.workspace_bytes for node in plan.graph.nodes if node.workspace_bytes]
    assert work == [3 * 34 * 16 * 4]  # the second, on a quarter of the pixels, keeps two tensors
    assert plan.schedule.peak_bytes == peak_bytes(plan.graph, plan.schedule.order)
    assert all(rolling_of(f) is None for f in planned.functions.values() if is_kernel(f))


def test_calls_of_other_kernels_are_steps_as_well() -> None:
    """A kernel that TVM did not make stands before those that go row by row."""
    builder = relax.BlockBuilder()
    ty = relax.TensorType((1, 32, 32, 16), "float32")
    x = relax.Var("x", ty)
    with builder.function("main", [x]):
        with builder.dataflow():
            value = builder.emit(relax.call_dps_packed("from.elsewhere", [x], ty))
            value = builder.emit(conv(16, 3, groups=16)(builder, builder.emit(relax.op.nn.relu(value))))
            value = builder.emit(relax.op.nn.max_pool2d(value, (2, 2), strides=(2, 2), layout="NHWC"))
            result = builder.emit_output(conv(16, 3, groups=16)(builder, builder.emit(relax.op.nn.relu(value))))
        builder.emit_func_output(result)
    with ONE_CPU:
        _, plan = plan_memory(lean(kernels_of(builder.get(), ONE_CPU), ONE_CPU))
    work = {node.op: node.workspace_bytes for node in plan.graph.nodes if node.workspace_bytes}
    assert list(work.values()) == [3 * 34 * 16 * 4]
    assert all("rolling" in op for op in work)
    tensor = 32 * 32 * 16 * 4
    assert plan.schedule.peak_bytes == tensor + tensor // 4  # while the pooling runs


@pytest.mark.parametrize("reduce", [relax.op.max, relax.op.sum])
def test_a_reduction_of_one_element_writes_before_it_reads(reduce: Callable[..., relax.Expr]) -> None:
    """Its first value (0, or the lowest number) would overwrite the only element."""
    func = kernel((2, 8), lambda _, x: reduce(relax.op.expand_dims(x, 0), axis=[0]))
    assert in_place_inputs(func, 1) == []
    assert in_place_inputs(kernel((2, 8), lambda _, x: relax.op.nn.relu(x)), 1) == [0]
