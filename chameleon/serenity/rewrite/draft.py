"""A graph while identities rewrite it (see `chameleon.serenity.rewrite.identities`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from chameleon.serenity.graph import Graph, GraphError, Node


@dataclass(frozen=True, order=True)
class Site:
    """A place where an identity can be applied: the kind of identity, and the node that is replaced."""

    kind: str
    node: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.node}"


@dataclass
class Draft:
    """A graph that is being rewritten, node by node.

    Attributes:
        given: the graph as it was.
        nodes: the nodes of the rewritten graph so far, by name.
        made_by: for each node that was turned into a concatenation, the site that did so.
        sum_of: for each term of a sum (such as a partial convolution), the sum whose memory it adds to.
        passed: concatenations that at least one reader no longer reads.
    """

    given: Graph
    nodes: dict[str, Node]
    made_by: dict[str, Site] = field(default_factory=dict)
    sum_of: dict[str, str] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)

    def add(self, base: str, **fields: Any) -> str:
        """Add a new node whose name is `base`, with underscores if that name is taken; return its name."""
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
        """The other nodes whose tensors lie in the memory of `owner`."""
        return [node.name for node in self.nodes.values() if node.storage == owner]

    def readers(self, name: str) -> list[Node]:
        return [node for node in self.nodes.values() if name in node.inputs]

    def channels(self, concat: str) -> list[int]:
        """The number of channels of each part of a concatenation; empty if the node does not say.

        Raises:
            GraphError: if these numbers are not one positive integer for each part.
        """
        node = self.nodes[concat]
        counts = node.attrs.get("channels", [])
        good = isinstance(counts, (list, tuple)) and all(isinstance(c, int) and c > 0 for c in counts)
        if not good or (counts and len(counts) != len(node.inputs)):
            raise GraphError(
                f"node {concat!r}: expected attrs['channels'] to hold {len(node.inputs)} positive integers, "
                f"one for each part, got {counts!r:.80}"
            )
        return list(counts)
