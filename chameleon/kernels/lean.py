"""Default schedules that need little memory, for convolutions and other reductions."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from functools import partial
from typing import Any

from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.expr import TensorLoad
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.tirx import BufferStore, PrimFunc

from chameleon.ir import is_call, static_shape
from chameleon.kernels.in_place import (
    may_overwrite,
    padded_input,
    pixelwise_input,
    rolls,
    row_loop,
    with_data_parallel_readers,
)
from chameleon.kernels.loops import (
    LANES,
    ROW,
    extent_of,
    inline,
    inlined,
    is_reduction,
    parallel_outer,
    reduces,
    schedule_block,
    vectorize,
)
from chameleon.kernels.optional import if_possible


def lean_schedule(func: PrimFunc) -> PrimFunc | None:
    """Schedule a reduction, its padding and its element-wise epilogue as one loop nest; `None` for other kernels.

    Raises:
        Exception: if the kernel cannot be scheduled like this.
    """
    sch = Schedule(func)
    blocks = normalize_prim_func(sch)
    if not blocks:
        return None
    overwritten = None
    kept = [b for b in blocks if not (_copies(sch, b) or inlined(sch, b))]
    reduction, store = _reduction_and_store(sch, kept)
    if reduction is not None:
        overwritten = if_possible(
            "pixel by pixel in place", kept[0].name, partial(pixelwise_input, sch, reduction, store), None
        )
    if reduction is not None and (store is not None or overwritten is not None):
        store = store or sch.cache_write(reduction, 0, "global")
        _schedule_pair(sch, reduction, store, whole=overwritten is not None)
    elif len(kept) == 1:
        schedule_block(sch, kept[0])
    else:
        return None
    made = sch.mod["main"].with_attr("tirx.is_scheduled", True)
    return made if overwritten is None else may_overwrite(made, overwritten)


def rolling_schedule(func: PrimFunc) -> PrimFunc | None:
    """Schedule a convolution row by row, so that it may overwrite its input; `None` for other kernels.

    One thread computes the rows, one after the other.

    Raises:
        Exception: if the kernel cannot be scheduled like this.
    """
    if not _has_small_indices(func):
        return None
    # `rolling_buffer` mixes integers of 32 bits with indices of 64.
    func = tirx.transform.ForceNarrowIndexToInt32()(IRModule({"main": func}))["main"]
    blocks = normalize_prim_func(Schedule(func)) or []
    # This schedule keeps the loops that run only once: `rolling_buffer` takes the variables of a block for the axes of
    # its output.
    sch = Schedule(func)
    for block in blocks:
        block.block_rv = sch.get_sblock(block.name)
    pads = [b for b in blocks if _only_copies(sch, b) and padded_input(sch, b.block_rv) is not None]
    if len(pads) != 1:
        return None
    pad = pads[0].block_rv
    overwritten = padded_input(sch, pad)
    kept = [b for b in blocks if b is not pads[0] and not (_copies(sch, b) or inlined(sch, b))]
    reduction, store = _reduction_and_store(sch, kept)
    if reduction is None:
        return None
    store = store or sch.cache_write(reduction, 0, "global")
    rows = row_loop(sch, store)
    if rows is None:
        return None
    _schedule_pair(sch, reduction, store, parallel=False)
    sch.compute_at(pad, rows, preserve_unit_loops=True)
    if not rolls(sch, pad, rows):
        return None
    if (extent_of(sch, sch.get_loops(pad)[-1]) or 1) % LANES == 0:
        vectorize(sch, sch.get_loops(pad)[-1])
    sch.rolling_buffer(pad, 0)
    made = sch.mod["main"].with_attr("tirx.is_scheduled", True)
    return may_overwrite(with_data_parallel_readers(made, pads[0].name), overwritten)


def _has_small_indices(func: PrimFunc) -> bool:
    shapes = [static_shape(buffer) for buffer in func.params]
    return all(shape is not None and math.prod(shape) < 2**31 for shape in shapes)


def _reduction_and_store(sch: Schedule, blocks: list[Any]) -> tuple[Any, Any]:
    """The reduction, and the block that makes the output from its sums.

    The second is `None` if the reduction writes the output itself. Both are `None` if the kernel has other blocks.
    """
    found = [b.block_rv for b in blocks]
    if [reduces(sch, rv) for rv in found] not in ([True], [True, False]):
        return None, None
    return found[0], found[1] if len(found) == 2 else None


def _copies(sch: Schedule, block: Any) -> bool:
    """Inline a block that only copies or pads, and say whether that was done.

    It does not matter what reads the block: computing its elements again costs only a comparison.
    """
    return _only_copies(sch, block) and bool(sch.get_consumers(block.block_rv)) and inline(sch, block)


def _only_copies(sch: Schedule, block: Any) -> bool:
    body = sch.get(block.block_rv).body
    value = body.value if isinstance(body, BufferStore) else None
    if is_call(value, "prim.if_then_else"):
        value = value.args[1]
    return isinstance(value, TensorLoad)


def _schedule_pair(sch: Schedule, reduction: Any, store: Any, *, whole: bool = False, parallel: bool = True) -> None:
    """Compute a reduction where its only reader needs it: a vector or a row at a time.

    Args:
        whole: compute the whole innermost axis at a time, and not a vector or a row at a time.
        parallel: let several threads share the outer loops.
    """
    *outer, inner = sch.get_loops(store)
    lanes = extent_of(sch, inner) or ROW + 1
    vectors = lanes % LANES == 0
    if whole:
        outer = outer or [sch.add_unit_loop(inner)]
    elif vectors:
        chunks, inner = sch.split(inner, factors=[None, LANES])
        outer.append(chunks)
    elif lanes > ROW or not outer:
        outer.append(inner)
    sch.compute_at(reduction, outer[-1], preserve_unit_loops=True)
    inside = sch.get_loops(reduction)[len(outer) :]
    n_spatial = len(inside) - sum(is_reduction(v) for v in sch.get(reduction).iter_vars)
    spatial, reductions = inside[:n_spatial], inside[n_spatial:]
    sch.reorder(*reductions, *spatial)
    if parallel:
        parallel_outer(sch, outer)
    if vectors:
        vectorize(sch, inner)
        vectorize(sch, spatial[-1])
    sch.decompose_reduction(reduction, reductions[0])
