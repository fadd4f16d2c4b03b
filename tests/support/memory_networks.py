"""Small Relax functions with irregular wiring, for tests of memory: NHWC, random weights, no file and no PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

from chameleon.kernels.lower import kernels_of

CPU = Target({"kind": "llvm", "num-cores": 1})
SHAPE = (1, 12, 12, 8)


class Builder:
    """Operators with random weights, emitted one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self.builder, self.rng = relax.BlockBuilder(), np.random.default_rng(seed)

    def emit(self, value: relax.Expr) -> relax.Var:
        return self.builder.emit(value)

    def weight(self, *shape: int) -> relax.Expr:
        return relax.const((self.rng.standard_normal(shape) * 0.2).astype("float32"))

    def conv(self, x: relax.Var, channels: int, kernel: int = 3, stride: int = 1) -> relax.Var:
        """Convolution, bias, ReLU."""
        into = int(x.ty.shape[3])
        weight, bias = self.weight(kernel, kernel, into, channels), self.weight(1, 1, 1, channels)
        layout = {"data_layout": "NHWC", "kernel_layout": "HWIO"}
        y = self.emit(relax.op.nn.conv2d(x, weight, padding=kernel // 2, strides=stride, **layout))
        return self.emit(relax.op.nn.relu(self.emit(relax.op.add(y, bias))))

    def add(self, x: relax.Var, y: relax.Var) -> relax.Var:
        return self.emit(relax.op.add(x, y))

    def function(self, body: Callable[[Builder, relax.Var], relax.Expr], shape: tuple[int, ...] = SHAPE) -> IRModule:
        """A module whose `main` has one input."""
        x = relax.Var("x", relax.TensorType(shape, "float32"))
        with self.builder.function("main", [x]):
            with self.builder.dataflow():
                out = self.builder.emit_output(body(self, x))
            self.builder.emit_func_output(out)
        return self.builder.get()


def residual(b: Builder, x: relax.Var) -> relax.Expr:
    """Three convolutions, sums, a view, a softmax; two outputs."""
    first = b.conv(x, 16)
    second, third = b.conv(first, 16), b.conv(first, 16, 1)
    total = b.add(b.add(second, third), first)
    rows = b.emit(relax.op.reshape(total, (1, 144, 16)))
    return relax.Tuple([b.emit(relax.op.nn.softmax(rows, -1)), b.emit(relax.op.mean(total, [1, 2]))])


def fans(b: Builder, x: relax.Var) -> relax.Expr:
    """Four wide branches that become narrow: depth first needs far less than breadth first."""
    wide = [b.conv(x, 32 + 16 * (i % 2)) for i in range(4)]
    narrow = [b.conv(w, 8, 1) for w in wide]
    return b.emit(relax.op.nn.max_pool2d(b.add(b.add(*narrow[:2]), b.add(*narrow[2:])), [2, 2], [2, 2], layout="NHWC"))


def concats(b: Builder, x: relax.Var) -> relax.Expr:
    """Branches, a concatenation and a convolution that reads it: the pattern of the rewriting."""
    parts = [b.conv(x, 16, 1 + 2 * (i % 2)) for i in range(5)]
    joined = b.emit(relax.op.concat(parts, 3))
    return b.conv(joined, 8)


def split(b: Builder, x: relax.Var) -> relax.Expr:
    """A kernel with two results."""
    y = b.conv(x, 16)
    halves = b.emit(relax.op.split(y, 2, 3))
    left, right = b.emit(halves[0]), b.emit(halves[1])
    return b.add(b.conv(left, 8), right)


def odd(b: Builder, x: relax.Var) -> relax.Expr:
    """Results that are views of an input, of each other, or constant."""
    y = b.emit(relax.op.nn.relu(x))
    rows = b.emit(relax.op.reshape(y, (1, 144, 8)))
    return relax.Tuple(
        [b.emit(relax.op.reshape(x, (144, 8))), y, rows, b.emit(relax.op.zeros((1, 3), "float32")), b.weight(2, 2)]
    )


NETWORKS = {"residual": residual, "fans": fans, "concats": concats, "split": split, "odd": odd}


def network(name: str) -> IRModule:
    """One of the networks as fused kernels, without schedules."""
    return kernels_of(Builder().function(NETWORKS[name]), CPU)


def inputs(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng([seed, 7]).standard_normal(shape).astype("float32")


def outputs(executable: relax.VMExecutable, x: np.ndarray) -> list[np.ndarray]:
    """What a built network computes, in this process."""
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x))
    return [t.numpy() for t in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]
