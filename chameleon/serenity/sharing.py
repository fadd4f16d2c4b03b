"""Brings what nodes say about shared memory to the form that all solvers know.

- A view of a view lies in the memory that the first of them looks at.
- A node that overwrites a larger input cannot take over its memory. If all else that touches that memory runs before
  it in every order, it simply lies in that memory. Otherwise it has memory of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chameleon.serenity.graph import Node


def resolved_views(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The nodes with the owner of the memory as their `storage`; a cycle of views stays as it is."""
    by_name = {node.name: node for node in nodes}
    if not any(n.storage and n.storage in by_name and by_name[n.storage].storage for n in nodes):
        return nodes

    def root(node: Node) -> str:
        seen, name = {node.name}, node.storage
        while name in by_name and by_name[name].storage and name not in seen:
            seen.add(name)
            name = by_name[name].storage
        return node.storage if name in seen else name

    return tuple(replace(n, storage=root(n)) if n.storage else n for n in nodes)


def resolved_overwriting(nodes: tuple[Node, ...], bound: frozenset[str]) -> tuple[Node, ...]:
    """The nodes without overwriting of larger inputs, with shared memory in place of it where that is possible.

    Args:
        bound: the graph's inputs and outputs; nothing overwrites them.
    """
    found = {node.name: node for node in nodes}
    order = _sorted(nodes)
    if not any(_overwrites_larger(found, n) for n in nodes) or order is None:
        return nodes
    for name in order:
        if not _overwrites_larger(found, found[name]):
            continue
        source = _owner(found, found[name].in_place)
        may_lie = _may_lie(found, name, source, bound)
        for other in found.values():
            if may_lie and other.storage == name:
                found[other.name] = replace(other, storage=source)
        found[name] = replace(found[name], in_place="", storage=source if may_lie else found[name].storage)
    return tuple(found[node.name] for node in nodes)


def _owner(nodes: Mapping[str, Node], name: str) -> str:
    return nodes[name].storage or name


def _overwrites_larger(nodes: Mapping[str, Node], node: Node) -> bool:
    """Whether a node overwrites an input in a larger memory."""
    if node.in_place not in node.inputs or node.in_place not in nodes:
        return False
    source, own = _owner(nodes, node.in_place), _owner(nodes, node.name)
    return source in nodes and own in nodes and nodes[source].output_bytes > nodes[own].output_bytes


def _may_lie(nodes: Mapping[str, Node], name: str, source: str, bound: frozenset[str]) -> bool:
    """Whether a node may lie in the memory of `source`, which it overwrites, in every order."""
    node = nodes[name]
    members = {n.name for n in nodes.values() if _owner(nodes, n.name) == source}
    mine = {n.name for n in nodes.values() if n.storage == name}
    if node.storage or members & bound:
        return False
    touchers = members | {n.name for n in nodes.values() if members & set(n.inputs)}
    before = _ancestors(nodes, name)
    return touchers - {name} <= before and all(name in _ancestors(nodes, m) for m in mine)


def _ancestors(nodes: Mapping[str, Node], name: str) -> set[str]:
    found, stack = set(), [name]
    while stack:
        for source in nodes[stack.pop()].inputs:
            if source in nodes and source not in found:
                found.add(source)
                stack.append(source)
    return found


def _sorted(nodes: Sequence[Node]) -> list[str] | None:
    """The names in an order in which inputs come first; None if there is a cycle or an input does not exist."""
    readers: dict[str, list[str]] = {node.name: [] for node in nodes}
    waiting = {node.name: len(set(node.inputs)) for node in nodes}
    for node in nodes:
        for source in set(node.inputs):
            readers.setdefault(source, []).append(node.name)
    found = [name for name, n in waiting.items() if not n]
    for name in found:
        for reader in readers[name]:
            waiting[reader] -= 1
            if not waiting[reader]:
                found.append(reader)
    return found if len(found) == len(nodes) else None
