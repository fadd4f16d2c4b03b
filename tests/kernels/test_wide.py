"""Sums of half precision are added up in float32; what goes in and comes out keeps its type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target
from tvm_ffi import structural_equal

from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.lower import build, kernels_of
from chameleon.kernels.wide import with_wide_sums

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 2})
TERMS = 4096
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def product(dtype: str, weight: np.ndarray | None) -> IRModule:
    """A long product; the weight is a constant or the second input."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, TERMS), dtype))
    w = relax.Var("w", relax.TensorType((TERMS, 16), dtype))
    with builder.function("main", [x] if weight is not None else [x, w]):
        builder.emit_func_output(builder.emit(relax.op.matmul(x, w if weight is None else relax.const(weight))))
    return relax.transform.ConvertToDataflow()(builder.get())


def run(mod: IRModule, *inputs: np.ndarray) -> np.ndarray:
    executable = build(schedule_defaults(kernels_of(mod, CPU), CPU), CPU)
    return relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, inputs)).numpy()


@pytest.mark.parametrize("constant", [False, True], ids=["two inputs", "constant weights"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_sum_is_rounded_once(dtype: str, constant: bool) -> None:
    rng, kind = np.random.default_rng(0), DTYPES[dtype]
    x, w = (rng.uniform(0, 0.1, shape).astype(kind) for shape in ((2, TERMS), (TERMS, 16)))
    mod = with_wide_sums(product(dtype, w if constant else None))
    assert str(mod["main"].ret_ty.dtype) == dtype
    found = run(mod, *([x] if constant else [x, w]))
    assert found.dtype == kind
    expected = x.astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=float(ml_dtypes.finfo(kind).eps))


def test_other_types_and_operators_stay() -> None:
    mod = product("float32", np.ones((TERMS, 16), np.float32))
    assert structural_equal(with_wide_sums(mod), mod)
