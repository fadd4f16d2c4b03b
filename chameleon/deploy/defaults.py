"""Schedules for kernels that nobody tuned: far from the best, but many times faster than the loops as written."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from typing import Any

from tvm import relax, tirx
from tvm.ir import Call, IRModule
from tvm.ir.expr import TensorLoad
from tvm.s_tir import Schedule, ScheduleError
from tvm.s_tir import dlight as dl
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.target import Target
from tvm.tirx import BufferStore, IntImm, PrimFunc

from chameleon.deploy.in_place import may_overwrite
from chameleon.deploy.overwriting import (
    padded_input,
    pixelwise_input,
    rolls,
    row_loop,
    with_data_parallel_readers,
    with_rolling,
)

LANES = 16
"""Vector length: 16 floats are one AVX-512 register, and four of NEON."""

PARALLEL = 64
"""Outer iterations shared among the threads, at least, where there are as many."""


ROW = 256
"""Elements of a row at most that a lean kernel computes at a time, in fast memory of its own."""


def schedule_defaults(mod: IRModule, target: Target, *, lean: bool = False) -> IRModule:
    """Give a schedule to each kernel that has none; kernels that resist stay as they are.

    Args:
        lean: for little memory, on CPUs: no padded copy of the input and no tensor between a reduction and what follows it.
    """
    if target.kind.name != "llvm":
        gpu = dl.gpu
        rules = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()]
        with target:
            return dl.ApplyDefaultSchedule(*rules)(mod)
    scheduled = dict(mod.functions_items())
    for var, func in scheduled.items():
        if isinstance(func, PrimFunc) and not is_scheduled(func):
            scheduled[var] = (_lean_schedule(func) if lean else None) or _cpu_schedule(func)
            if lean and (rolling := _rolling_schedule(func)) is not None:
                scheduled[var] = with_rolling(scheduled[var], rolling)
    return relax.transform.DeadCodeElimination()(IRModule(scheduled, attrs=mod.attrs))


def is_scheduled(func: PrimFunc) -> bool:
    """Whether a database's schedule or a default has been applied."""
    return bool(func.attrs.get("tirx.is_scheduled", False))


def _cpu_schedule(func: PrimFunc) -> PrimFunc:
    """Element-wise producers inlined; outer loops parallel; the innermost spatial loop vectorised, inside the reductions."""
    sch = Schedule(func)
    blocks = normalize_prim_func(sch)
    if not blocks:
        return func
    try:
        kept = [b for b in blocks if not _inlined(sch, b)]
        for block in kept:
            _schedule_block(sch, block)
    except ScheduleError:
        return func
    return sch.mod["main"].with_attr("tirx.is_scheduled", True)


def _lean_schedule(func: PrimFunc) -> PrimFunc | None:
    """One loop nest for a reduction, its padding and its element-wise epilogue; none if the kernel is something else."""
    sch = Schedule(func)
    blocks = normalize_prim_func(sch)
    if not blocks:
        return None
    overwritten = None
    try:
        kept = [b for b in blocks if not (_copies(sch, b) or _inlined(sch, b))]
        reduction, store = _reduction_and_store(sch, kept)
        if reduction is not None:
            overwritten = pixelwise_input(sch, reduction, store)
        if reduction is not None and (store is not None or overwritten is not None):
            store = store or sch.cache_write(reduction, 0, "global")
            _schedule_pair(sch, reduction, store, whole=overwritten is not None)
        elif len(kept) == 1:
            _schedule_block(sch, kept[0])
        else:
            return None
    except ScheduleError:
        return None
    made = sch.mod["main"].with_attr("tirx.is_scheduled", True)
    return made if overwritten is None else may_overwrite(made, overwritten)


def _rolling_schedule(func: PrimFunc) -> PrimFunc | None:
    """A convolution row by row, so that it may overwrite its input; none if the kernel is something else.

    One row after the other, so by one thread.
    """
    if not _has_small_indices(func):
        return None
    # `rolling_buffer` mixes integers of 32 bits with indices of 64.
    func = tirx.transform.ForceNarrowIndexToInt32()(IRModule({"main": func}))["main"]
    blocks = normalize_prim_func(Schedule(func)) or []
    sch = Schedule(func)  # with its unit loops: `rolling_buffer` takes the variables of a block for the axes of its output
    for block in blocks:
        block.block_rv = sch.get_sblock(block.name)
    pads = [b for b in blocks if _only_copies(sch, b) and padded_input(sch, b.block_rv) is not None]
    if len(pads) != 1:
        return None
    pad = pads[0].block_rv
    overwritten = padded_input(sch, pad)
    try:
        kept = [b for b in blocks if b is not pads[0] and not (_copies(sch, b) or _inlined(sch, b))]
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
        if (_extent(sch, sch.get_loops(pad)[-1]) or 1) % LANES == 0:
            _vectorize(sch, sch.get_loops(pad)[-1])
        sch.rolling_buffer(pad, 0)
    except ScheduleError:
        return None
    made = sch.mod["main"].with_attr("tirx.is_scheduled", True)
    return may_overwrite(with_data_parallel_readers(made, pads[0].name), overwritten)


def _has_small_indices(func: PrimFunc) -> bool:
    shapes = [buffer.shape for buffer in func.params]
    return all(isinstance(d, IntImm) for shape in shapes for d in shape) and all(
        math.prod(int(d) for d in shape) < 2**31 for shape in shapes
    )


def _reduction_and_store(sch: Schedule, blocks: list[Any]) -> tuple[Any, Any]:
    """A reduction and the block that makes the output of its sums, if it does not itself; nothing if there is more."""
    found = [b.block_rv for b in blocks]
    if [_reduces(sch, rv) for rv in found] not in ([True], [True, False]):
        return None, None
    return found[0], found[1] if len(found) == 2 else None


def _copies(sch: Schedule, block: Any) -> bool:
    """Inline a block that only copies or pads, whatever reads it: computing it again costs a comparison."""
    return _only_copies(sch, block) and bool(sch.get_consumers(block.block_rv)) and _inline(sch, block)


def _only_copies(sch: Schedule, block: Any) -> bool:
    body = sch.get(block.block_rv).body
    value = body.value if isinstance(body, BufferStore) else None
    if isinstance(value, Call) and value.op.name == "prim.if_then_else":
        value = value.args[1]
    return isinstance(value, TensorLoad)


def _schedule_pair(sch: Schedule, reduction: Any, store: Any, *, whole: bool = False, parallel: bool = True) -> None:
    """Compute a reduction where its only reader needs it: a vector or a row at a time.

    Args:
        whole: not by vectors: all of the innermost axis, at most `ROW`.
        parallel: by several threads.
    """
    *outer, inner = sch.get_loops(store)
    lanes = _extent(sch, inner) or ROW + 1
    vectors = lanes % LANES == 0
    if vectors and not whole:
        chunks, inner = sch.split(inner, factors=[None, LANES])
        outer.append(chunks)
    elif lanes > ROW or not outer:
        outer.append(inner)
    sch.compute_at(reduction, outer[-1], preserve_unit_loops=True)
    inside = sch.get_loops(reduction)[len(outer) :]
    n_spatial = len(inside) - sum(_is_reduction(v) for v in sch.get(reduction).iter_vars)
    spatial, reductions = inside[:n_spatial], inside[n_spatial:]
    sch.reorder(*reductions, *spatial)
    if parallel:
        _parallel(sch, outer)
    if vectors:
        _vectorize(sch, inner)
        _vectorize(sch, spatial[-1])
    sch.decompose_reduction(reduction, reductions[0])


def _vectorize(sch: Schedule, loop: Any) -> None:
    _, vector = sch.split(loop, factors=[None, LANES])
    sch.vectorize(vector)


def _inlined(sch: Schedule, block: Any) -> bool:
    """Inline an element-wise block, unless a reduction would compute it again and again (the padding of a convolution)."""
    consumers = sch.get_consumers(block.block_rv)
    if not block.is_injective() or not consumers or any(_reduces(sch, c) for c in consumers):
        return False
    return _inline(sch, block)


def _inline(sch: Schedule, block: Any) -> bool:
    """Whether a block could be computed where it is read."""
    try:
        sch.compute_inline(block.block_rv)
    except ScheduleError:
        return False
    return True


def _schedule_block(sch: Schedule, block: Any) -> None:
    loops = sch.get_loops(block.block_rv)
    kinds = block.dom_kind()
    spatial = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == "S"]
    reduction = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == "R"]
    if not spatial or len(loops) != len(kinds):
        return
    *outer, inner = spatial
    lanes = _extent(sch, inner)
    vector = None
    if lanes is not None and lanes % LANES == 0:
        chunks, vector = sch.split(inner, factors=[None, LANES])
        outer.append(chunks)
    else:
        outer.append(inner)
    if reduction:
        sch.reorder(*outer, *reduction, *([vector] if vector is not None else []))
    _parallel(sch, outer)
    if vector is not None:
        sch.vectorize(vector)
    if reduction:
        sch.decompose_reduction(block.block_rv, reduction[0])  # keeps the vector loop for both halves


def _parallel(sch: Schedule, loops: list[Any]) -> None:
    """Fuse outer loops until there is work for every thread."""
    extents = [_extent(sch, loop) for loop in loops]
    count = 1
    while count < len(loops) and math.prod(e or 1 for e in extents[:count]) < PARALLEL:
        count += 1
    sch.parallel(sch.fuse(*loops[:count]) if count > 1 else loops[0])


def _extent(sch: Schedule, loop: Any) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if hasattr(extent, "value") else None


def _reduces(sch: Schedule, block: Any) -> bool:
    return any(_is_reduction(v) for v in sch.get(block).iter_vars)


def _is_reduction(v: Any) -> bool:
    return int(v.iter_type) == 2
