"""A network as the memory-aware scheduler sees it: nodes, and the bytes that their tensors take.

These rules say what is counted, and when:

- **Tensors.** A node's tensor takes `output_bytes`. It is in memory from the step that runs the node until the last of
  its readers has run. So the inputs and the output of a node are in memory together (Ahn 2020, sec. 3.1). A tensor
  that nobody reads is freed after its own step.
- **Graph inputs** are in memory before the first step and are freed after their last reader. An input that nobody
  reads is not counted. A caller that keeps an input alive all the time lists it among the outputs too. A caller that
  does not want an input to be counted gives it 0 bytes.
- **Graph outputs** are never freed.
- **Workspaces** are in memory only while their node runs.
- **Storage.** `storage` names the node whose memory holds this node's tensor. For example, a view names the tensor
  that it looks at. The inputs of a concatenation that copies nothing name the concatenation; the first of these inputs
  that runs takes all of that memory. Memory is freed when nothing that lies in it will be read or written any more.
  Only the `output_bytes` of the owner count. A view may name another view; it lies where that one lies.
- **In place.** `in_place` names an input that the node may overwrite. The node overwrites it when the order allows
  that. Three things must hold: everything else that touches the memory of the input has run, that memory holds no
  graph input or output, and nothing lies in the node's own memory yet. Then the node takes no memory of its own. A
  node that lies in the memory of another node may overwrite an input too, such as the first term of a sum. Then all of
  the other node's memory takes over the memory of the input. The memory of the input may
  be larger; then the node lies in it if that is possible in every order (`chameleon.serenity.sharing`).

The paper knows only tensors. We added the other rules because real code generators need them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from chameleon.errors import ChameleonError, UsageError
from chameleon.files import parse_json
from chameleon.serenity.sharing import resolved_overwriting, resolved_views

NODE_KEYS = ("name", "inputs", "output_bytes", "workspace_bytes", "storage", "in_place", "op", "attrs")
MOST_BYTES = 1 << 60
"""All tensors and workspaces of a graph together; solvers count in 64 bits."""
GRAPH_KEYS = ("name", "inputs", "outputs", "nodes")


class GraphError(ChameleonError):
    """A graph that cannot be scheduled. The message names the place."""


@dataclass(frozen=True)
class Node:
    """One operator and the tensor that it makes.

    Attributes:
        name: unique in its graph.
        inputs: names of the nodes whose tensors it reads.
        output_bytes: size of its tensor.
        workspace_bytes: extra bytes that it needs while it runs.
        storage: the node whose memory holds its tensor; empty if it has memory of its own.
        in_place: the input that it may overwrite; empty if none.
        op: what it computes, for people and for the rewriting.
        attrs: what the rewriting needs to know about the operator, as plain data.
    """

    name: str
    inputs: tuple[str, ...] = ()
    output_bytes: int = 0
    workspace_bytes: int = 0
    storage: str = ""
    in_place: str = ""
    op: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def workspace_name(self) -> str:
        """The name of its workspace in a memory plan; no other node of a graph has this name."""
        return f"{self.name}.workspace"

    def to_json(self) -> dict[str, Any]:
        """The node as JSON, without empty fields."""
        line = {key: getattr(self, key) for key in NODE_KEYS}
        line["inputs"], line["attrs"] = list(self.inputs), dict(self.attrs)
        return {key: value for key, value in line.items() if value or key == "name"}


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph of nodes.

    Attributes:
        nodes: in any order.
        inputs: the nodes whose tensors are in memory before the first step. A schedule does not list them.
        outputs: the nodes whose tensors must be in memory at the end.
        name: name of the network.

    Raises:
        GraphError: if a name repeats, does not exist or is the name of a workspace; if a size is negative or not an
            integer; if there is a cycle; or if a `storage` or `in_place` is not possible.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    name: str = "graph"

    def __post_init__(self) -> None:
        for key in ("nodes", "inputs", "outputs"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        _check_names(self)
        nodes = resolved_overwriting(resolved_views(self.nodes), frozenset((*self.inputs, *self.outputs)))
        object.__setattr__(self, "nodes", nodes)
        for node in self.nodes:
            _check_node(self, node)
        _check_total(self)
        _check_acyclic(self)

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by their names."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """For every node, the nodes that read its tensor, each listed once."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                found[source].append(node.name)
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """The names that a schedule holds: all nodes except the graph's inputs, in the listed order."""
        given = set(self.inputs)
        return tuple(node.name for node in self.nodes if node.name not in given)

    @cached_property
    def members(self) -> dict[str, tuple[str, ...]]:
        """For every node that owns memory, the nodes whose tensors lie in it, itself included."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes if not node.storage}
        for node in self.nodes:
            found[node.storage or node.name].append(node.name)
        return {owner: tuple(names) for owner, names in found.items()}

    def owner(self, name: str) -> str:
        """The node whose memory holds the tensor of `name`."""
        return self.by_name[name].storage or name

    def aligned(self, alignment: int) -> Graph:
        """The graph with all sizes rounded up to multiples of `alignment` bytes, as they are in an arena."""
        sizes = [(-(-n.output_bytes // alignment), -(-n.workspace_bytes // alignment)) for n in self.nodes]
        nodes = tuple(
            replace(node, output_bytes=output * alignment, workspace_bytes=workspace * alignment)
            for node, (output, workspace) in zip(self.nodes, sizes, strict=True)
        )
        return self if nodes == self.nodes else Graph(nodes, self.inputs, self.outputs, self.name)

    def to_json(self) -> dict[str, Any]:
        """The graph as plain data; the inverse of `from_json`."""
        return {
            "name": self.name,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "nodes": [node.to_json() for node in self.nodes],
        }

    @classmethod
    def from_json(cls, content: Any) -> Graph:
        """Build a graph from plain data.

        Raises:
            GraphError: if it is no graph. The message says what was expected, and where.
        """
        if not isinstance(content, Mapping) or not isinstance(content.get("nodes"), list):
            raise GraphError(
                "expected a graph: an object with `nodes`, a list, and optionally `name`, `inputs` and `outputs`"
            )
        _check_keys("a graph", content, GRAPH_KEYS)
        nodes = tuple(_node(number, line) for number, line in enumerate(content["nodes"]))
        inputs, outputs = (_strings(f"`{key}` of the graph", content.get(key, [])) for key in ("inputs", "outputs"))
        return cls(nodes, inputs, outputs, str(content.get("name", "graph")))


def read_graph(path: str | Path) -> Graph:
    """Read a graph from a JSON file.

    Raises:
        UsageError: if there is no such file.
        GraphError: if the file holds no graph.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a graph as JSON")
    try:
        return Graph.from_json(parse_json(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GraphError(f"{path}: expected JSON, got {error}") from error
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error


def write_graph(graph: Graph, path: str | Path) -> None:
    """Write a graph as JSON, with one line for each node."""
    content = graph.to_json()
    head = [f'"{key}": {json.dumps(content[key])},' for key in ("name", "inputs", "outputs")]
    lines = ",\n  ".join(json.dumps(node) for node in content["nodes"])
    Path(path).write_text("\n ".join(["{", *head, f'"nodes": [\n  {lines}\n ]']) + "\n}\n")


def _node(number: int, line: Any) -> Node:
    if not isinstance(line, Mapping) or not isinstance(line.get("name"), str):
        raise GraphError(f"node {number}: expected an object with a `name`, got {line!r:.80}")
    place = f"node {line['name']!r}"
    _check_keys(place, line, NODE_KEYS)
    fields = dict(line)
    fields["inputs"] = _strings(f"`inputs` of {place}", line.get("inputs", []))
    if not isinstance(line.get("attrs", {}), Mapping):
        raise GraphError(f"{place}: expected `attrs` to be an object, got {line['attrs']!r:.80}")
    return Node(**fields)


def _check_keys(place: str, content: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in content:
        if key not in known:
            raise GraphError(f"{place}: unknown key {key!r}; known: {', '.join(known)}")


def _strings(place: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise GraphError(f"{place}: expected a list of names, got {value!r:.80}")
    return tuple(value)


def _check_names(graph: Graph) -> None:
    seen: set[str] = set()
    for node in graph.nodes:
        if node.name in seen:
            raise GraphError(f"two nodes are called {node.name!r}; names must be unique")
        seen.add(node.name)
    for node in graph.nodes:
        if node.workspace_bytes and node.workspace_name in seen:
            raise GraphError(
                f"node {node.workspace_name!r}: this is what the workspace of node {node.name!r} is called; "
                "rename one of them"
            )
    for what, names in (("input", graph.inputs), ("output", graph.outputs)):
        for name in names:
            if name not in seen:
                raise GraphError(f"the graph's {what} {name!r} is not among its {len(graph.nodes)} nodes")
        if len(set(names)) != len(names):
            raise GraphError(f"the graph lists an {what} twice: {', '.join(names)}")


def _check_node(graph: Graph, node: Node) -> None:
    place = f"node {node.name!r}"
    for key in ("output_bytes", "workspace_bytes"):
        size = getattr(node, key)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise GraphError(f"{place}: expected {key} to be an integer >= 0, got {size!r}")
    for source in node.inputs:
        if source not in graph.by_name:
            raise GraphError(f"{place} reads {source!r}, which is not among the graph's nodes")
    if node.name in graph.inputs and (node.inputs or node.workspace_bytes or node.storage or node.in_place):
        raise GraphError(f"{place} is an input of the graph: it can have no inputs, workspace, storage or in_place")
    if node.storage:
        _check_storage(graph, node)
    if node.in_place:
        _check_in_place(graph, node)


def _check_total(graph: Graph) -> None:
    total = sum(node.output_bytes + node.workspace_bytes for node in graph.nodes)
    if total > MOST_BYTES:
        largest = max(graph.nodes, key=lambda node: node.output_bytes + node.workspace_bytes)
        raise GraphError(
            f"the sizes of all nodes add up to {total} bytes, more than the {MOST_BYTES} that can be counted; the "
            f"largest is node {largest.name!r}; check its output_bytes"
        )


def _check_storage(graph: Graph, node: Node) -> None:
    place = f"node {node.name!r}"
    owner = graph.by_name.get(node.storage)
    if owner is None or owner.storage or owner.name == node.name:
        raise GraphError(
            f"{place}: expected `storage` to name another node that owns its memory, got {node.storage!r}"
        )
    if node.output_bytes > owner.output_bytes:
        raise GraphError(
            f"{place}: its {node.output_bytes} bytes do not fit into the {owner.output_bytes} of {owner.name!r}"
        )


def _check_in_place(graph: Graph, node: Node) -> None:
    place = f"node {node.name!r}"
    if node.in_place not in node.inputs:
        raise GraphError(f"{place}: expected `in_place` to name one of its inputs, got {node.in_place!r}")
    owner, own = graph.by_name[graph.owner(node.in_place)], graph.by_name[graph.owner(node.name)]
    if owner.output_bytes < own.output_bytes:
        raise GraphError(
            f"{place}: to be computed in place, its {own.output_bytes} bytes must fit into the "
            f"{owner.output_bytes} of {owner.name!r}; leave `in_place` out"
        )
    early = [source for source in node.inputs if graph.owner(source) == own.name]
    if early:
        raise GraphError(
            f"{place}: it cannot be computed in place, since its input {early[0]!r} lies in its memory already"
        )


def _check_acyclic(graph: Graph) -> None:
    waiting = {node.name: len(set(node.inputs)) for node in graph.nodes}
    ready = [name for name, n in waiting.items() if not n]
    while ready:
        for reader in graph.consumers[ready.pop()]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    left = {name for name, n in waiting.items() if n}
    if left:
        raise GraphError(f"the graph has a cycle: {' -> '.join(_a_cycle(graph, left))}")


def _a_cycle(graph: Graph, left: set[str]) -> list[str]:
    """Find a cycle among the nodes in `left`, in the direction of the data.

    Every node in `left` has an input in `left`, so there is a cycle.
    """
    path = [min(left)]
    while path.count(path[-1]) < 2:
        path.append(next(source for source in graph.by_name[path[-1]].inputs if source in left))
    return path[path.index(path[-1]) :][::-1]
