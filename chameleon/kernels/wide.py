"""Convolutions and matrix products of half precision add up in float32, on CPUs.

Few CPUs compute with float16 or bfloat16. On the others the compiler turns every factor into a float32 and every sum
back again. And a sum of a thousand float16 has lost most of its digits. So the factors are turned into float32 before
the operator, constant weights at compile time, and the sums back behind it. PyTorch and ONNX Runtime do the same.
What lies between the operators stays in half precision.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from chameleon.ir import bound_value, is_call, with_main

HALF = ("float16", "bfloat16")

_SUMS = (
    "relax.matmul",
    "relax.nn.conv1d",
    "relax.nn.conv1d_transpose",
    "relax.nn.conv2d",
    "relax.nn.conv2d_transpose",
    "relax.nn.conv3d",
)


def with_wide_sums(mod: IRModule) -> IRModule:
    """The module with the convolutions and products of `main` computed in float32; the types of the results stay."""
    return with_main(mod, _Widener(mod).visit_expr(mod["main"]))


@mutator
class _Widener(PyExprMutator):
    def visit_call_(self, op: Call) -> relax.Expr:
        call = super().visit_call_(op)
        if not is_call(call, _SUMS) or str(call.attrs.out_dtype or "") not in ("", "void"):
            return call
        dtypes = {str(a.ty.dtype) for a in call.args}
        if len(dtypes) != 1 or not dtypes <= set(HALF):
            return call
        wide = Call(call.op, [self._wide(a) for a in call.args], call.attrs)
        return relax.op.astype(self.builder_.emit(wide), dtypes.pop())

    def _wide(self, operand: relax.Expr) -> relax.Expr:
        value = bound_value(self, operand)
        if isinstance(value, GenericConst):
            return relax.const(value.value.numpy().astype(np.float32))
        return self.builder_.emit(relax.op.astype(operand, "float32"))
