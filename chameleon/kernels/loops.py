"""Steps of a default schedule: inline, vectorise, share among threads."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from typing import Any

from tvm.s_tir import Schedule, ScheduleError
from tvm.tirx import PrimFunc

LANES = 16
"""Vector length: 16 floats are one AVX-512 register, and four of NEON."""

PARALLEL = 64
"""Outer iterations shared among the threads, at least, where there are as many."""

ROW = 256
"""Elements of a row at most that a lean kernel computes at a time, in fast memory of its own."""


def is_scheduled(func: PrimFunc) -> bool:
    """Whether a database's schedule or a default has been applied."""
    return bool(func.attrs.get("tirx.is_scheduled", False))


def vectorize(sch: Schedule, loop: Any) -> None:
    _, vector = sch.split(loop, factors=[None, LANES])
    sch.vectorize(vector)


def inlined(sch: Schedule, block: Any) -> bool:
    """Inline an element-wise block, unless a reduction would compute it again and again (the padding of a convolution)."""
    consumers = sch.get_consumers(block.block_rv)
    if not block.is_injective() or not consumers or any(reduces(sch, c) for c in consumers):
        return False
    return inline(sch, block)


def inline(sch: Schedule, block: Any) -> bool:
    """Whether a block could be computed where it is read."""
    try:
        sch.compute_inline(block.block_rv)
    except ScheduleError:
        return False
    return True


def schedule_block(sch: Schedule, block: Any) -> None:
    loops = sch.get_loops(block.block_rv)
    kinds = block.dom_kind()
    spatial = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == "S"]
    reduction = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == "R"]
    if not spatial or len(loops) != len(kinds):
        return
    *outer, inner = spatial
    lanes = extent_of(sch, inner)
    vector = None
    if lanes is not None and lanes % LANES == 0:
        chunks, vector = sch.split(inner, factors=[None, LANES])
        outer.append(chunks)
    else:
        outer.append(inner)
    if reduction:
        sch.reorder(*outer, *reduction, *([vector] if vector is not None else []))
    parallel_outer(sch, outer)
    if vector is not None:
        sch.vectorize(vector)
    if reduction:
        sch.decompose_reduction(block.block_rv, reduction[0])  # keeps the vector loop for both halves


def parallel_outer(sch: Schedule, loops: list[Any]) -> None:
    """Fuse outer loops until there is work for every thread."""
    extents = [extent_of(sch, loop) for loop in loops]
    count = 1
    while count < len(loops) and math.prod(e or 1 for e in extents[:count]) < PARALLEL:
        count += 1
    sch.parallel(sch.fuse(*loops[:count]) if count > 1 else loops[0])


def extent_of(sch: Schedule, loop: Any) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if hasattr(extent, "value") else None


def reduces(sch: Schedule, block: Any) -> bool:
    return any(is_reduction(v) for v in sch.get(block).iter_vars)


def is_reduction(v: Any) -> bool:
    return int(v.iter_type) == 2
