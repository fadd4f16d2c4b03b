"""What an order of a graph costs in memory.

This module shares no code with the solvers, because it is used to check them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chameleon.serenity.graph import Graph, GraphError


@dataclass(frozen=True)
class Footprint:
    """The bytes in use over a schedule of n steps.

    Attributes:
        during: `[n]`, while each step runs: its inputs, its output, its workspace, and everything that later steps
            need.
        after: `[n + 1]`, before the first step and after every step.
    """

    during: NDArray[np.int64] = field(repr=False)
    after: NDArray[np.int64] = field(repr=False)

    @property
    def peak_bytes(self) -> int:
        """The most bytes in use at any time."""
        return int(max(self.during.max(initial=0), self.after.max(initial=0)))


@dataclass(frozen=True)
class Buffer:
    """A piece of memory and the steps that need it.

    Attributes:
        name: the name of the node that owns it. For a workspace it is the `workspace_name` of its node.
        size_bytes: its size.
        start: the first step that needs it.
        stop: one past the last step that needs it.
        tensors: the nodes whose tensors lie in it, including those computed in place; empty for a workspace.
    """

    name: str
    size_bytes: int
    start: int
    stop: int
    tensors: tuple[str, ...] = ()


def validate(graph: Graph, order: Sequence[str]) -> None:
    """Check that an order runs every step of a graph exactly once, and after its inputs.

    Raises:
        GraphError: if it does not; the message names the node.
    """
    steps, counts = set(graph.steps), Counter(order)
    for name, times in counts.items():
        if name not in steps:
            what = "an input of the graph, which is there already" if name in graph.inputs else "no node of the graph"
            raise GraphError(f"the order holds {name!r}, {what}")
        if times > 1:
            raise GraphError(f"the order holds {name!r} {times} times")
    missing = [name for name in graph.steps if name not in counts]
    if missing:
        raise GraphError(f"the order lacks {len(missing)} of {len(steps)} nodes: {', '.join(missing[:5])}")
    done = set(graph.inputs)
    for name in order:
        for source in graph.by_name[name].inputs:
            if source not in done:
                raise GraphError(f"the order runs {name!r} before its input {source!r}")
        done.add(name)


def lifetimes(graph: Graph, order: Sequence[str]) -> list[Buffer]:
    """List the buffers that a schedule needs, sorted by their first use.

    Tensors computed in place share one buffer.

    Raises:
        GraphError: if the order is not valid.
    """
    validate(graph, order)
    first, last = _touches(graph, order)
    merged = _in_place(graph, order)  # owner -> the owner whose memory it takes over
    buffers: dict[str, Buffer] = {}
    for owner in sorted(first, key=lambda o: first[o]):
        root, tensors = owner, graph.members[owner]
        while root in merged:
            root = merged[root]
        known = buffers.get(root)
        start, tensors = (known.start, known.tensors + tensors) if known else (first[owner], tensors)
        buffers[root] = Buffer(root, graph.by_name[root].output_bytes, start, last[owner] + 1, tensors)
    nodes = [graph.by_name[name] for name in order]
    work = [Buffer(node.workspace_name, node.workspace_bytes, t, t + 1) for t, node in enumerate(nodes)]
    return [b for b in (*buffers.values(), *work) if b.size_bytes]


def footprint(graph: Graph, order: Sequence[str]) -> Footprint:
    """Count the bytes in use before, during and after every step.

    The module `chameleon.serenity.graph` says what is counted.

    Raises:
        GraphError: if the order is not valid.
    """
    n = len(order)
    during, after = np.zeros(n + 2, np.int64), np.zeros(n + 2, np.int64)  # changes per step, summed up below
    for b in lifetimes(graph, order):
        during[b.start] += b.size_bytes
        during[b.stop] -= b.size_bytes
        if b.tensors:  # after[t] is the time just before step t
            given = any(name in graph.inputs for name in b.tensors)
            kept = any(name in graph.outputs for name in b.tensors)
            after[0 if given else b.start + 1] += b.size_bytes
            after[n + 1 if kept else b.stop] -= b.size_bytes
    return Footprint(np.cumsum(during)[:n], np.cumsum(after)[: n + 1])


def peak_bytes(graph: Graph, order: Sequence[str]) -> int:
    """The most bytes in use at any time in this order.

    The order cannot run in less memory than this. The number is also called its liveness bound.

    Raises:
        GraphError: if the order is not valid.
    """
    return footprint(graph, order).peak_bytes


def _touches(graph: Graph, order: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """For every node that owns memory, find the first and the last step that need this memory."""
    at = {name: t for t, name in enumerate(order)} | dict.fromkeys(graph.inputs, 0)
    end = max(len(order) - 1, 0)
    first, last = {}, {}
    for owner, members in graph.members.items():
        readers = [reader for name in members for reader in graph.consumers[name]]
        if owner in graph.inputs and not readers and owner not in graph.outputs:
            continue  # a graph input that nobody reads is not counted
        first[owner] = min(at[name] for name in members)
        kept = any(name in graph.outputs for name in members)
        last[owner] = end if kept else max(at[name] for name in (*members, *readers))
    return first, last


def _in_place(graph: Graph, order: Sequence[str]) -> dict[str, str]:
    """Find which owners of memory take over the memory of another owner in this order.

    Returns:
        Owner -> the owner whose memory it takes over.
    """
    bound = {graph.owner(name) for name in (*graph.inputs, *graph.outputs)}
    merged: dict[str, str] = {}
    done = set(graph.inputs)
    for name in order:
        done.add(name)
        taken = graph.by_name[name].in_place
        if not taken:
            continue
        own, source = graph.owner(name), graph.owner(taken)
        readers = [r for m in graph.members[source] for r in graph.consumers[m]]
        # fresh: no other tensor in the node's own memory has been written yet
        fresh = done.isdisjoint(m for m in graph.members[own] if m != name)
        if fresh and source not in bound and done.issuperset((*graph.members[source], *readers)):
            merged[own] = source
    return merged
