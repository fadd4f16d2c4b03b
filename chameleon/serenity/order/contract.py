"""Graphs of fewer steps and the same least peak: what only overwrites the step before it joins that step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from chameleon.serenity.graph import Graph, Node


@dataclass(frozen=True)
class Contracted:
    """A graph and the steps that joined others.

    Attributes:
        graph: without these steps.
        followers: by step those that run right after it, in order.
    """

    graph: Graph
    followers: dict[str, list[str]] = field(repr=False)

    def expanded(self, order: Sequence[str]) -> Iterator[str]:
        """An order of the whole graph, with the peak of this order of `graph`."""
        for name in order:
            yield name
            yield from self.followers.get(name, ())


def contracted(graph: Graph) -> Contracted:
    """Let each step that overwrites the only tensor that it reads, which nobody else reads, join the step that makes it.

    It takes and frees nothing, whenever it runs: so it may as well run at once. Operators of a network before they become
    kernels are full of such steps (biases, activations), each of which would double the sets of steps that a solver meets.
    """
    joined: dict[str, str] = {}
    for node in graph.nodes:
        if _may_join(graph, node):
            joined[node.name] = node.in_place

    def first(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    followers: dict[str, list[str]] = {}
    for name in joined:
        if name not in joined.values():  # the last of a row
            row = [name]
            while joined[row[-1]] in joined:
                row.append(joined[row[-1]])
            followers[first(name)] = row[::-1]
    kept = (node for node in graph.nodes if node.name not in joined)
    nodes = tuple(
        replace(n, inputs=tuple(map(first, n.inputs)), in_place=first(n.in_place), storage=first(n.storage))
        for n in kept
    )
    return Contracted(Graph(nodes, graph.inputs, tuple(map(first, graph.outputs)), graph.name), followers)


def _may_join(graph: Graph, node: Node) -> bool:
    if node.inputs != (node.in_place,) or node.workspace_bytes or graph.members.get(node.name) != (node.name,):
        return False
    source = graph.by_name[node.in_place]
    free = source.name not in (*graph.inputs, *graph.outputs) and not source.storage
    return free and graph.consumers[source.name] == (node.name,) and _only_terms(graph, source)


def _only_terms(graph: Graph, node: Node) -> bool:
    """Whether all that lies in a node's memory besides its tensor is read by that node alone: the terms of a sum."""
    return all(graph.consumers[m] == (node.name,) for m in graph.members[node.name] if m != node.name)
