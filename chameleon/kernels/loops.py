"""The steps that default schedules are made of: inline, vectorise, share work among threads."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm.s_tir import Schedule
from tvm.tirx import IntImm, PrimFunc

from chameleon.kernels.optional import if_possible

LANES = 16
"""The length of a vector: 16 floats fill one AVX-512 register, or four NEON registers."""

PARALLEL = 64
"""The threads share at least this many outer iterations, if the kernel has as many."""

ROW = 256
"""A lean kernel computes at most this many elements of a row at a time, and keeps them in fast memory of its own."""


def is_scheduled(func: PrimFunc) -> bool:
    """Whether a kernel has a schedule: a default one, or one from a database."""
    return bool(func.attrs.get("tirx.is_scheduled", False))


def vectorize(sch: Schedule, loop: Any) -> None:
    """Split a loop into vectors of `LANES` elements, and vectorise it."""
    _, vector = sch.split(loop, factors=[None, LANES])
    sch.vectorize(vector)


def inlined(sch: Schedule, block: Any) -> bool:
    """Inline an element-wise block, and say whether that was done.

    It is not done if a reduction reads the block, because the reduction would compute it again and again. The padding
    of a convolution is such a block.
    """
    consumers = sch.get_consumers(block.block_rv)
    if not block.is_injective() or not consumers or any(reduces(sch, c) for c in consumers):
        return False
    return inline(sch, block)


def inline(sch: Schedule, block: Any) -> bool:
    """Compute a block where it is read, and say whether that was possible."""

    def run() -> bool:
        sch.compute_inline(block.block_rv)
        return True

    return if_possible("inlining", block.name, run, False)


def schedule_block(sch: Schedule, block: Any) -> None:
    """Run the outer loops of a block in parallel, and vectorise its innermost spatial loop.

    The vectorised loop stands inside the reduction loops.
    """
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
        sch.decompose_reduction(block.block_rv, reduction[0])  # both resulting blocks keep the vector loop


def parallel_outer(sch: Schedule, loops: list[Any]) -> None:
    """Fuse outer loops until there is work for every thread (`PARALLEL`), and run the fused loop in parallel."""
    extents = [extent_of(sch, loop) for loop in loops]
    count = 1
    while count < len(loops) and math.prod(e or 1 for e in extents[:count]) < PARALLEL:
        count += 1
    sch.parallel(sch.fuse(*loops[:count]) if count > 1 else loops[0])


def long_extent(value: Any) -> IntImm:
    """An extent of 64 bits, as Relax has them, for a tensor or an axis that is written by hand."""
    return IntImm("int64", int(value))


def extent_of(sch: Schedule, loop: Any) -> int | None:
    """How often a loop runs; `None` if that is not known."""
    extent = sch.get(loop).extent
    return int(extent) if hasattr(extent, "value") else None


def reduces(sch: Schedule, block: Any) -> bool:
    """Whether a block has a reduction variable."""
    return any(is_reduction(v) for v in sch.get(block).iter_vars)


def is_reduction(v: Any) -> bool:
    """Whether a variable of a block is one of a reduction."""
    return int(v.iter_type) == 2  # IterVar.CommReduce


def inline_behind(sch: Schedule, outputs: Any) -> None:
    """Compute what is fused behind a block together with its outputs."""
    while consumers := sch.get_consumers(outputs):
        behind = [b for b in _behind(sch, consumers) if sch.get_consumers(b)]
        for block in behind:
            sch.compute_inline(block)
        (last,) = sch.get_consumers(outputs)
        _inline_others(sch, last, outputs)
        sch.reverse_compute_inline(last)


def _inline_others(sch: Schedule, block: Any, outputs: Any) -> None:
    """Compute what a block reads in the block itself, such as a second summand, but not the outputs that it is for."""
    name = sch.get(outputs).name_hint
    while others := [p for p in sch.get_producers(block) if sch.get(p).name_hint != name]:
        for other in others:
            sch.compute_inline(other)


def _behind(sch: Schedule, consumers: Sequence[Any]) -> list[Any]:
    """The blocks behind these, these included, each once, those first that read the convolution itself."""
    found: dict[str, Any] = {}
    queue = list(consumers)
    while queue:
        block = queue.pop(0)
        if (name := sch.get(block).name_hint) not in found and not reduces(sch, block):
            found[name] = block
            queue.extend(sch.get_consumers(block))
    return list(found.values())


def sampled(sch: Schedule, numbers: Sequence[int]) -> Any:
    """A knob with these values, all equally likely."""
    return sch.sample_categorical(list(numbers), [1 / len(numbers)] * len(numbers))
