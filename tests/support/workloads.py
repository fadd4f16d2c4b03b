"""Small operators as MetaSchedule's tasks, each with its answer in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

Array = NDArray[np.float32]
nn = relax.op.nn


@dataclass(frozen=True)
class Workload:
    """One operator: the shapes of its inputs, how relax writes it, and what it computes."""

    shapes: tuple[tuple[int, ...], ...]
    build: Callable[..., relax.Expr]
    reference: Callable[..., Array]

    def inputs(self, seed: int = 0) -> list[Array]:
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(shape).astype(np.float32) for shape in self.shapes]


def conv2d(x: Array, w: Array, stride: int = 1, padding: int = 1, groups: int = 1) -> Array:
    """A convolution of `[n, c, h, w]` with `[o, c / groups, kh, kw]`."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    xs, ws = np.split(windows, groups, axis=1), np.split(w, groups, axis=0)
    parts = [np.einsum("nchwij,ocij->nohw", a, b, optimize=True) for a, b in zip(xs, ws, strict=True)]
    return np.concatenate(parts, axis=1)


def conv2d_nhwc(x: Array, w: Array) -> Array:
    """The same for `[n, h, w, c]` and `[kh, kw, c, o]`."""
    return conv2d(x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)).transpose(0, 2, 3, 1)


def conv2d_transpose(x: Array, w: Array, stride: int = 2) -> Array:
    """A transposed convolution of `[n, c, h, w]` with `[c, o, kh, kw]`, no padding; each input point adds a kernel."""
    n, _, height, width = x.shape
    _, out, kh, kw = w.shape
    result = np.zeros((n, out, (height - 1) * stride + kh, (width - 1) * stride + kw), dtype=np.float32)
    for i in range(height):
        for j in range(width):
            result[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw] += np.einsum(
                "nc,cokl->nokl", x[:, :, i, j], w
            )
    return result


def max_pool(x: Array) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


WORKLOADS: Mapping[str, Workload] = {
    "conv2d_nchw": Workload(((1, 8, 14, 14), (16, 8, 3, 3)), lambda x, w: nn.conv2d(x, w, padding=1), conv2d),
    "conv2d_nhwc": Workload(
        ((1, 14, 14, 8), (3, 3, 8, 16)),
        lambda x, w: nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="HWIO"),
        conv2d_nhwc,
    ),
    "depthwise": Workload(
        ((1, 16, 14, 14), (16, 1, 3, 3)),
        lambda x, w: nn.conv2d(x, w, padding=1, groups=16),
        lambda x, w: conv2d(x, w, groups=16),
    ),
    "grouped": Workload(
        ((1, 16, 14, 14), (8, 4, 3, 3)),
        lambda x, w: nn.conv2d(x, w, padding=1, groups=4),
        lambda x, w: conv2d(x, w, groups=4),
    ),
    "transposed": Workload(
        ((1, 8, 7, 7), (8, 6, 3, 3)), lambda x, w: nn.conv2d_transpose(x, w, strides=2), conv2d_transpose
    ),
    "dense": Workload(((32, 64), (64, 48)), relax.op.matmul, np.matmul),
    "batch_matmul": Workload(((4, 16, 32), (4, 32, 24)), relax.op.matmul, np.matmul),
    "softmax": Workload(((32, 48),), nn.softmax, softmax),
    "max_pool": Workload(
        ((1, 8, 16, 16),), lambda x: nn.max_pool2d(x, pool_size=(3, 3), strides=(2, 2), padding=(1, 1)), max_pool
    ),
    "residual": Workload(
        ((1, 8, 14, 14), (8, 8, 3, 3), (1, 8, 1, 1), (1, 8, 14, 14)),
        lambda x, w, b, skip: nn.relu(nn.conv2d(x, w, padding=1) + b + skip),
        lambda x, w, b, skip: np.maximum(conv2d(x, w) + b + skip, 0),
    ),
}


def relax_module(shapes: Sequence[Sequence[int]], build: Callable[..., relax.Expr]) -> IRModule:
    """A network of one expression, through TVM's own default passes: legalised and fused."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"p{i}", relax.TensorType(tuple(shape), "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(build(*params)))
        builder.emit_func_output(out)
    return relax.get_pipeline("zero")(builder.finalize())


def task_of(name: str, target: Target) -> IRModule:
    """The one task of a workload, as `tune_relax` would extract it."""
    return only_task(relax_module(WORKLOADS[name].shapes, WORKLOADS[name].build), target)


def only_task(network: IRModule, target: Target) -> IRModule:
    """The one task of a network of one expression."""
    with target:
        tasks = ms.relax_integration.extract_tasks(network, target)
    if len(tasks) != 1:
        raise ValueError(f"got {len(tasks)} tasks, expected 1: {[t.task_name for t in tasks]}")
    return tasks[0].dispatched[0]
