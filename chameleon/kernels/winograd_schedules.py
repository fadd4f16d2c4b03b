"""Design spaces for kernels with Winograd's algorithm, on CPUs.

MetaSchedule's own rules treat the transforms like any other loop nest. They then cost more than the matrix products.
Here the loops over a tile are unrolled, so that a transform is straight-line code over vectors of channels. There are
two kinds of schedules:

- *bands*: each thread takes a few rows of tiles through all stages, so that what is between them stays in its cache;
- *phases*: one stage after the other, each shared by all threads. The products are divided by the positions in a tile
  and by output channels, so each weight is loaded by one thread only. That is better for many channels and few tiles.

The tile of the products that is kept in registers and the length of the vectors are knobs. How many rows a band has
is a sketch of its own, because the extents of the loops inside depend on it.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.kernels.loops import extent_of, inline_behind, sampled

CACHE_BYTES = 1 << 20
"""A band's transformed inputs and products together have at most this size: a large second-level cache."""

ROWS = range(2, 17)
"""Of how many tiles the registers may hold results."""

VECTORS = (8, 16, 32)
"""How many channels are computed at once, if that divides their number."""

BANDS = 2
"""How many sizes of a band are offered, the largest that fit the cache."""


@dataclass(frozen=True)
class _Blocks:
    """The blocks of the stages, see `chameleon.kernels.winograd`."""

    padded: Any
    rows: Any
    tiles: Any
    products: Any
    columns: Any
    outputs: Any


def winograd_space(m: int, target: Target) -> ms.space_generator.ScheduleFn:
    """A space generator for a kernel that `winograd_form` made with tiles of m x m outputs.

    It is one of MetaSchedule's own kind, `ScheduleFn`, with the post-processors of its CPU rules.
    """
    cores = int(target.attrs.get("num-cores", 1))
    postprocs = ms.Postproc.create("llvm")
    return ms.space_generator.ScheduleFn(partial(_sketches, m=m, cores=cores), [], postprocs, {})


def _sketches(sch: Schedule, *, m: int, cores: int) -> list[Schedule]:
    mod = sch.mod
    found = [_in_phases(Schedule(mod), m)]
    return [*found, *(_in_bands(Schedule(mod), m, band) for band in bands(mod, m, cores))]


def bands(mod: IRModule, m: int, cores: int) -> list[int]:
    """How many rows of tiles a band may have: as many as fit the cache, and leave a band for each core."""
    sch = Schedule(mod)
    get = partial(_extents, sch)
    n_images, height, width, _ = get("winograd_outputs")
    channels = get("winograd_tiles")[3]
    rows, columns = -(-height // m), -(-width // m)
    row_bytes = (m + 2) ** 2 * columns * (channels + get("winograd_products")[3]) * 4
    fitting = [
        b
        for b in range(1, rows + 1)
        if rows % b == 0 and n_images * rows // b >= cores and (b == 1 or b * row_bytes <= CACHE_BYTES)
    ]
    return fitting[-BANDS:]


def _extents(sch: Schedule, block: str) -> list[int]:
    return [extent_of(sch, loop) or 0 for loop in sch.get_loops(sch.get_sblock(block))]


def _in_bands(sch: Schedule, m: int, band: int) -> Schedule:
    blocks = _blocks(sch, m)
    n, (tile_y, i), (tile_x, j), (chunk, vector) = _tiled(sch, blocks.outputs, m)
    outer, inner = sch.split(tile_y, [None, band])
    sch.reorder(n, outer, inner, tile_x, chunk, i, j, vector)
    bands = sch.fuse(n, outer)
    _outputs(sch, blocks, chunk, (i, j, vector))
    sch.compute_at(blocks.products, bands, preserve_unit_loops=True)
    sch.compute_at(blocks.tiles, bands, preserve_unit_loops=True)
    chunk = _tiles(sch, blocks)
    _rows(sch, blocks, chunk)
    sch.compute_at(blocks.padded, bands, preserve_unit_loops=True)
    sch.vectorize(_fixed_vector(sch, sch.get_loops(blocks.padded)[-1]))
    _products(sch, blocks)
    sch.parallel(bands)
    return sch


def _in_phases(sch: Schedule, m: int) -> Schedule:
    blocks = _blocks(sch, m)
    n, (tile_y, i), (tile_x, j), (chunk, vector) = _tiled(sch, blocks.outputs, m)
    sch.reorder(n, tile_y, tile_x, chunk, i, j, vector)
    _outputs(sch, blocks, chunk, (i, j, vector))
    sch.parallel(sch.fuse(n, tile_y, tile_x, chunk))
    chunk = _tiles(sch, blocks)
    tile = sch.get_loops(blocks.tiles)[0]
    _rows(sch, blocks, chunk)
    sch.parallel(sch.fuse(tile, chunk))
    n, y, _, k = sch.get_loops(blocks.padded)
    sch.vectorize(_fixed_vector(sch, k))
    sch.parallel(sch.fuse(n, y))
    e, v, chunk = _products(sch, blocks)
    sch.parallel(sch.fuse(e, v, chunk))
    return sch


def _blocks(sch: Schedule, m: int) -> _Blocks:
    """Get hold of the stages; what the kernel computes behind them becomes part of the last one."""
    names = ("padded", "rows", "tiles", "products", "columns", "outputs")
    blocks = _Blocks(*(sch.get_sblock(f"winograd_{name}") for name in names))
    inline_behind(sch, blocks.outputs)
    return blocks


def _tiled(sch: Schedule, outputs: Any, m: int) -> tuple[Any, Any, Any, Any]:
    """The loops over images, rows and columns (tiles, and inside one) and channels (vectors, and inside one)."""
    n, y, x, k = sch.get_loops(outputs)
    return n, sch.split(y, [None, m]), sch.split(x, [None, m]), _vector(sch, k)


def _outputs(sch: Schedule, blocks: _Blocks, at: Any, loops: Sequence[Any]) -> None:
    """Compute the outputs of a tile from its products, for a vector of channels at a time."""
    i, j, vector = loops
    sch.compute_at(blocks.columns, at, preserve_unit_loops=True)
    sch.unroll(i)
    sch.unroll(j)
    sch.vectorize(vector)
    i, v, tile, vector = sch.get_loops(blocks.columns)[-4:]
    sch.reorder(tile, v, i, vector)
    sch.unroll(v)
    sch.unroll(i)
    sch.vectorize(vector)


def _tiles(sch: Schedule, blocks: _Blocks) -> Any:
    """Transform the columns of a tile for a vector of channels at a time; returns the loop over the vectors."""
    e, v, tile, c = sch.get_loops(blocks.tiles)[-4:]
    chunk, vector = _vector(sch, c)
    sch.reorder(tile, chunk, e, v, vector)
    sch.unroll(e)
    sch.unroll(v)
    sch.vectorize(vector)
    return chunk


def _rows(sch: Schedule, blocks: _Blocks, at: Any) -> None:
    """Transform the rows of a tile just before its columns, in registers and on the stack."""
    sch.compute_at(blocks.rows, at, preserve_unit_loops=True)
    _, x, e, vector = sch.get_loops(blocks.rows)[-4:]
    sch.unroll(x)
    sch.unroll(e)
    sch.vectorize(vector)


def _products(sch: Schedule, blocks: _Blocks) -> tuple[Any, Any, Any]:
    """Multiply the matrices, a tile of results in registers at a time; returns the outer loops of the results."""
    e, v, tile, k, r = sch.get_loops(blocks.products)[-5:]
    rows, row = sch.split(tile, [None, sampled(sch, _divisors(sch, tile, ROWS))])
    chunk, vector = _vector(sch, k)
    sch.reorder(e, v, chunk, rows, r, row, vector)
    results = sch.cache_write(blocks.products, 0, "global")
    sch.reverse_compute_at(results, rows, preserve_unit_loops=True)
    *_, copied_row, copied = sch.get_loops(results)
    for loop, step in ((copied_row, sch.unroll), (copied, sch.vectorize), (row, sch.unroll), (vector, sch.vectorize)):
        step(loop)
    return e, v, chunk


def _vector(sch: Schedule, channels: Any) -> tuple[Any, Any]:
    """Split a loop over channels into vectors of a length that is a knob."""
    chunk, vector = sch.split(channels, [None, sampled(sch, _divisors(sch, channels, VECTORS))])
    return chunk, vector


def _fixed_vector(sch: Schedule, channels: Any) -> Any:
    """Split a loop over channels into vectors; returns the loop over a vector."""
    return sch.split(channels, [None, _divisors(sch, channels, VECTORS[:2])[-1]])[1]


def _divisors(sch: Schedule, loop: Any, wanted: Sequence[int]) -> list[int]:
    """Which of the wanted numbers divide the extent of a loop; if none does, the two largest divisors below them."""
    extent = extent_of(sch, loop) or 1
    divisors = [d for d in range(1, max(wanted) + 1) if extent % d == 0]
    return [d for d in divisors if d in wanted] or divisors[-2:]
