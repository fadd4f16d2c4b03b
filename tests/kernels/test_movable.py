"""Operators that TVM cannot move to another layout: none stands between transposes, and the results are the same."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.script import relax as R
from tvm.target import Target
from tvm_ffi import structural_equal

from chameleon.kernels.lower import build, kernels_of, moving_kernels, to_target_layout
from chameleon.kernels.movable import with_movable_operators

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 2})
OPERATORS = {
    "relu6": lambda x: relax.op.clip(x, 0, 6),
    "hard sigmoid": lambda x: relax.op.clip(relax.op.add(x, relax.const(0.5, "float32")), 0, 1),
    "leaky relu": lambda x: relax.op.nn.leakyrelu(x, 0.1),
}


def network(operator: str) -> IRModule:
    """Two 1x1 convolutions with the operator between them."""
    rng = np.random.default_rng(0)
    x = relax.Var("x", R.Tensor((1, 4, 6, 6), "float32"))
    first, second = (relax.const(rng.standard_normal((8, c, 1, 1)).astype(np.float32)) for c in (4, 8))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, first))
            y = builder.emit(builder.normalize(OPERATORS[operator](y)))
            y = builder.emit_output(relax.op.nn.conv2d(y, second))
        builder.emit_func_output(y)
    return builder.get()


def run(mod: IRModule, x: np.ndarray) -> np.ndarray:
    return relax.VirtualMachine(build(mod, CPU), tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize("operator", OPERATORS)
def test_only_the_ends_of_the_network_are_transposed(operator):
    kernels = kernels_of(to_target_layout(network(operator), CPU), CPU)
    assert len(moving_kernels(kernels)) <= 2  # the input and the output


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_results_are_the_same_bits(operator):
    x = (8 * np.random.default_rng(1).standard_normal((1, 4, 6, 6))).astype(np.float32)
    mod = network(operator)
    kernels = [relax.transform.LegalizeOps()(m) for m in (mod, with_movable_operators(mod))]
    plain, written = (run(m, x) for m in kernels)
    np.testing.assert_array_equal(plain, written)


def test_whole_numbers_and_odd_slopes_are_left_alone():
    x, n = relax.Var("x", R.Tensor((4,), "float32")), relax.Var("n", R.Tensor((4,), "int32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, n]):
        with builder.dataflow():
            a = builder.emit(relax.op.clip(n, 0, 6))
            b = builder.emit(relax.op.nn.leakyrelu(x, 1.5))
            out = builder.emit_output(relax.Tuple([a, b]))
        builder.emit_func_output(out)
    mod = builder.get()
    assert structural_equal(with_movable_operators(mod), mod)
