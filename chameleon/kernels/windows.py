"""Kernels that work on a window of a larger tensor, and concatenations that need not copy.

A concatenation copies nothing if its parts are written at their place in it. For that, every kernel that reads or
writes a part gets the whole tensor as its argument, and its indices are moved to the place of the part. This works in
any layout. An offset in bytes would not be enough: in NHWC the channels of a part are not one piece of memory.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Range
from tvm.ir.expr import TensorLoad, TensorRegion
from tvm.ir.prim import LE
from tvm.sym import Analyzer
from tvm.tirx import BufferStore, IntImm, PrimFunc
from tvm_ffi import structural_map

from chameleon.ir import is_call, static_shape
from chameleon.kernels.in_place import without_rolling
from chameleon.kernels.inspect import blocks_of


@dataclass(frozen=True)
class Window:
    """A place in a larger tensor.

    Attributes:
        shape: the shape of the larger tensor.
        starts: the first index of the window on each axis.
    """

    shape: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class ConcatKernel:
    """What a kernel that only concatenates does.

    Attributes:
        axis: the axis along which inputs are concatenated.
        starts: the index on this axis where each input begins.
        sizes: the length of each input on this axis.
    """

    axis: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]


def concat_kernel(func: PrimFunc) -> ConcatKernel | None:
    """How a kernel concatenates its inputs; `None` if it does anything else."""
    *inputs, output = func.params
    blocks = blocks_of(func)
    if (
        len(inputs) < 2
        or len(blocks) != 1
        or not isinstance(blocks[0].body, BufferStore)
        or blocks[0].init is not None
    ):
        return None
    store = blocks[0].body
    found = _shape_of(inputs, output)
    if found is None or not store.buffer.same_as(output):
        return None
    loads = _branches(store.value, store.indices[found.axis])
    if loads is None or len(loads) != len(inputs):
        return None
    for buffer, start, (low, load) in zip(inputs, found.starts, loads, strict=True):
        shifted = _moved(store.indices, tuple(-start if i == found.axis else 0 for i in range(len(store.indices))))
        same = all(_equal(a, b) for a, b in zip(load.indices, shifted, strict=True))
        if not load.source.same_as(buffer) or low != start or not same:
            return None
    return found


def without_copies(func: PrimFunc, placed: Collection[int]) -> PrimFunc:
    """A concatenation that does not copy the inputs at these positions, because they already lie in its output.

    It reads their elements from the output. So it never uses two arguments that name the same memory.
    """
    *inputs, output = func.params
    if len(placed) == len(inputs):
        nothing: Any = PrimFunc(func.params, tirx.Evaluate(IntImm("int32", 0)), func.ret_type, func.attrs)
        return nothing.with_attr("tirx.is_scheduled", True)
    (block,) = blocks_of(func)
    indices = list(block.body.indices)

    def load(node: TensorLoad) -> Any:
        return tirx.BufferLoad(output, indices) if any(node.source.same_as(inputs[i]) for i in placed) else node

    def region(node: Any) -> Any:
        if not any(node.source.same_as(inputs[i]) for i in placed):
            return node
        return tirx.BufferRegion(output, [Range.from_min_extent(i, 1) for i in indices])

    body = structural_map(func.body, [(TensorLoad, load), (TensorRegion, region)])
    return PrimFunc(func.params, body, func.ret_type, func.attrs)


def windowed(func: PrimFunc, windows: Mapping[int, Window]) -> PrimFunc:
    """The kernel in which some parameters, given by position, are windows of larger tensors."""
    params = list(func.params)
    moved = []
    for position, window in windows.items():
        old = params[position]
        params[position] = tirx.decl_buffer(
            [IntImm("int64", d) for d in window.shape], old.dtype, old.name, layout=None
        )
        moved.append((old, params[position], window.starts))

    def of(buffer: Any) -> tuple[Any, tuple[int, ...]] | None:
        return next(((new, starts) for old, new, starts in moved if old.same_as(buffer)), None)

    def load(node: TensorLoad) -> Any:
        found = of(node.source)
        return node if found is None else tirx.BufferLoad(found[0], _moved(node.indices, found[1]))

    def store(node: BufferStore) -> Any:
        found = of(node.buffer)
        return node if found is None else BufferStore(found[0], node.value, _moved(node.indices, found[1]))

    def region(node: Any) -> Any:
        found = of(node.source)
        if found is None:
            return node
        lows = _moved([r.min for r in node.region], found[1])
        return tirx.BufferRegion(
            found[0], [Range.from_min_extent(a, r.extent) for a, r in zip(lows, node.region, strict=True)]
        )

    body = structural_map(func.body, [(TensorLoad, load), (BufferStore, store), (TensorRegion, region)])
    return without_rolling(PrimFunc(params, body, func.ret_type, func.attrs))


def _moved(indices: Any, starts: tuple[int, ...]) -> list[Any]:
    return [index + start if start else index for index, start in zip(indices, starts, strict=True)]


def _shape_of(inputs: Any, output: Any) -> ConcatKernel | None:
    """The concatenation that the shapes allow: they may differ on one axis only. `None` if they allow none."""
    shapes = [static_shape(buffer) or () for buffer in (*inputs, output)]
    *parts, whole = shapes
    axes = {
        i
        for part in parts
        if len(part) == len(whole)
        for i, (a, b) in enumerate(zip(part, whole, strict=True))
        if a != b
    }
    if len(axes) != 1 or any(len(part) != len(whole) or not part for part in parts):
        return None
    (axis,) = axes
    sizes = tuple(part[axis] for part in parts)
    starts = tuple(sum(sizes[:i]) for i in range(len(sizes)))
    return ConcatKernel(axis, starts, sizes) if sum(sizes) == whole[axis] else None


def _branches(value: Any, index: Any) -> list[tuple[int, TensorLoad]] | None:
    """Every load of `if start <= index then load else ...` with its start, the lowest start first.

    `None` if the value has another form.
    """
    found: list[tuple[int, TensorLoad]] = []
    while is_call(value, "prim.if_then_else"):
        condition, load, value = value.args
        if not isinstance(condition, LE) or not isinstance(load, TensorLoad):
            return None
        if not isinstance(condition.a, IntImm) or not _equal(condition.b, index):
            return None
        found.append((int(condition.a), load))
    return [(0, value), *found[::-1]] if isinstance(value, TensorLoad) else None


def _equal(a: Any, b: Any) -> bool:
    return bool(Analyzer().can_prove_equal(a, b))
