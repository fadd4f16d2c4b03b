"""Tasks that hold a convolution or a matrix product, and other work fused behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax
from tvm.ir import IRModule
from tvm.script import relax as R
from tvm.target import Target

from chameleon.kernels.lower import extract_tasks, kernels_of

LLVM = Target({"kind": "llvm", "num-cores": 2})
Step = Callable[[relax.Expr, relax.Var, relax.Var], relax.Expr]
STEPS: dict[str, Step] = {
    "bias": lambda y, bias, _: relax.op.add(y, bias),
    "sum": lambda y, _, other: relax.op.add(y, other),
    "relu": lambda y, *_: relax.op.nn.relu(y),
    "sigmoid": lambda y, *_: relax.op.sigmoid(y),
    "swish": lambda y, *_: relax.op.multiply(y, relax.op.sigmoid(y)),
}


def convolution(
    *steps: str,
    size: int = 8,
    channels: int = 8,
    out: int = 8,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    groups: int = 1,
    dtype: str = "float32",
    layout: str = "NHWC",
) -> IRModule:
    """The task of one convolution with the steps fused behind it."""
    last = layout == "NHWC"
    rows = (size + 2 * padding - kernel) // stride + 1
    data = (1, size, size, channels) if last else (1, channels, size, size)
    each = channels // groups
    weight = (kernel, kernel, each, out) if last else (out, each, kernel, kernel)
    bias, result = ((out,), (1, rows, rows, out)) if last else ((out, 1, 1), (1, out, rows, rows))
    conv = lambda x, w: relax.op.nn.conv2d(  # noqa: E731
        x,
        w,
        strides=stride,
        padding=padding,
        groups=groups,
        data_layout=layout,
        kernel_layout="HWIO" if last else "OIHW",
    )
    return _task(conv, steps, (data, weight, bias, result), dtype)


def product(*steps: str, rows: int = 16, inner: int = 16, columns: int = 16, dtype: str = "float32") -> IRModule:
    """The task of one matrix product with the steps fused behind it."""
    shapes = ((rows, inner), (inner, columns), (columns,), (rows, columns))
    return _task(relax.op.matmul, steps, shapes, dtype)


def _task(
    operator: Callable[..., relax.Expr], steps: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: str
) -> IRModule:
    x, w, bias, other = params = [relax.Var(n, R.Tensor(s, dtype)) for n, s in zip("xwbo", shapes, strict=True)]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            value = builder.emit(operator(x, w))
            for step in steps:
                value = builder.emit(STEPS[step](value, bias, other))
            value = builder.emit_output(value)
        builder.emit_func_output(value)
    (task,) = extract_tasks(kernels_of(builder.get(), LLVM), LLVM)
    return task.mod
