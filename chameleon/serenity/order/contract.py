"""Makes a graph with fewer steps and the same least peak.

A step that only overwrites the tensor of the step before it joins that step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from chameleon.serenity.graph import Graph, Node


@dataclass(frozen=True)
class Contracted:
    """A graph and the steps that joined others.

    Attributes:
        graph: the graph without the steps that joined others.
        followers: for each step, the steps that run right after it, in order.
    """

    graph: Graph
    followers: dict[str, list[str]] = field(repr=False)

    def expanded(self, order: Sequence[str]) -> Iterator[str]:
        """Turn an order of `graph` into an order of the whole graph.

        Both have the same peak.
        """
        for name in order:
            yield name
            yield from self.followers.get(name, ())


def contracted(graph: Graph) -> Contracted:
    """Let steps that only overwrite a tensor join the step that makes the tensor.

    A step joins if it overwrites the only tensor that it reads, and no other step reads that tensor. Such a step takes
    and frees nothing, whenever it runs. So it may as well run at once. A network whose operators are not yet kernels
    is full of such steps (biases, activations). Each of them would double the sets of steps that a solver meets.
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
    """Whether all other tensors in the memory of a node are read by this node alone.

    The terms of a sum are such tensors.
    """
    return all(graph.consumers[m] == (node.name,) for m in graph.members[node.name] if m != node.name)
