"""A graph while identities rewrite it (see `chameleon.serenity.rewrite.identities`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from chameleon.serenity.graph import Graph, GraphError, Node


@dataclass(frozen=True, order=True)
class Site:
    """A place where an identity can be applied: its kind and the node that is replaced."""

    kind: str
    node: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.node}"


@dataclass
class Draft:
    """A graph that is being rewritten, node by node.

    Attributes:
        given: the graph as it was.
        nodes: by name.
        made_by: the sites that turned a node into a concatenation.
        sum_of: partial convolutions and the sum whose memory they add to.
        passed: concatenations that some reader no longer reads.
    """

    given: Graph
    nodes: dict[str, Node]
    made_by: dict[str, Site] = field(default_factory=dict)
    sum_of: dict[str, str] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)

    def add(self, base: str, **fields: Any) -> str:
        """A new node with a name of its own."""
        name = base
        while name in self.nodes:
            name += "_"
        self.nodes[name] = Node(name, **fields)
        return name

    def update(self, name: str, **changes: Any) -> None:
        self.nodes[name] = replace(self.nodes[name], **changes)

    def owner(self, name: str) -> str:
        return self.nodes[name].storage or name

    def members(self, owner: str) -> list[str]:
        """Other nodes whose tensors lie in the memory of `owner`."""
        return [node.name for node in self.nodes.values() if node.storage == owner]

    def readers(self, name: str) -> list[Node]:
        return [node for node in self.nodes.values() if name in node.inputs]

    def channels(self, concat: str) -> list[int]:
        """The channels of each part of a concatenation; empty if it does not say."""
        node = self.nodes[concat]
        counts = node.attrs.get("channels", [])
        good = isinstance(counts, (list, tuple)) and all(isinstance(c, int) and c > 0 for c in counts)
        if not good or (counts and len(counts) != len(node.inputs)):
            raise GraphError(
                f"node {concat!r}: expected attrs['channels'] to hold {len(node.inputs)} positive integers, one for each part, "
                f"got {counts!r:.80}"
            )
        return list(counts)
