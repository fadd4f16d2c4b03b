"""Schedules for kernels that nobody tuned: far from the best, but many times faster than the loops as written."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from typing import Any

from tvm import relax
from tvm.ir import Call, IRModule
from tvm.ir.expr import TensorLoad
from tvm.s_tir import Schedule, ScheduleError
from tvm.s_tir import dlight as dl
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.target import Target
from tvm.tirx import BufferStore, PrimFunc

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
    try:
        kept = [b for b in blocks if not (_copies(sch, b) or _inlined(sch, b))]
        reductions = [b for b in kept if _reduces(sch, b.block_rv)]
        if len(kept) == 2 and len(reductions) == 1 and kept[0] is reductions[0]:
            _schedule_pair(sch, *kept)
        elif len(kept) == 1:
            _schedule_block(sch, kept[0])
        else:
            return None
    except ScheduleError:
        return None
    return sch.mod["main"].with_attr("tirx.is_scheduled", True)


def _copies(sch: Schedule, block: Any) -> bool:
    """Inline a block that only copies or pads, whatever reads it: computing it again costs a comparison."""
    body = sch.get(block.block_rv).body
    value = body.value if isinstance(body, BufferStore) else None
    if isinstance(value, Call) and value.op.name == "prim.if_then_else":
        value = value.args[1]
    if not isinstance(value, TensorLoad) or not sch.get_consumers(block.block_rv):
        return False
    return _inline(sch, block)


def _schedule_pair(sch: Schedule, producer: Any, block: Any) -> None:
    """Compute a reduction where its only reader needs it: a vector or a row at a time."""
    loops = sch.get_loops(block.block_rv)
    *outer, inner = loops
    lanes = _extent(sch, inner) or ROW + 1
    vector = inner
    if lanes % LANES == 0:
        chunks, vector = sch.split(inner, factors=[None, LANES])
        outer.append(chunks)
    elif lanes > ROW or not outer:
        outer.append(inner)
    sch.compute_at(producer.block_rv, outer[-1], preserve_unit_loops=True)
    inside = sch.get_loops(producer.block_rv)[len(outer) :]
    n_spatial = len(inside) - producer.dom_kind().count("R")
    spatial, reduction = inside[:n_spatial], inside[n_spatial:]
    sch.reorder(*reduction, *spatial)
    _parallel(sch, outer)
    if lanes % LANES == 0:
        sch.vectorize(vector)
        sch.vectorize(spatial[-1])
    sch.decompose_reduction(producer.block_rv, reduction[0])


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
    return any(int(v.iter_type) == 2 for v in sch.get(block).iter_vars)
