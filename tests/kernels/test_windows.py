"""Kernels on windows of larger tensors, and concatenations that leave their parts where they are."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from chameleon.kernels.inspect import names_elements_only
from chameleon.kernels.windows import ConcatKernel, Window, concat_kernel, windowed, without_copies

pytestmark = pytest.mark.tvm
CHANNELS = (3, 2, 5)


def kernel(build, *shapes: tuple[int, ...], fused: bool = False) -> PrimFunc:
    """The one kernel that TVM makes of an expression."""
    builder = relax.BlockBuilder()
    given = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", given):
        with builder.dataflow():
            result = builder.emit_output(build(builder, *given))
        builder.emit_func_output(result)
    transform = relax.transform
    passes = [transform.LegalizeOps(), transform.AnnotateTIROpPattern(), transform.FuseOps(), transform.FuseTIR()]
    mod = tvm.transform.Sequential(passes if fused else passes[:1])(builder.get())
    (func,) = (f for f in mod.functions.values() if isinstance(f, PrimFunc))
    return func


def concatenation(axis: int) -> PrimFunc:
    shapes = [(1, c, 4, 6) if axis == 1 else (1, 4, 6, c) for c in CHANNELS]
    return kernel(lambda _, *x: relax.op.concat(list(x), axis), *shapes)


def call(func: PrimFunc, *arrays: np.ndarray) -> None:
    """Run a kernel; the last array is written."""
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    tvm.compile(func.with_attr("global_symbol", "main"), "llvm")["main"](*tensors)
    for array, tensor in zip(arrays, tensors, strict=True):
        array[...] = tensor.numpy()


@pytest.mark.parametrize("axis", [1, 3])
def test_a_concatenation_is_known(axis: int) -> None:
    assert concat_kernel(concatenation(axis)) == ConcatKernel(axis, (0, 3, 5), CHANNELS)


def test_what_does_more_than_concatenate_is_not() -> None:
    shape = (1, 3, 4, 6)
    fused = kernel(lambda b, x, y: relax.op.nn.relu(b.emit(relax.op.concat([x, y], 1))), shape, shape, fused=True)
    added = kernel(lambda _, x, y: relax.op.add(x, y), shape, shape)
    assert [concat_kernel(func) for func in (fused, added)] == [None, None]


@pytest.mark.parametrize("axis", [1, 3])
def test_parts_that_are_there_already_are_not_copied(axis: int) -> None:
    func, rng = concatenation(axis), np.random.default_rng(0)
    shapes = [tuple(int(d) for d in p.shape) for p in func.params]
    x, y, z = (rng.standard_normal(s).astype("float32") for s in shapes[:3])
    whole = np.concatenate([x, y, z], axis)
    out = whole.copy()
    middle = [slice(None)] * 4
    middle[axis] = slice(3, 5)
    out[tuple(middle)] = np.nan
    # The placed parts are not read: they hold NaN.
    call(without_copies(func, [0, 2]), np.full_like(x, np.nan), y, np.full_like(z, np.nan), out)
    np.testing.assert_array_equal(out, whole)
    out = whole.copy()
    call(
        without_copies(func, [0, 1, 2]), np.full_like(x, np.nan), np.full_like(y, np.nan), np.full_like(z, np.nan), out
    )
    np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_reads_and_writes_windows(stride: int) -> None:
    shape, kernels = (1, 8, 8, 3), (3, 3, 3, 4)

    def conv(builder, x, w):
        layouts = {"data_layout": "NHWC", "kernel_layout": "HWIO", "out_layout": "NHWC"}
        y = builder.emit(relax.op.nn.conv2d(x, w, strides=stride, padding=1, **layouts))
        return relax.op.nn.relu(y)

    func, rng = kernel(conv, shape, kernels, fused=True), np.random.default_rng(1)
    assert names_elements_only(func)
    out_shape = tuple(int(d) for d in func.params[-1].shape)
    x, w = rng.standard_normal(shape).astype("float32"), rng.standard_normal(kernels).astype("float32")
    expected = np.zeros(out_shape, "float32")
    call(func, x, w, expected)
    wide_x, wide_y = np.full((1, 8, 8, 7), np.nan, "float32"), np.full((*out_shape[:3], 9), -7.0, "float32")
    wide_x[..., 2:5] = x
    windows = {0: Window(wide_x.shape, (0, 0, 0, 2)), 2: Window(wide_y.shape, (0, 0, 0, 4))}
    call(windowed(func, windows), wide_x, w, wide_y)
    np.testing.assert_array_equal(wide_y[..., 4:8], expected)
    assert (np.delete(wide_y, range(4, 8), axis=3) == -7.0).all()  # nothing else is written
