"""Write operators that TVM cannot move to another layout as operators that it can move.

TVM's conversion of layouts leaves an operator that it does not know in its layout, and puts a transpose before it and
one behind it. A ReLU6 between two convolutions is then a kernel of its own that reads and writes its tensor the slow
way, where it could be fused into the first convolution.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

from tvm import relax
from tvm.ir import Call, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from chameleon.ir import is_call


def with_movable_operators(mod: IRModule) -> IRModule:
    """The module with `clip` and `leakyrelu` of `main` written as minimum and maximum; the results are the same."""
    functions = dict(mod.functions_items())
    functions[mod.get_global_var("main")] = _Writer(mod).visit_expr(mod["main"])
    return IRModule(functions, attrs=mod.attrs)


@mutator
class _Writer(PyExprMutator):
    def visit_call_(self, op: Call) -> relax.Expr:
        call = super().visit_call_(op)
        dtype = str(getattr(call.ty, "dtype", ""))
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
