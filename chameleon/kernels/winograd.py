"""Winograd's minimal filtering for 3x3 convolutions: the same outputs with 2.25 or 4 times fewer multiplications.

F(m x m, 3 x 3) computes a tile of m x m outputs from (m + 2) x (m + 2) inputs (Lavin and Gray, 2015, section 4.1):

    Y = A^T [ (G g G^T) * (B^T d B) ] A

Summed over the input channels, the products in the middle are (m + 2)^2 matrix products. The transforms on both sides
are sums with few terms. `G g G^T` depends on the weights only, so it is computed once, at compile time, in double
precision.

`winograd_form` rewrites a fused kernel: the padding and the convolution become the five stages below, and what is
fused behind them stays. The stages, with the channels last:

    padded[n, y, x, c]         the input, as large as the tiles need it
    rows[n*y, x, e, c]         B^T d, each row of tiles by itself
    tiles[e, v, p, c]          (B^T d) B for each tile p, filled up to a multiple of four
    products[e, v, p, k]       the matrix products, over c
    columns[i, v, p, k]        A^T of them
    the convolution's output   (A^T M) A, at y = tile * m + i

The paper transforms a tile in two dimensions at once. Both transforms are made of two steps in one dimension here:
fewer operations, and far less code once the loops over a tile are unrolled.

Rounding. The largest error against double precision, divided by the largest output, is bounded in the tests:
2e-6 for m = 2, 5e-5 for m = 4 (a direct convolution in float32 has 1e-6).
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx, topi
from tvm.ir import IRModule
from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx import PrimFunc
from tvm_ffi import structural_equal

from chameleon.kernels.buffers import with_buffers
from chameleon.kernels.loops import long_extent

TILES = (2, 4)
"""The sizes m of a tile of outputs; larger ones round too much in float32."""

LEAST_TILES = 8
"""A transformed weight is loaded from memory for each run. With fewer tiles to use it for, that takes all the time."""

AT_ONCE = 4
"""The number of tiles is filled up to a multiple of this (the last tile is repeated), so that registers can be."""

Matrix = NDArray[np.float64]

INPUT: Mapping[int, Matrix] = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        float,
    ),
}
"""B^T, `[m + 2, m + 2]`."""

WEIGHT: Mapping[int, Matrix] = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
}
"""G, `[m + 2, 3]`."""

OUTPUT: Mapping[int, Matrix] = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float),
    4: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float),
}
"""A^T, `[m, m + 2]`."""


@dataclass(frozen=True)
class Convolution:
    """A 3x3 convolution of stride 1 in a fused kernel, channels last.

    Attributes:
        statements: the positions of its padding (if it has one) and of itself among the kernel's statements.
        source: what it reads, before the padding.
        weight: the position of the weights `[3, 3, c, k]` among the kernel's parameters.
        output: what it writes, `[n, y, x, k]`.
        pad: rows and columns of zeros before the first of the source.
    """

    statements: tuple[int, ...]
    source: Any
    weight: int
    output: Any
    pad: tuple[int, int]

    @property
    def channels(self) -> tuple[int, int]:
        """The numbers of input and output channels."""
        return int(self.source.shape[3]), int(self.output.shape[3])

    def tiles(self, m: int) -> tuple[int, int, int]:
        """The numbers of images, and of rows and columns of tiles of m x m outputs; the last ones may stand over."""
        n, height, width, _ = (int(d) for d in self.output.shape)
        return n, -(-height // m), -(-width // m)


def transformed_weights(weight: NDArray[Any], m: int) -> NDArray[Any]:
    """G g G^T for each pair of channels, `[m + 2, m + 2, c, k]`, from weights `[3, 3, c, k]`."""
    g = WEIGHT[m]
    return np.einsum("ei,ijck,vj->evck", g, weight.astype(np.float64), g).astype(weight.dtype)


def winograd_form(mod: IRModule, found: Convolution, m: int) -> IRModule | None:
    """The kernel `main` of a module with Winograd's algorithm in the place of its convolution.

    It takes the transformed weights `[m + 2, m + 2, c, k]` where the kernel takes the weights. All else is equal.

    Args:
        found: the convolution, see `find_convolution`.

    Returns:
        None if there are too few tiles for the algorithm to pay.
    """
    n, rows, columns = found.tiles(m)
    if n * rows * columns < LEAST_TILES or min(int(d) for d in found.output.shape[1:3]) < m:
        return None
    return IRModule({"main": _with_stages(mod["main"], found, m)})


def find_convolution(func: PrimFunc) -> Convolution | None:
    """The 3x3 convolution of stride 1 of a fused kernel; None if it has none, or more than one.

    Its weights are constant, all is float32, and the channels come last.
    """
    statements = _statements(func)
    found = [(i, c) for i, s in enumerate(statements) if (c := _as_convolution(func, s)) is not None]
    if len(found) != 1:
        return None
    position, (data, weight, output) = found[0]
    if any(data.same_as(p) for p in func.params):
        return Convolution((position,), data, weight, output, (0, 0))
    for i, statement in enumerate(statements):
        block = _block(statement)
        if block is not None and any(w.source.same_as(data) for w in block.writes):
            padding = _as_padding(block, data)
            return None if padding is None else Convolution((i, position), padding[0], weight, output, padding[1])
    return None


def _statements(func: PrimFunc) -> list[Any]:
    """The loop nests of a kernel that has no schedule."""
    body = func.body.block.body
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _block(statement: Any) -> Any | None:
    """The block inside a loop nest."""
    while isinstance(statement, tirx.For):
        statement = statement.body
    return getattr(statement, "block", None)


def _as_convolution(func: PrimFunc, statement: Any) -> tuple[Any, int, Any] | None:
    """Data, position of the weights among the parameters, and output, if a loop nest is such a convolution."""
    block = _block(statement)
    if block is None or len(block.reads) != 2 or len(block.writes) != 1:
        return None
    data, weight, output = block.reads[0].source, block.reads[1].source, block.writes[0].source
    constant = [int(i) for i in (func.attrs or {}).get("layout_free_buffers", [])]
    position = next((i for i in constant if func.params[i].same_as(weight)), None)
    if position is None or any(not _is_plain(buffer) for buffer in (data, weight, output)):
        return None
    if [int(d) for d in weight.shape[:2]] != [3, 3] or not _same(block, _direct(data, weight)):
        return None
    return data, position, output


def _as_padding(block: Any, padded: Any) -> tuple[Any, tuple[int, int]] | None:
    """What a block pads, and by how many rows and columns at the front, if it only adds zeros to an image."""
    if len(block.reads) != 1 or not _is_plain(source := block.reads[0].source):
        return None
    more = [int(p) - int(s) for p, s in zip(padded.shape, source.shape, strict=True)]
    if more[0] or more[3] or min(more) < 0:
        return None
    for top in range(more[1] + 1):
        for left in range(more[2] + 1):
            if _same(block, _padding(source, (top, left), (more[1] - top, more[2] - left))):
                return source, (top, left)
    return None


def _is_plain(buffer: Any) -> bool:
    """Whether a buffer has four dimensions of known extents, and holds float32."""
    known = all(isinstance(extent, int | tirx.IntImm) for extent in buffer.shape)
    return known and len(buffer.shape) == 4 and str(buffer.dtype) == "float32"


def _same(block: Any, other: PrimFunc) -> bool:
    """Whether a block computes what the last block of another kernel computes, whatever their names are."""
    return structural_equal(_meaning(block), _meaning(_block(_statements(other)[-1])), map_free_vars=True)


def _meaning(block: Any) -> list[Any]:
    """What a block computes, without the types of its indices."""
    axes = [[int(v.iter_type), int(v.dom.extent)] for v in block.iter_vars]
    return [axes, list(block.reads), list(block.writes), block.body, block.init]


def _placeholder(shape: Sequence[Any], name: str) -> Any:
    """An input of float32; the extents have 64 bits, as those of Relax have."""
    return te.placeholder([long_extent(d) for d in shape], "float32", name=name)


def _direct(data: Any, weight: Any) -> PrimFunc:
    """The direct convolution of stride 1, as TVM writes it."""
    x, w = _placeholder(data.shape, "x"), _placeholder(weight.shape, "w")
    n, height, width, c = data.shape
    spans = (3, 3, c)
    ry, rx, rc = (
        te.reduce_axis((long_extent(0), long_extent(d)), name=r)
        for d, r in zip(spans, ("ry", "rx", "rc"), strict=True)
    )
    shape = [long_extent(d) for d in (n, int(height) - 2, int(width) - 2, weight.shape[3])]
    y = te.compute(
        shape, lambda b, i, j, k: te.sum(x[b, i + ry, j + rx, rc] * w[ry, rx, rc, k], axis=[ry, rx, rc]), name="y"
    )
    return te.create_prim_func([x, w, y])


def _padding(source: Any, before: tuple[int, int], after: tuple[int, int]) -> PrimFunc:
    """Zeros around an image, as TVM writes them."""
    x = _placeholder(source.shape, "x")
    return te.create_prim_func([x, topi.nn.pad(x, [0, *before, 0], [0, *after, 0])])


def _with_stages(func: PrimFunc, conv: Convolution, m: int) -> PrimFunc:
    """The kernel with the stages of Winograd's algorithm in the place of the padding and the convolution."""
    c, k = conv.channels
    weights = tirx.decl_buffer([long_extent(d) for d in (m + 2, m + 2, c, k)], "float32", name="transformed")
    stages = _stages(conv, m)
    new = dict(zip(stages.params, (conv.source, weights, conv.output), strict=True))
    outer, replaced = _statements(func), conv.statements
    body = [*outer[: replaced[-1]], *(with_buffers(s, new) for s in _statements(stages)), *outer[replaced[-1] + 1 :]]
    body = [s for i, s in enumerate(body) if i not in replaced[:-1]]
    gone = [w.source for i in replaced[:-1] for w in _block(outer[i]).writes]
    kept = [b for b in func.body.block.alloc_buffers if not any(b.same_as(g) for g in gone)]
    allocated = [*kept, *stages.body.block.alloc_buffers]
    root = SBlock([], [], [], "root", tirx.SeqStmt(body), alloc_buffers=allocated)
    params = [weights if i == conv.weight else p for i, p in enumerate(func.params)]
    return PrimFunc(params, SBlockRealize([], True, root), func.ret_type, func.attrs)


def _stages(conv: Convolution, m: int) -> PrimFunc:
    """The stages, from the source and the transformed weights to the convolution's output."""
    (c, k), (n, rows, columns) = conv.channels, conv.tiles(m)
    height, width = (int(d) for d in conv.source.shape[1:3])
    (top, left), size, last = conv.pad, m + 2, n * rows * columns - 1
    p = last + 1 + -(last + 1) % AT_ONCE
    x, u = _placeholder(conv.source.shape, "x"), _placeholder((size, size, c, k), "u")

    def stage(name: str, shape: Sequence[int], value: Callable[..., Any]) -> Any:
        return te.compute([long_extent(d) for d in shape], value, name=f"winograd_{name}")

    def inside(y: Any, x: Any) -> Any:
        return tirx.all(y >= top, y < height + top, x >= left, x < width + left)

    def at(t: Any) -> Any:
        return t if p == last + 1 else tirx.min(t, long_extent(last))

    padded = stage(
        "padded",
        (n, rows * m + 2, columns * m + 2, c),
        lambda b, i, j, z: tirx.if_then_else(inside(i, j), x[b, i - top, j - left, z], tirx.const(0.0, "float32")),
    )
    by_rows = stage(
        "rows",
        (n * rows, columns * m + 2, size, c),
        lambda t, j, e, z: _row(INPUT[m], e, lambda i: padded[t // rows, t % rows * m + i, j, z]),
    )
    tiles = stage(
        "tiles",
        (size, size, p, c),
        lambda e, v, t, z: _row(INPUT[m], v, lambda j: by_rows[at(t) // columns, at(t) % columns * m + j, e, z]),
    )
    r = te.reduce_axis((long_extent(0), long_extent(c)), name="r")
    products = stage(
        "products", (size, size, p, k), lambda e, v, t, o: te.sum(tiles[e, v, t, r] * u[e, v, r, o], axis=r)
    )
    by_columns = stage(
        "columns", (m, size, p, k), lambda i, v, t, o: _row(OUTPUT[m], i, lambda e: products[e, v, t, o])
    )
    output = stage(
        "outputs",
        [int(d) for d in conv.output.shape],
        lambda b, i, j, o: _row(
            OUTPUT[m], j % m, lambda v: by_columns[i % m, v, (b * rows + i // m) * columns + j // m, o]
        ),
    )
    return te.create_prim_func([x, u, output])


def _row(matrix: Matrix, index: Any, load: Callable[[int], Any]) -> Any:
    """Row `index` of a matrix times a vector. Once the loop over the index is unrolled, one of the sums is left."""
    *first, value = (_sum(row, load) for row in matrix)
    for i in reversed(range(len(first))):
        value = tirx.Select(index == i, first[i], value)
    return value


def _sum(row: NDArray[np.float64], load: Callable[[int], Any]) -> Any:
    """The sum of a row's terms, without those that are zero."""
    terms = [
        (f, load(i) if abs(f) == 1 else load(i) * tirx.const(abs(float(f)), "float32")) for i, f in enumerate(row) if f
    ]
    (first, total), *others = terms
    total = total if first > 0 else -total
    for factor, term in others:
        total = total + term if factor > 0 else total - term
    return total
