"""Random inputs for a model, drawn by type and meaning, so that every reader of them stays inside its tables."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tvm.ir import Call, GenericConst, IRModule
from tvm.relax import Function, Tuple, TupleGetItem, Var

from chameleon.ir import is_call, operator_name, static_shape

if TYPE_CHECKING:
    from chameleon.models.load import Model, TensorSpec

INDEXING = tuple(
    f"relax.{name}"
    for name in ("take", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "index_tensor", "index_put")
)
"""Operators whose first argument is a table, and whose second argument says where to read or write it."""

MOVING = tuple(
    f"relax.{name}"
    for name in (
        *("astype", "reshape", "squeeze", "expand_dims", "permute_dims", "broadcast_to", "concat", "split", "stack"),
        *("strided_slice", "flatten", "tile", "repeat", "flip", "take", "gather_elements", "gather_nd"),
        *("minimum", "maximum", "clip"),
    )
)
"""Operators that move numbers or bound them, and do not make them larger."""

SMALL = 10
"""Integers that index nothing are drawn below this."""


def input_arrays(model: Model, rng: np.random.Generator) -> list[NDArray[np.generic]]:
    """Random inputs for a model, in the order of its parameters.

    - What indexes a table gets numbers of its rows, those of the smallest table if there are several.
    - A mask, by its name, gets ones and then zeros along its last axis: at least one, so that no row is all masked.
    - Other floating-point inputs get numbers of the normal distribution, and other 8-bit integers their whole range.
    - Other integers are small and not negative.
    """
    limits = index_limits(model.mod)
    return [_array(spec, limits.get(i), rng) for i, spec in enumerate(model.inputs)]


def index_limits(mod: IRModule) -> dict[int, int]:
    """The inputs that index something, by position, and the number that their elements must stay below.

    Where arithmetic stands between an input and the index, its values are not known. Then 0 and 1 are taken to be
    safe: the limit is 2.
    """
    main = mod["main"]
    assert isinstance(main, Function)
    values = {b.var: b.value for block in main.body.blocks for b in block.bindings}
    positions = {param: i for i, param in enumerate(main.params)}
    limits: dict[int, int] = {}
    waiting = [found for value in values.values() for found in _indices(value)]
    seen: dict[Any, int] = {}
    while waiting:
        expr, limit = waiting.pop()
        if not isinstance(expr, Var):
            waiting += _sources(expr, limit, values)
        elif limit < seen.get(expr, limit + 1):
            seen[expr] = limit
            if expr in positions:
                limits[positions[expr]] = limit
            waiting += _sources(values.get(expr), limit, values)
    return limits


def _indices(value: Any) -> Iterator[tuple[Any, int]]:
    """The index arguments of an operator, with the number of places that they choose among."""
    if is_call(value, "relax.one_hot"):
        yield value.args[0], int(value.attrs.depth)
    elif is_call(value, INDEXING):
        dims = static_shape(value.args[0].ty) or (2,)
        axis = getattr(value.attrs, "axis", None)
        by_axis = operator_name(value) in ("relax.take", "relax.gather_elements", "relax.scatter_elements")
        whole = math.prod(dims) if by_axis else min(dims, default=1)  # `take` without an axis reads a flat table
        yield value.args[1], max(1, whole if axis is None or not by_axis else dims[int(axis)])


def _sources(value: Any, limit: int, values: dict[Any, Any]) -> list[tuple[Any, int]]:
    """The expressions that an index is made of, with the number that each must stay below."""
    if isinstance(value, Tuple):
        return [(field, limit) for field in value.fields]
    if isinstance(value, TupleGetItem):
        return [(value.tuple_value, limit)]
    if isinstance(value, Var):
        return [(value, limit)]
    if not isinstance(value, Call):
        return []
    if is_call(value, MOVING):
        return [(a, limit) for a in value.args if isinstance(a, (Var, Tuple))]
    if is_call(value, "relax.where"):
        condition, then, other = value.args
        # `where(i < 0, i + n, i)` counts negative indices from the end; ours are not negative
        wraps = is_call(below := values.get(condition), "relax.less") and _is_zero(below.args[1])
        return [(other, limit)] if wraps else [(then, limit), (other, limit)]
    integers = [a for a in value.args if isinstance(a, (Var, Tuple)) and "int" in str(getattr(a.ty, "dtype", "int"))]
    return [(a, min(limit, 2)) for a in integers]


def _is_zero(expr: Any) -> bool:
    return isinstance(expr, GenericConst) and not expr.value.numpy().any()


def _array(spec: TensorSpec, limit: int | None, rng: np.random.Generator) -> NDArray[np.generic]:
    if "mask" in spec.name.lower():
        return _mask(spec, limit)
    if spec.dtype == "bool":
        return rng.integers(0, 2, spec.shape).astype(bool)
    if limit is not None:
        return rng.integers(0, limit, spec.shape).astype(spec.dtype)
    if "int" not in spec.dtype:
        return rng.standard_normal(spec.shape).astype(spec.dtype)
    if spec.dtype in ("int8", "uint8"):
        info = np.iinfo(spec.dtype)
        return rng.integers(info.min, info.max, spec.shape, endpoint=True).astype(spec.dtype)
    return rng.integers(0, SMALL, spec.shape).astype(spec.dtype)


def _mask(spec: TensorSpec, limit: int | None) -> NDArray[np.generic]:
    """Ones, and zeros in the last third of the last axis."""
    mask = np.full(spec.shape, min(1, (limit or 2) - 1)).astype(spec.dtype)
    if spec.shape:
        mask[..., max(1, spec.shape[-1] * 2 // 3) :] = 0
    return mask
