"""Scratch: memory that kernels allocate inside their loops, such as the tiles of tuned schedules.

Each thread has scratch of its own. TVM's runtime takes it from a pool that each thread has, in whole pages, and the
pool keeps these pages. Here scratch becomes a workspace of the kernel instead. The workspace lies in the arena only
while the kernel runs, and takes only the bytes that are needed. For that, a parallel loop is cut into stretches, as
many as there are threads, and each stretch uses its own part of the workspace. The runtime cuts such a loop in the
same way.

This takes two steps. A kernel gets the workspace as a parameter when memory is planned (`scratch_buffers`). But the
body of the kernel uses it only at the very end (`with_scratch`). The reason: the kernel must be lowered before its
allocations can be found, and a lowered kernel can no longer be analysed or changed.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import IRModule, Range
from tvm.ir.expr import TensorLoad, TensorRegion, Var
from tvm.s_tir import SBlock
from tvm.tirx import Buffer, BufferStore, IntImm, PrimFunc
from tvm_ffi import structural_map, structural_walk

from chameleon.errors import ChameleonError
from chameleon.kernels.inspect import dims_of, names_elements_only, size_bytes, takes_heap
from chameleon.kernels.optional import if_possible

PAGE_BYTES = 4096
"""The size of a page: the runtime's pool of workspaces rounds sizes up to multiples of it."""

_COUNT, _THREADS = "chameleon.n_scratch", "chameleon.threads"

# Passes of TVM's default pipeline for kernels, as far as they concern CPUs. After the first group, every allocation is
# at its place and only as large as needed. The second group goes on up to the pass that merges allocations.
_TO_ALLOCATIONS = (
    s_tir.transform.CanonicalizeLoop(),
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.CompactBufferAllocation(),
)
_TO_MERGED = (
    s_tir.transform.LowerMatchBuffer(),
    s_tir.transform.StmtSimplify(),
    s_tir.transform.AnnotateIrregularLoop(),
    s_tir.transform.LowerOpaqueBlock(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.NarrowDataType(32),
    s_tir.transform.LoopPartition(),
    tirx.transform.VectorizeLoop(),
    tirx.transform.StorageRewrite(),
)


class KernelError(ChameleonError):
    """A kernel does not fit what was planned for its earlier form."""


@dataclass(frozen=True)
class _Tile:
    """An allocation inside the loops of a lowered kernel.

    Attributes:
        buffer: what is allocated.
        loop: the parallel loop around it, if there is one.
    """

    buffer: Buffer
    loop: tirx.For | None

    def stretches(self, threads: int) -> int:
        """Into how many stretches the loop is cut."""
        return min(threads, int(self.loop.extent)) if self.loop is not None else 1

    def workspace(self, threads: int) -> Buffer:
        """The workspace that holds this allocation, with a part for each stretch: `[stretches, *shape]`."""
        dims = [self.stretches(threads), *dims_of(self.buffer)]
        return tirx.decl_buffer([IntImm("int64", d) for d in dims], self.buffer.dtype, self.buffer.name, layout=None)


def scratch_buffers(func: PrimFunc, threads: int) -> list[Buffer]:
    """The workspaces for what a kernel allocates inside its loops.

    A workspace for an allocation inside a parallel loop has a part for each of so many threads. There are no
    workspaces if the body of the kernel takes addresses, because addresses cannot be moved.
    """
    return (
        [tile.workspace(threads) for tile in _tiles(_lowered(func, _TO_ALLOCATIONS))]
        if names_elements_only(func)
        else []
    )


def takes_scratch(func: PrimFunc, n: int, threads: int) -> PrimFunc:
    """The kernel with a note that its last `n` parameters are the workspaces of `scratch_buffers`, not yet used."""
    made: Any = func.with_attr(_COUNT, n).with_attr(_THREADS, threads)
    return made


def with_scratch(func: PrimFunc) -> PrimFunc:
    """Lower a kernel and let it use the workspaces that it was given, instead of allocating memory.

    Raises:
        KernelError: if the kernel's allocations are not those that its workspaces were made for.
    """
    n = int(func.attrs.get(_COUNT, 0)) if func.attrs else 0
    if not n:
        return func
    threads, given = int(func.attrs[_THREADS]), list(func.params)[-n:]
    lowered = _lowered(func, _TO_ALLOCATIONS)
    tiles = _tiles(lowered)
    if [dims_of(tile.workspace(threads)) for tile in tiles] != [dims_of(workspace) for workspace in given]:
        raise KernelError(
            f"the scratch of a kernel changed after its memory was planned; this is a bug of MemoryAware:\n{func}"
        )
    body = lowered.body
    for loop in dict.fromkeys(tile.loop for tile in tiles):
        held = {tile.buffer: workspace for tile, workspace in zip(tiles, given, strict=True) if tile.loop is loop}
        body = _held(body, held, IntImm("int64", 0)) if loop is None else _cut(body, loop, held, threads)
    return func.without_attr(_COUNT).without_attr(_THREADS).with_body(body)


def scratch_bytes(mod: IRModule, threads: int) -> int:
    """The most bytes that the runtime's pools hold, for the allocations that are left inside kernels.

    Each thread has a pool of its own, and the pool keeps its blocks of pages. Kernels run one after another. So the
    k-th largest block of a pool is as large as the largest of the k-th largest blocks of all kernels.
    """
    pools: list[list[int]] = [[], []]  # blocks of the calling thread's pool, and of each thread of a parallel loop
    for var, func in mod.functions_items():
        if isinstance(func, PrimFunc):
            found = if_possible("counting scratch", var.name_hint, partial(_pooled, func), ())
            for number, sizes in enumerate(found):
                pages = sorted((max(-(-size // PAGE_BYTES), 1) * PAGE_BYTES for size in sizes), reverse=True)
                pools[number] = [max(pair) for pair in zip_longest(pools[number], pages, fillvalue=0)]
    return sum(pools[0]) + threads * sum(pools[1])


def lowered_to_allocations(func: PrimFunc) -> PrimFunc:
    """A kernel after those passes that check and place its loops, vectors and allocations.

    Raises:
        Exception: if it cannot be lowered, such as a schedule that vectorises a loop inside a vectorised one.
    """
    return _lowered(func, (*_TO_ALLOCATIONS, *_TO_MERGED))


def _cut(body: Any, loop: tirx.For, held: Mapping[Buffer, Buffer], threads: int) -> Any:
    """Cut a parallel loop into stretches, each of which uses its own part of the workspaces."""
    index, extent, first = loop.loop_var, int(loop.extent), int(loop.min)
    n = min(threads, extent)
    length = -(-extent // n)
    stretch, step = (_like(index, suffix) for suffix in ("stretch", "step"))
    at = first + stretch * length + step

    def moved(node: tirx.For) -> Any:
        if not node.loop_var.same_as(index):
            return node
        inner = structural_map(_held(node.body, held, stretch), [(Var, lambda v: at if v.same_as(index) else v)])
        if n * length != extent:
            inner = tirx.IfThenElse(at < first + extent, inner, None)
        zero, steps, stretches = (IntImm(str(index.ty.dtype), value) for value in (0, length, n))
        kind = tirx.ForKind.PARALLEL if n > 1 else tirx.ForKind.SERIAL
        inner = tirx.For(step, zero, steps, tirx.ForKind.SERIAL, inner)
        # The annotations say how to unroll.
        return tirx.For(stretch, zero, stretches, kind, inner, annotations=node.annotations)

    return structural_map(body, [(tirx.For, moved)])


def _like(index: Var, suffix: str) -> Any:
    return Var(f"{index.name}_{suffix}", index.ty)


def _held(body: Any, held: Mapping[Buffer, Buffer], part: Any) -> Any:
    """The body in which each of these allocations is replaced by part number `part` of its workspace."""

    def load(node: TensorLoad) -> Any:
        return tirx.BufferLoad(held[node.source], [part, *node.indices]) if node.source in held else node

    def store(node: BufferStore) -> Any:
        return BufferStore(held[node.buffer], node.value, [part, *node.indices]) if node.buffer in held else node

    def region(node: TensorRegion) -> Any:
        if node.source not in held:
            return node
        return tirx.BufferRegion(held[node.source], [Range.from_min_extent(part, IntImm("int64", 1)), *node.region])

    def block(node: SBlock) -> SBlock:
        kept = [b for b in node.alloc_buffers if b not in held]
        if len(kept) == len(node.alloc_buffers):
            return node
        rest = (node.reads, node.writes, node.name_hint, node.body, node.init)
        return SBlock(node.iter_vars, *rest, kept, node.match_buffers, node.annotations)

    return structural_map(body, [(TensorLoad, load), (BufferStore, store), (TensorRegion, region), (SBlock, block)])


def _tiles(lowered: PrimFunc) -> list[_Tile]:
    """The allocations of a lowered kernel that are too large for the stack."""
    loops: list[tirx.For] = []
    structural_walk(lowered.body, (tirx.For, lambda loop: loops.append(loop) if _is_parallel(loop) else None))
    around = {buffer: loop for loop in loops for buffer in _allocated(loop.body)}
    return [_Tile(buffer, around.get(buffer)) for buffer in _allocated(lowered.body)]


def _allocated(body: Any) -> list[Buffer]:
    """The buffers that blocks of this body allocate in main memory, and not on the stack."""
    found: list[Buffer] = []
    structural_walk(body, (SBlock, lambda block: found.extend(block.alloc_buffers)))
    return [b for b in found if b.scope() == "global" and takes_heap(b)]


def _is_parallel(loop: tirx.For) -> bool:
    return (
        int(loop.kind) == int(tirx.ForKind.PARALLEL)
        and isinstance(loop.extent, IntImm)
        and isinstance(loop.min, IntImm)
    )


def _pooled(func: PrimFunc) -> tuple[list[int], list[int]]:
    """The sizes of a kernel's allocations once it is lowered: those outside of parallel loops, and those inside."""
    lowered = lowered_to_allocations(func)
    outside, inside = _sizes(lowered.body), []

    def visit(loop: tirx.For) -> None:
        if int(loop.kind) == int(tirx.ForKind.PARALLEL):
            inside.extend(_sizes(loop.body))

    structural_walk(lowered.body, (tirx.For, visit))
    for size in inside:
        outside.remove(size)
    return outside, inside


def _sizes(body: Any) -> list[int]:
    found: list[int] = []

    def visit(node: tirx.AllocBuffer) -> None:
        if takes_heap(node.buffer):
            found.append(size_bytes(node.buffer) or 0)

    structural_walk(body, (tirx.AllocBuffer, visit))
    return found


def _lowered(func: PrimFunc, passes: Sequence[Any]) -> PrimFunc:
    return tvm.transform.Sequential(list(passes))(IRModule({"main": func.with_attr("global_symbol", "main")}))["main"]
