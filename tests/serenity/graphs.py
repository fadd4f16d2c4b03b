"""Random graphs for tests, with every feature of memory that a graph can have."""

from __future__ import annotations

import numpy as np

from chameleon.serenity.graph import Graph, Node


def random_graph(seed: int, n: int | None = None, features: bool = True) -> Graph:
    """A random graph of `n` nodes (3 to 12); with `features`, workspaces, views, parts and in-place nodes as well."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 13)) if n is None else n
    n_inputs = int(rng.integers(0, min(3, n)))
    sizes = rng.integers(0, 6, size=n)
    nodes: list[Node] = []
    for i in range(n):
        name = f"n{i}"
        if i < n_inputs:
            nodes.append(Node(name, (), int(sizes[i])))
            continue
        k = int(rng.integers(0 if rng.random() < 0.2 else min(1, i), min(i, 3) + 1))
        sources = tuple(f"n{j}" for j in sorted(rng.choice(i, size=k, replace=False))) if k else ()
        nodes.append(_node(rng, nodes, name, sources, int(sizes[i]), features))
    inputs = tuple(f"n{i}" for i in range(n_inputs))
    outputs = tuple(
        str(o) for o in rng.choice([node.name for node in nodes], size=int(rng.integers(1, 3)), replace=False)
    )
    graph = Graph(tuple(nodes), inputs, outputs)
    if not features:
        return graph
    graph = _with_a_concatenation(rng, graph)
    return _with_a_sum(rng, graph) if n <= 7 and rng.random() < 0.6 else graph


def random_order(seed: int) -> list[str]:
    """A random valid order of `random_graph(seed)`."""
    rng, graph = np.random.default_rng([seed, 1]), random_graph(seed)
    done, order = set(graph.inputs), []
    while len(order) < len(graph.steps):
        ready = [s for s in graph.steps if s not in done and done.issuperset(graph.by_name[s].inputs)]
        order.append(str(rng.choice(ready)))
        done.add(order[-1])
    return order


def _node(
    rng: np.random.Generator, before: list[Node], name: str, sources: tuple[str, ...], size: int, features: bool
) -> Node:
    if not features:
        return Node(name, sources, size)
    work = int(rng.integers(0, 4)) if rng.random() < 0.3 else 0
    by_name = {node.name: node for node in before}
    if sources and rng.random() < 0.4:
        source = by_name[str(rng.choice(sources))]
        owner = by_name[source.storage or source.name]
        if rng.random() < 0.5:
            return Node(name, sources, 0, work, storage=owner.name)
        return Node(name, sources, owner.output_bytes, work, in_place=source.name)
    return Node(name, sources, size, work)


def _with_a_concatenation(rng: np.random.Generator, graph: Graph) -> Graph:
    """Add a node in whose memory some plain nodes' tensors lie."""
    taken = {node.storage for node in graph.nodes} | {node.in_place for node in graph.nodes}
    plain = [
        node
        for node in graph.nodes
        if node.name not in {*graph.inputs, *taken} and not node.storage and not node.in_place and node.output_bytes
    ]
    if len(plain) < 2 or rng.random() < 0.5:
        return graph
    parts = [plain[i] for i in rng.choice(len(plain), size=2, replace=False)]
    names = {p.name for p in parts}
    nodes = [
        Node(n.name, n.inputs, n.output_bytes, n.workspace_bytes, storage="cat") if n.name in names else n
        for n in graph.nodes
    ]
    cat = Node("cat", tuple(sorted(names)), sum(p.output_bytes for p in parts))
    return Graph((*nodes, cat), graph.inputs, (*graph.outputs, "cat") if rng.random() < 0.5 else graph.outputs)


def _with_a_sum(rng: np.random.Generator, graph: Graph) -> Graph:
    """Add terms that are added up in one memory, the first of which may take over that of what it reads."""
    sources = [
        graph.nodes[i] for i in sorted(rng.choice(len(graph.nodes), size=int(rng.integers(2, 4)), replace=False))
    ]
    size = graph.by_name[graph.owner(sources[0].name)].output_bytes
    terms = [
        Node(
            f"t{i}",
            (source.name,),
            size,
            storage="sum",
            in_place=source.name if graph.by_name[graph.owner(source.name)].output_bytes == size else "",
        )
        for i, source in enumerate(sources)
    ]
    total = Node("sum", tuple(term.name for term in terms), size)
    end = ("sum",) if rng.random() < 0.3 else ()
    nodes = (*graph.nodes, *terms, total) if end else (*graph.nodes, *terms, total, Node("end", ("sum",), 1))
    return Graph(nodes, graph.inputs, (*graph.outputs, *(end or ("end",))))
