"""The cells of the table in Ahn 2020 and other irregular wirings, built from what the papers say about them.

**RandWire** (Xie 2019, sec. 3; Ahn 2020, sec. 4).

- Known: the wirings are Watts-Strogatz graphs WS(32, 4, 0.75), with edges oriented by the number of the node. A node
  sums its inputs with learned weights in (0, 1). Then come ReLU, a separable 3x3 convolution and batch norm. Nodes
  without predecessors read the input of the cell. The output is the average of the nodes without readers.
- Not published: the seeds, and the sizes of the tensors.
- Inferred: cells A, B and C have 32x32, 16x16 and 8x8 pixels with 8, 16 and 32 channels of 32-bit floats. So their
  tensors take 32.768, 16.384 and 8.192 kB. With these sizes, the paper's five peaks of the dynamic program (459, 260,
  359, 280 and 115 kB) are 14.0, 15.9, 11.0, 17.1 and 14.0 tensors: all within 1% of whole numbers. Its TFLite peaks
  are not whole numbers of tensors.
- Ours: the seeds of our wirings are 0, 1, 2, 3, 4, in the order of the table. They were not chosen for their peaks.
  All strides are 1: in a whole network the first nodes of a stage halve the resolution, and our cells leave this out.

**DARTS**, normal cell (Liu 2019, the genotype that its authors published as V2).

- Known: the wiring, the operators, and that the first cells of the ImageNet network have 48 channels at 28x28.
- Inferred: memory is counted from the two preprocessed inputs of the cell. Then the paper's 903 and 753 kB are 6.0 and
  5.0 tensors of 150.528 kB, and TFLite's 1656 kB are 11.0 tensors.
- Not published: what reads the concatenation at the end of the cell. In the network it is the preprocessing of the
  next cells: ReLU, 1x1 convolution, batch norm. So our cell ends with one of these. Without it nothing could be
  rewritten.

**SwiftNet** for human presence detection (Cheng 2019).

- Known: three cells of 21, 19 and 22 nodes, 62 in all, in a row, with concatenations, 1x1 convolutions and depthwise
  convolutions.
- Not published: the graph.
- Ours: random cells with these numbers of nodes, at 32x32, 16x16 and 8x8, with few channels, so that peaks have the
  same order of magnitude as the paper's. They are not a reproduction of SwiftNet.

**Others.** `ws_cell` makes RandWire cells with other numbers of nodes. `mixed_cell` makes a Watts-Strogatz wiring in
which nodes have different widths and concatenate what they read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from chameleon.models.irregular.operators import Cell, Kind, Operator, Shape
from chameleon.serenity.wiring import watts_strogatz_edges

NEIGHBOURS, REWIRING = 4, 0.75  # the 4 and the 0.75 of WS(n, 4, 0.75)
_WINDOW = 6  # an operator of a SwiftNet-like cell reads some of this many latest tensors


def ws_cell(name: str, n: int, shape: Shape, rng: np.random.Generator) -> Cell:
    """A RandWire cell on WS(n, 4, 0.75).

    It has `n` operators `n0`, `n1`, ... of one shape, and the average of those that no other operator reads.
    """
    sources, sinks = _wiring(n, rng)
    nodes = [Operator(f"n{i}", "randwire", sources[i], shape[0], kernel=3) for i in range(n)]
    return Cell(name, {"x": shape}, (*nodes, Operator("output", "mean", sinks)), "output")


def mixed_cell(name: str, n: int, shape: Shape, widths: Sequence[int], rng: np.random.Generator) -> Cell:
    """A cell on WS(n, 4, 0.75) with nodes of different widths; a node concatenates what it reads.

    After the concatenation, every fourth node has ReLU, a depthwise convolution and a 1x1 convolution. The other nodes
    have a 1x1 convolution only. A batch norm and a ReLU follow each convolution. At the end of the cell, a 1x1
    convolution reads the concatenation of the nodes that no other node reads.
    """
    sources, sinks = _wiring(n, rng)
    chosen = [int(w) for w in rng.choice(widths, size=n)]
    operators: list[Operator] = []
    for i in range(n):
        x = _joined(operators, f"cat{i}", sources[i])
        if i % 4 == 3:
            operators.append(Operator(f"relu{i}", "relu", (x,)))
            operators.append(Operator(f"depthwise{i}", "depthwise_relu", (f"relu{i}",), kernel=3))
            x = f"depthwise{i}"
        operators.append(Operator(f"n{i}", "conv_relu", (x,), chosen[i]))
    x = _joined(operators, "cat", sinks)
    return Cell(name, {"x": shape}, (*operators, Operator("output", "conv_relu", (x,), shape[0])), "output")


def darts_cell(name: str, shape: Shape) -> Cell:
    """The normal cell of DARTS V2 on two inputs of one shape, and the next cell's preprocessing of its result."""
    c = shape[0]
    pairs: list[tuple[tuple[Kind | None, str], tuple[Kind | None, str]]] = [  # None: skip connection
        (("sep_conv", "s0"), ("sep_conv", "s1")),
        (("sep_conv", "s0"), ("sep_conv", "s1")),
        (("sep_conv", "s1"), (None, "s0")),
        ((None, "s0"), ("dil_conv", "n2")),
    ]
    operators: list[Operator] = []
    for i, pair in enumerate(pairs, start=2):
        terms = []
        for kind, source in pair:
            if kind is None:
                terms.append(source)
                continue
            terms.append(f"{kind}{i}_{source}")
            operators.append(
                Operator(terms[-1], kind, (source,), c, kernel=3, dilation=2 if kind == "dil_conv" else 1)
            )
        operators.append(Operator(f"n{i}", "add", tuple(terms)))
    operators.append(Operator("concat", "concat", ("n2", "n3", "n4", "n5")))
    operators.append(Operator("next", "relu_conv", ("concat",), c))
    return Cell(name, {"s0": shape, "s1": shape}, tuple(operators), "next")


def swiftnet_cell(
    name: str, n: int, shape: Shape, widths: Sequence[int], out_channels: int, rng: np.random.Generator
) -> Cell:
    """A random cell of `n` operators that resembles SwiftNet.

    The first operator is a 3x3 convolution with stride 2. Each of the next ones is a 1x1 or a depthwise convolution.
    It reads one to three of the latest tensors, through a concatenation if there are several. The last two operators
    join all tensors that no other operator read.
    """
    operators = [Operator("n0", "conv_relu", ("x",), int(rng.choice(widths)), kernel=3, stride=2)]
    tensors = ["n0"]  # all tensors but the concatenations
    while len(operators) < n - 2:
        recent, room = tensors[-_WINDOW:], n - 2 - len(operators)
        k = 1 if room < 2 else min(len(recent), int(rng.choice(3, p=(0.3, 0.4, 0.3))) + 1)
        sources = tuple(recent[i] for i in sorted(rng.choice(len(recent), size=k, replace=False)))
        x, number = _joined(operators, f"cat{len(tensors)}", sources), len(tensors)
        if rng.random() < 0.5:
            operators.append(Operator(f"n{number}", "depthwise_relu", (x,), kernel=3))
        else:
            operators.append(Operator(f"n{number}", "conv_relu", (x,), int(rng.choice(widths))))
        tensors.append(f"n{number}")
    read = {source for op in operators for source in op.inputs}
    ends = tuple(t for t in tensors if t not in read)
    _joined(operators, "cat", ends if len(ends) > 1 else ("n0", *ends))
    operators.append(Operator("output", "conv_relu", ("cat",), out_channels))
    return Cell(name, {"x": shape}, tuple(operators), "output")


def in_a_row(name: str, cells: Mapping[str, Cell]) -> Cell:
    """Join several cells to one, in which each reads the result of the cell before it.

    The names of operators get the key of their cell as a prefix.
    """
    first = next(iter(cells.values()))
    operators: list[Operator] = []
    source = "x"
    for prefix, cell in cells.items():
        names = {"x": source} | {op.name: f"{prefix}_{op.name}" for op in cell.operators}
        operators += [
            replace(op, name=names[op.name], inputs=tuple(names[i] for i in op.inputs)) for op in cell.operators
        ]
        source = names[cell.output]
    return Cell(name, first.inputs, tuple(operators), source)


def _wiring(n: int, rng: np.random.Generator) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """What each node of WS(n, 4, 0.75) reads, and the nodes that no other node reads."""
    edges = watts_strogatz_edges(n, NEIGHBOURS, REWIRING, rng)
    sources: list[list[str]] = [[] for _ in range(n)]
    for i, j in edges:
        sources[j].append(f"n{i}")
    read = {i for i, _ in edges}
    return [tuple(names) or ("x",) for names in sources], tuple(f"n{i}" for i in range(n) if i not in read)


def _joined(operators: list[Operator], name: str, sources: tuple[str, ...]) -> str:
    """The only source; if there are several, a concatenation of them, which is added to the operators."""
    if len(sources) == 1:
        return sources[0]
    operators.append(Operator(name, "concat", sources))
    return name
