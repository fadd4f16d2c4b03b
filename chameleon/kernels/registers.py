"""A design space that knows the machine: the tile of results follows from the registers of a core.

MetaSchedule tiles each loop in every way that divides it. Few of these tiles keep a core's multipliers busy. Here the
tile of results that is kept in registers comes first (Goto and van de Geijn, 2008; Van Zee and van de Geijn, 2015):

- some rows (places in the image, or rows of a matrix) times some vectors of channels (or columns) are accumulated;
- so many that the additions of one multiplier need not wait for each other, and so few that none is spilled;
- all are accumulated over the whole reduction, then written once, with what is fused behind the kernel;
- constant weights are packed in the order in which they are read (MetaSchedule's `RewriteLayout`).

It suits any kernel with one sum of products whose last axis is the last one of the output as well: convolutions of all
strides and sizes with channels last, depthwise ones, and matrix products.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tvm_ffi
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.sym import Analyzer
from tvm.target import Target, codegen
from tvm.tirx import PrimFunc, Var
from tvm_ffi import structural_walk

from chameleon.kernels.dots import Dot, dot_of_block, dots_of
from chameleon.kernels.inspect import STACK_BYTES
from chameleon.kernels.loops import extent_of, inline_behind, is_reduction, reduces, sampled
from chameleon.kernels.optional import if_possible


@dataclass(frozen=True)
class Machine:
    """What a core computes with.

    Attributes:
        lanes: how many float32 numbers a vector register holds.
        registers: how many vector registers there are.
        cores: how many cores share a kernel.
        dots: its dot products of small integers, the widest first.
    """

    lanes: int
    registers: int
    cores: int
    dots: tuple[Dot, ...] = ()

    @classmethod
    def of(cls, target: Target) -> Machine:
        """The machine that a CPU target describes."""
        cores = int(target.attrs.get("num-cores", 1))
        triple = str(
            target.attrs.get("mtriple") or tvm_ffi.get_global_func("tvm.codegen.llvm.GetDefaultTargetTriple")()
        )
        if not triple.startswith(("x86_64", "i")):
            return cls(max(4, codegen.llvm_get_vector_width(target) // 32), 32, cores)
        dots = dots_of(target)
        for feature, lanes, registers in (("avx512f", 16, 32), ("avx", 8, 16)):
            if codegen.target_has_features(feature, target):
                return cls(lanes, registers, cores, dots)
        return cls(4, 16, cores, dots)


@dataclass(frozen=True)
class Tile:
    """Which results are kept in registers: so many along each row axis, and so many channels."""

    rows: tuple[int, ...]
    channels: int


LEAST_RESULTS = 8
"""So many additions are under way in a core at once (two multipliers, four cycles each): fewer results let it wait."""

LEAST_LANES = 4
"""A shorter vector than this is no vector: 128 bits are what all processors have that have vectors at all."""

MOST_ROW_AXES = 2
"""A tile of rows has at most so many axes, such as the height and the width of an image."""

TILES = 6
"""At most so many tiles of rows are offered."""

FLOAT_BYTES = 4

MOST_TILES = 64
"""A band, and a block of channels, have at most so many tiles."""

MOST_STEPS = 8
"""At most so many steps of the innermost reduction loop are written out."""


@dataclass(frozen=True)
class _Choices:
    """What is left to choose once the kernel and the machine are known; None: that is a knob.

    Attributes:
        tile: what is kept in registers.
        weights_stay: whether a tile of channels goes over all rows of a band before the next one; else the other way.
        in_bands: whether what is computed before the product is computed for each band of rows, just before it.
        bands: of the outer row axis: how many bands, and tiles of rows in each.
        blocks: of the channels: how many blocks, and tiles of channels in each.
        steps: at most so many steps of the innermost reduction loop are written out.
    """

    tile: Tile
    weights_stay: bool
    in_bands: bool
    bands: tuple[int, int] | None = None
    blocks: tuple[int, int] | None = None
    steps: int | None = None


@dataclass(frozen=True)
class _Product:
    """The sum of products in a kernel, by its loops from the outside.

    Attributes:
        block: its name.
        rows: the extents of the one or two axes before the last one along which the weights do not change.
        channels: the extent of the last axis.
        staged: whether something before it, such as padding, is computed for it.
        dot: the instruction that computes it; None: multiplications and additions of floats.
    """

    block: str
    rows: tuple[int, ...]
    channels: int
    staged: bool
    dot: Dot | None = None

    def machine(self, machine: Machine) -> Machine:
        """The machine with the vectors that this product has: those of its instruction, or the longest that it fills.

        A thousand classes are no multiple of sixteen. Half a vector is better than none.
        """
        lanes = machine.lanes if self.dot is None else self.dot.lanes
        while self.dot is None and self.channels % lanes and lanes > LEAST_LANES:
            lanes //= 2
        return replace(machine, lanes=lanes)


def register_space(mod: IRModule, target: Target) -> ms.SpaceGenerator | None:
    """A space generator for the kernel `main` of a module; None if it is not of this kind.

    It is one of MetaSchedule's own kind, `ScheduleFn`, with the post-processors of its CPU rules.
    """
    machine = Machine.of(target)
    if (product := _find(Schedule(mod), machine.dots)) is None:
        return None
    machine = product.machine(machine)
    if not (tiles := tiles_of(product.rows, product.channels, machine)):
        return None
    make = partial(_sketches, product=product, tiles=tiles, lanes=machine.lanes)
    return ms.space_generator.ScheduleFn(make, [], ms.Postproc.create("llvm"), {})


def dot_space(mod: IRModule, target: Target) -> ms.SpaceGenerator | None:
    """The space generator for a kernel that `chameleon.kernels.dots` wrote; None for any other kernel."""
    product = if_possible("looking for dot products", "a kernel", lambda: _find(Schedule(mod), dots_of(target)), None)
    return None if product is None or product.dot is None else register_space(mod, target)


def tiles_of(rows: Sequence[int], channels: int, machine: Machine) -> list[Tile]:
    """The tiles that fit the registers, those first that compute most for each number that they load.

    Args:
        rows: the extents of the row axes.
        channels: the extent of the vector axis.
    """
    lanes, found = machine.lanes, {}
    for tile in itertools.product(*map(_divisors, rows)):
        count = math.prod(tile)
        for vectors in range(1, machine.registers):
            if channels % (vectors * lanes) == 0 and _fits(count, vectors, machine):
                key = (count, vectors)
                if key not in found or tile[-1] > found[key].rows[-1]:
                    found[key] = Tile(tile, vectors * lanes)
    return [found[key] for key in sorted(found, key=lambda key: -_worth(*key))[:TILES]]


def _fits(rows: int, vectors: int, machine: Machine) -> bool:
    """Whether there are registers for all results, a vector of weights and one number of the data.

    A larger tile than the stack takes would not even get into registers.
    """
    results = rows * vectors
    return results + 2 <= machine.registers and results * machine.lanes * FLOAT_BYTES < STACK_BYTES


WEIGHTS_FURTHER = 2
"""A vector of weights counts as so many numbers of the data: it comes from a cache that is further away."""


def _worth(rows: int, vectors: int) -> float:
    """Products for each load; less if the results are too few for the multipliers."""
    return rows * vectors / (rows + WEIGHTS_FURTHER * vectors) * min(1.0, rows * vectors / LEAST_RESULTS)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _find(sch: Schedule, dots: Sequence[Dot]) -> _Product | None:
    """The only reduction of a kernel, if it is a sum of products whose vectors can be loaded as they are."""
    blocks = [b for b in sch.get_child_blocks(sch.get_sblock("root")) if reduces(sch, b)]
    if len(blocks) != 1:
        return None
    block = sch.get(blocks[0])
    kinds = [is_reduction(v) for v in block.iter_vars]
    spatial = [v for v in block.iter_vars if not is_reduction(v)]
    if kinds != sorted(kinds) or len(block.reads) != 2 or len(spatial) < 2:
        return None
    data, weight = map(_used, block.reads)
    *before, last = (v.var for v in spatial)
    dot = dot_of_block(block, dots)
    if last not in weight or not (dot or _loads_vectors(sch, block, last)):
        return None
    free = list(itertools.takewhile(lambda var: var in data and var not in weight, reversed(before)))[:MOST_ROW_AXES]
    if not free:
        return None
    extents = [int(v.dom.extent) for v in block.iter_vars]
    rows = tuple(extents[len(spatial) - 1 - len(free) : len(spatial) - 1])
    return _Product(str(block.name_hint), rows, extents[len(spatial) - 1], bool(sch.get_producers(blocks[0])), dot)


def _used(read: Any) -> set[Any]:
    """The variables in the indices of what a block reads."""
    found: set[Any] = set()
    for dim in read.region:
        structural_walk(dim.min, (Var, found.add))
    return found


def _loads_vectors(sch: Schedule, block: Any, last: Any) -> bool:
    """Whether what changes with the last axis lies side by side in memory, or may be put so when it is compiled."""
    func = sch.mod["main"]
    constant = [func.params[int(i)] for i in (func.attrs or {}).get("layout_free_buffers", [])]
    analyzer = Analyzer()
    for v in block.iter_vars:
        analyzer.bind(v.var, v.dom)
    for read in block.reads:
        movable = any(read.source.same_as(c) for c in constant)
        index = analyzer.simplify(read.region[-1].min)
        if last in _used(read) and not movable and not index.same_as(last):
            return False
    return all(str(x.source.dtype) == "float32" for x in (*block.reads, *block.writes))


def register_schedule(func: PrimFunc, machine: Machine, *, packed: bool = False) -> PrimFunc | None:
    """A schedule of this kind for a kernel that nobody tuned; None if it is not of this kind.

    It has the tile that loads least, and as many bands as give each core an equal share.

    Args:
        packed: begin with a step that packs the constant weights in the order in which they are read.
    """
    sch = Schedule(func)
    if (product := _find(sch, machine.dots)) is None:
        return None
    machine = product.machine(machine)
    if not (tiles := tiles_of(product.rows, product.channels, machine)):
        return None
    tile = tiles[0]
    bands, blocks = product.rows[0] // tile.rows[0], product.channels // tile.channels
    shares = [d for d in _divisors(bands) if d % machine.cores == 0] or [bands]
    parts = next((d for d in _divisors(blocks) if shares[0] * d % machine.cores == 0), 1)
    choices = _Choices(tile, True, False, (shares[0], bands // shares[0]), (parts, blocks // parts), MOST_STEPS)
    _scheduled(sch, product, choices, machine.lanes)
    ms.postproc.RewriteReductionBlock().apply(sch)
    if packed and product.dot is None:  # those of an instruction are packed already
        ms.postproc.RewriteLayout().apply(sch)
    return sch.mod["main"].with_attr("tirx.is_scheduled", True)


def _sketches(sch: Schedule, *, product: _Product, tiles: Sequence[Tile], lanes: int) -> list[Schedule]:
    staged = (True, False) if product.staged else (False,)
    ways = [_Choices(*way) for way in itertools.product(tiles, (True, False), staged)]
    return [_scheduled(Schedule(sch.mod), product, choices, lanes) for choices in ways]


def _scheduled(sch: Schedule, product: _Product, choices: _Choices, lanes: int) -> Schedule:
    """One design space, or one schedule if all is chosen."""
    tile = choices.tile
    block = sch.get_sblock(product.block)
    results = sch.cache_write(block, 0, "global")  # small, so it is on the stack; "local" would be on the heap
    inline_behind(sch, results)
    loops = sch.get_loops(block)
    n_axes = len(loops) - sum(is_reduction(v) for v in sch.get(block).iter_vars)
    spatial, reduction = loops[:n_axes], loops[n_axes:]
    group = [] if product.dot is None else [reduction.pop()]
    *outer, channels = spatial
    outer, rows = outer[: -len(tile.rows)], outer[-len(tile.rows) :]
    rows, inner = zip(*(sch.split(r, [None, t]) for r, t in zip(rows, tile.rows, strict=True)), strict=True)
    bands, *rest = rows
    bands, band = sch.split(bands, sch.sample_perfect_tile(bands, 2, MOST_TILES, choices.bands))
    chunks, vector = sch.split(channels, [None, tile.channels])
    far, near = sch.split(chunks, sch.sample_perfect_tile(chunks, 2, MOST_TILES, choices.blocks))
    walk = [near, band, *rest] if choices.weights_stay else [band, *rest, near]
    sch.reorder(*outer, bands, far, *walk, *reduction, *inner, vector, *group)
    sch.reverse_compute_at(results, walk[-1], preserve_unit_loops=True)
    *copied_rows, copied = sch.get_loops(results)[-1 - len(inner) :]
    for loop in (*copied_rows, *inner):
        sch.unroll(loop)
    _vectorize(sch, copied, tile.channels, lanes)
    if product.dot is None:
        _vectorize(sch, vector, tile.channels, lanes)
    outermost = _write_out(sch, reduction, choices.steps)
    shared = sch.fuse(*outer, bands) if choices.in_bands else sch.fuse(*outer, bands, far)
    if product.staged:
        _stage(sch, block, shared if choices.in_bands else None, lanes)
    sch.parallel(shared)
    if product.dot is not None:
        _name_instruction(sch, block, product.dot, outermost, vector)
    return sch


def _vectorize(sch: Schedule, loop: Any, channels: int, lanes: int) -> None:
    """Vectorise a loop over some whole vectors.

    LLVM takes a vector of two or four registers apart, but makes one of three registers one of four.
    """
    if (channels // lanes).bit_count() > 1:
        chunks, loop = sch.split(loop, [None, lanes])
        sch.unroll(chunks)
    sch.vectorize(loop)


def _name_instruction(sch: Schedule, block: Any, dot: Dot, reduction: Any, vector: Any) -> None:
    """Compute a block with an instruction: `vector` is its loop over channels, `reduction` the outermost of these."""
    chunks, lanes = sch.split(vector, [None, dot.lanes])
    sch.unroll(chunks)
    zeros = sch.decompose_reduction(block, reduction)
    sch.vectorize(sch.get_loops(zeros)[-1])
    sch.tensorize(lanes, dot.name)


def _write_out(sch: Schedule, reduction: Sequence[Any], most: int | None) -> Any:
    """Write some steps of the innermost reduction loop out; how many is a knob, or as many as are allowed.

    Returns:
        The outermost reduction loop behind that.
    """
    loop = next((r for r in reversed(reduction) if extent_of(sch, r) != 1), None)
    if loop is None:
        return reduction[0]
    steps = [d for d in _divisors(extent_of(sch, loop) or 1) if d <= (most or MOST_STEPS)]
    outer, written = sch.split(loop, [None, sampled(sch, steps) if most is None else steps[-1]])
    sch.unroll(written)
    return outer if loop.same_as(reduction[0]) else reduction[0]


def _stage(sch: Schedule, block: Any, at: Any | None, lanes: int) -> None:
    """Compute what the product reads before it: for each iteration of a loop, or all at once."""
    for producer in sch.get_producers(block):
        while before := [b for b in sch.get_producers(producer) if not reduces(sch, b)]:
            sch.compute_inline(before[0])
        if at is not None:
            sch.compute_at(producer, at, preserve_unit_loops=True)
        *others, last = sch.get_loops(producer)
        if (extent_of(sch, last) or 1) % lanes == 0:
            _, vector = sch.split(last, [None, lanes])
            sch.vectorize(vector)
        if at is None:
            sch.parallel(sch.fuse(*others[:-1]) if len(others) > 1 else others[0])
