"""Write operators that TVM cannot move to another layout as operators that it can move.

TVM's conversion of layouts leaves an operator that it does not know in its layout, and puts a transpose before it and
one behind it. A ReLU6 between two convolutions is then a kernel of its own that reads and writes its tensor the slow
way, where it could be fused into the first convolution.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from chameleon.ir import is_call, with_main


def with_movable_operators(mod: IRModule) -> IRModule:
    """The module with some operators of `main` written as arithmetic; the results are the same.

    `clip` and `leakyrelu` become minimum and maximum, `quantize` and `dequantize` what they are defined as. A quotient
    by a scale becomes a product, so a number that lies between two integers may go the other way.
    """
    return with_main(mod, _Writer(mod).visit_expr(mod["main"]))


@mutator
class _Writer(PyExprMutator):
    def visit_call_(self, op: Call) -> relax.Expr:
        call = super().visit_call_(op)
        dtype = str(getattr(call.ty, "dtype", ""))
        if is_call(call, ("relax.quantize", "relax.dequantize")) and (step := _step(call)) is not None:
            return (
                self._dequantized(call, *step) if is_call(call, "relax.dequantize") else self._quantized(call, *step)
            )
        if not dtype.startswith("float"):
            return call
        if is_call(call, "relax.clip"):
            x, low, high = call.args
            at_most = self.builder_.emit(relax.op.minimum(x, relax.const(float(high.value), dtype)))
            return relax.op.maximum(at_most, relax.const(float(low.value), dtype))
        if is_call(call, "relax.nn.leakyrelu") and 0 <= (slope := float(call.attrs.alpha)) <= 1:
            (x,) = call.args
            scaled = self.builder_.emit(relax.op.multiply(x, relax.const(slope, dtype)))
            return relax.op.maximum(x, scaled)
        return call

    def _quantized(self, call: Call, scale: float, zero: float) -> relax.Expr:
        emit, op, dtype = self.builder_.emit, relax.op, str(call.attrs.out_dtype)
        x, limits = call.args[0], np.iinfo(dtype)
        steps = emit(op.round(emit(op.multiply(x, relax.const(1.0 / scale, "float32")))))
        steps = emit(op.add(steps, relax.const(zero, "float32"))) if zero else steps
        at_most = emit(op.minimum(steps, relax.const(float(limits.max), "float32")))
        return op.astype(emit(op.maximum(at_most, relax.const(float(limits.min), "float32"))), dtype)

    def _dequantized(self, call: Call, scale: float, zero: float) -> relax.Expr:
        emit, op = self.builder_.emit, relax.op
        steps = emit(op.astype(call.args[0], "float32"))
        steps = emit(op.subtract(steps, relax.const(zero, "float32"))) if zero else steps
        return op.multiply(steps, relax.const(scale, "float32"))


def _step(call: Call) -> tuple[float, float] | None:
    """Scale and zero point of `quantize` or `dequantize` between float32 and 8 bits, if there is one for all."""
    data, *numbers = call.args
    dtypes = {str(data.ty.dtype), str(call.attrs.out_dtype)}
    if not all(isinstance(n, GenericConst) and n.value.numpy().size == 1 for n in numbers):
        return None
    if dtypes not in ({"float32", "int8"}, {"float32", "uint8"}):
        return None
    scale, zero = (float(n.value.numpy().reshape(())) for n in numbers)
    return scale, zero
