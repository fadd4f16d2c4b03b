"""Answer questions about TVM's intermediate representation (shapes, sizes, called operators), and exchange `main`."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import tvm
from tvm.ir import Call, IRModule, Op
from tvm.relax.expr import Var
from tvm.relax.expr_functor import PyExprMutator
from tvm.tirx import IntImm


def static_dims(shape: Any) -> tuple[int, ...] | None:
    """The numbers of a shape; `None` if a dimension is not known.

    Args:
        shape: the shape of a buffer or of a Relax tensor type.
    """
    dims = getattr(shape, "values", shape)
    if dims is None or not all(isinstance(d, IntImm) for d in dims):
        return None
    return tuple(int(d) for d in dims)


def static_shape(ty: Any) -> tuple[int, ...] | None:
    """The shape of a buffer or of a Relax type; `None` if the type has no shape or a dimension is not known."""
    return static_dims(getattr(ty, "shape", None))


def element_bytes(dtype: Any) -> int:
    """Bytes of one element, with all its lanes; bits are rounded up to whole bytes."""
    known = tvm.DataType(str(dtype))
    return (int(known.bits) * int(known.lanes) + 7) // 8


def tensor_bytes(dims: Sequence[int], dtype: Any) -> int:
    """Bytes of a tensor of this shape and type."""
    return math.prod(dims) * element_bytes(dtype)


def operator_name(value: Any) -> str:
    """The name of the operator that an expression calls; empty if it calls none."""
    return value.op.name if isinstance(value, Call) and isinstance(value.op, Op) else ""


def is_call(value: Any, names: str | Collection[str]) -> bool:
    """Whether an expression calls one of the operators with these names."""
    return bool(name := operator_name(value)) and name in ((names,) if isinstance(names, str) else names)


def bound_value(mutator: PyExprMutator, operand: Any) -> Any:
    """What a variable of a function stands for that is being rewritten; the operand itself if it is no variable."""
    return mutator.lookup_binding(operand) if isinstance(operand, Var) else operand


def has_call(mod: Any, name: str) -> bool:
    """Whether the function `main` of a module calls the operator of this name."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if is_call(node, name):
            found.append(node)

    tvm.relax.analysis.post_order_visit(mod["main"], visit)
    return bool(found)


def with_main(mod: IRModule, main: Any) -> IRModule:
    """A copy of the module with another `main`; kernels that an importer wrote itself stay."""
    functions = dict(mod.functions_items())
    functions[mod.get_global_var("main")] = main
    return IRModule(functions, attrs=mod.attrs)
