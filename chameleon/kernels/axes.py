"""Count the axes of operators from the front.

TVM's conversion of layouts takes the axes of a squeeze for positions in a string, a negative one too: it writes before
the string, and ends in `std::bad_alloc` or worse.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from chameleon.ir import operator_name, with_main

_OF_OUTPUT = ("relax.expand_dims", "relax.stack", "relax.one_hot")
"""Operators whose axes are those of their result; the others' are those of their first input."""

_AXES = ("axis", "axes", "channel_axis")


def with_positive_axes(mod: IRModule) -> IRModule:
    """The module with every axis of an operator of `main` counted from the front."""
    return with_main(mod, _Counter(mod).visit_expr(mod["main"]))


@mutator
class _Counter(PyExprMutator):
    def visit_call_(self, op: Call) -> relax.Expr:
        fields = _axes_of(op)
        if all(_is_positive(value) for value in fields.values()):
            return super().visit_call_(op)
        rank = _rank(op)
        if rank is None:
            return super().visit_call_(op)
        names = [f.name for f in type(op.attrs).__tvm_ffi_type_info__.fields]
        values = {name: getattr(op.attrs, name) for name in names}
        values.update({name: _counted(value, rank) for name, value in fields.items()})
        attrs = tvm.ir.make_node(type(op.attrs).__tvm_ffi_type_info__.type_key, **values)
        return super().visit_call_(Call(op.op, op.args, attrs, op.ty_args))


def _axes_of(op: Call) -> dict[str, Any]:
    """The axes in the attributes of an operator, by attribute."""
    if not operator_name(op).startswith("relax.") or op.attrs is None:
        return {}
    info = getattr(type(op.attrs), "__tvm_ffi_type_info__", None)
    names = {f.name for f in info.fields} if info is not None else set()
    found = {name: getattr(op.attrs, name) for name in _AXES if name in names}
    return {name: value for name, value in found.items() if value is not None}


def _is_positive(value: Any) -> bool:
    return int(value) >= 0 if isinstance(value, int) else all(int(v) >= 0 for v in value)


def _counted(value: Any, rank: int) -> Any:
    return int(value) % rank if isinstance(value, int) else [int(v) % rank for v in value]


def _rank(op: Call) -> int | None:
    """How many dimensions the axes of an operator count; `None` if that is not known."""
    ty = op.ty if operator_name(op) in _OF_OUTPUT else op.args[0].ty
    ty = ty.fields[0] if hasattr(ty, "fields") and len(ty.fields) else ty
    return int(ty.ndim) if getattr(ty, "ndim", 0) > 0 else None
