"""Randomly wired networks as graphs (Xie 2019; Ahn 2020, sec. 4).

The wirings are Watts-Strogatz graphs. Every edge goes from the node with the smaller id to the one with the larger id.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx
import numpy as np

from chameleon.errors import UsageError
from chameleon.serenity.graph import Graph, Node


def watts_strogatz_edges(n: int, k: int, p: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw a connected Watts-Strogatz wiring.

    Args:
        n: number of nodes.
        k: how many neighbours a node has on the ring before rewiring; must be even.
        p: probability that an edge is rewired.
        rng: decides the rewiring.

    Returns:
        The edges (i, j) with i < j, sorted.

    Raises:
        UsageError: if there is no such wiring.
    """
    if not 2 <= k < n or k % 2 or not 0 <= p <= 1:
        raise UsageError(
            f"no Watts-Strogatz wiring WS({n}, {k}, {p}): expected an even k with 2 <= k < n and p in [0, 1]"
        )
    wiring = networkx.connected_watts_strogatz_graph(n, k, p, tries=1000, seed=rng)
    return sorted((min(edge), max(edge)) for edge in wiring.edges)


def watts_strogatz(
    n: int,
    k: int = 4,
    p: float = 0.75,
    *,
    rng: np.random.Generator,
    sizes: Sequence[int] | None = None,
    end_bytes: int = 1,
) -> Graph:
    """Draw a Watts-Strogatz wiring and build a graph from it.

    The node `input` feeds every node without predecessors. The node `output` reads every node that no other node
    reads.

    Args:
        n: number of nodes between `input` and `output`; they are called `n0`, `n1`, ...
        k: see `watts_strogatz_edges`.
        p: see `watts_strogatz_edges`.
        rng: see `watts_strogatz_edges`.
        sizes: `[n]` bytes of the nodes' tensors; 1 each if not given.
        end_bytes: bytes of `input` and of `output`.

    Raises:
        UsageError: if there is no such wiring, or the number of sizes is not `n`.
    """
    sizes = [1] * n if sizes is None else [int(size) for size in sizes]
    if len(sizes) != n:
        raise UsageError(f"expected {n} sizes, one for each node, got {len(sizes)}")
    edges = watts_strogatz_edges(n, k, p, rng)
    sources: list[list[str]] = [[] for _ in range(n)]
    for i, j in edges:
        sources[j].append(f"n{i}")
    read = {i for i, _ in edges}
    nodes = [Node(f"n{j}", tuple(sources[j]) or ("input",), sizes[j], op="node") for j in range(n)]
    last = tuple(f"n{i}" for i in range(n) if i not in read)
    ends = Node("input", (), end_bytes, op="input"), Node("output", last, end_bytes, op="mean")
    return Graph((ends[0], *nodes, ends[1]), ("input",), ("output",), f"ws_{n}_{k}_{p}")
