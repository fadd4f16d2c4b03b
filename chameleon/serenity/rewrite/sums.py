"""Sums whose terms are added, one by one, to the one tensor of the sum: partial convolutions, and additions as they are given.

A sum of k tensors that one operator makes needs all of them at a time. Added up in place each is needed only until it has been
added, and the sum may begin with whichever terms are there first. Two terms are no such sum: one alone frees no more than its
sum takes.

`write_sum` is how a draft gets such a sum; `accumulate` finds the terms of given additions. `gathered` moves the terms of a sum
together where an order keeps them apart for nothing: who makes kernels of terms that stand side by side needs fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chameleon.serenity.accounting import footprint
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.rewrite.draft import Draft

Accumulation = Literal["shared", "chain", "copy"]
"""How sums are kept. `shared`: all terms are added to the one tensor of the sum, in whatever order the schedule runs them.
`chain`: each is added to the sum before, in the order in which they are given, and may overwrite it (`in_place`).
`copy`: the same for a host that cannot overwrite: two sums are alive at a time."""

TERM = "add_term"
LEAST_TERMS = 3
PER_TERM = ("affine", "unary")
"""Operators that may be done to a term when it is added, in place of before."""


@dataclass(frozen=True)
class Term:
    """One term of a sum.

    Attributes:
        source: the node that is read.
        attrs: what is done to it before it is added.
        workspace_bytes: for that.
        in_place: whether the first term of a sum may overwrite its source.
    """

    source: str
    attrs: dict[str, Any] = field(default_factory=dict)
    workspace_bytes: int = 0
    in_place: bool = False


def write_sum(draft: Draft, node: Node, what: str, terms: Sequence[Term], accumulation: Accumulation) -> None:
    """Let a node be the sum of some terms, by nodes `add_WHAT` and a `sum`, or by nodes `partial_WHAT`."""
    if accumulation == "shared":
        _write_shared(draft, node, f"add_{what}", terms)
    else:
        _write_chain(draft, node, f"partial_{what}", terms, overwrite=accumulation == "chain")


def _write_shared(draft: Draft, node: Node, op: str, terms: Sequence[Term]) -> None:
    made = [
        draft.add(
            f"{node.name}.{i}",
            inputs=(term.source,),
            output_bytes=node.output_bytes,
            workspace_bytes=term.workspace_bytes,
            storage=draft.owner(node.name),
            in_place=term.source if term.in_place and not node.storage else "",
            op=op,
            attrs=term.attrs,
        )
        for i, term in enumerate(terms)
    ]
    draft.sum_of.update(dict.fromkeys(made, node.name))
    attrs = {**node.attrs, "of": node.attrs.get("of", node.name)}
    draft.update(node.name, inputs=tuple(made), workspace_bytes=0, in_place="", op="sum", attrs=attrs)


def _write_chain(draft: Draft, node: Node, op: str, terms: Sequence[Term], *, overwrite: bool) -> None:
    total = ""
    for i, term in enumerate(terms):
        last = i == len(terms) - 1
        taken = total or (term.source if term.in_place else "")
        fields: dict[str, Any] = {
            "inputs": (term.source, *filter(None, [total])),
            "output_bytes": node.output_bytes,
            "workspace_bytes": term.workspace_bytes,
            "in_place": taken if overwrite and not (last and node.storage) else "",
            "op": op,
            "attrs": {**term.attrs, "last": True} if last else term.attrs,
        }
        if last:
            draft.update(node.name, **fields)
        else:
            total = draft.add(f"{node.name}.{i}", **fields)


def is_sum(draft: Draft, node: Node) -> bool:
    """Whether a node is the last of some additions, of `LEAST_TERMS` terms at least, each of a memory of its own."""
    if not _adds(draft, node.name):
        return False
    readers = draft.given.consumers[node.name]
    if readers and _adds(draft, readers[0]) and _only_read_by(draft, node.name, readers[0]):
        return False  # the sum of these has more
    owners = [draft.owner(term.source) for term in _terms(draft, node)[0]]
    return len(owners) >= LEAST_TERMS and len(set(owners)) == len(owners)


def accumulate(draft: Draft, node: Node, accumulation: Accumulation) -> None:
    """`accumulate`: what is done to a term, and to nothing else, goes with its addition; partial sums go."""
    terms, replaced = _terms(draft, node)
    total = replace(node, attrs={**node.attrs, "replaces": replaced})
    write_sum(draft, total, "term", terms, accumulation)
    for name in replaced:
        if name != node.name:
            del draft.nodes[name]


def gathered(graph: Graph, order: Sequence[str]) -> list[str]:
    """The order with the given terms of each sum moved to later ones of the same sum, as far as no other step needs more.

    So it costs nothing for a host either whose steps need less than those of the graph.
    """
    found = list(order)
    for total in dict.fromkeys(graph.consumers[name][0] for name in order if graph.by_name[name].op == TERM):
        run: list[str] = []
        for term in sorted(graph.by_name[total].inputs, key=found.index):
            later = [name for name in found if name not in run]
            at = later.index(term)
            later[at:at] = run
            if run and not _rises(graph, found, later):
                found = later
            else:
                run = []
            run.append(term)
    return found


def _rises(graph: Graph, before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether the peak is higher in another order, or some step that adds no term needs more."""
    old, new = (dict(zip(order, footprint(graph, order).during.tolist(), strict=True)) for order in (before, after))
    return max(new.values()) > max(old.values()) or any(new[n] > old[n] for n in old if graph.by_name[n].op != TERM)


def runs(graph: Graph, order: Sequence[str]) -> dict[str, list[list[str]]]:
    """For every sum of given terms these in the order in which they are added, in one list those with no other step between."""
    found: dict[str, list[list[str]]] = {}
    last = ""
    for name in order:
        op = graph.by_name[name].op
        if op == "sum":
            continue  # it does nothing
        (total,) = graph.consumers[name] if op == TERM else ("",)
        if total:
            known = found.setdefault(total, [])
            if last != total:
                known.append([])
            known[-1].append(name)
        last = total
    return found


def _adds(draft: Draft, name: str) -> bool:
    """Whether a node is an addition of tensors of one size."""
    node = draft.nodes[name]
    if node.op != "add" or len(node.inputs) < 2 or node.workspace_bytes:
        return False
    return all(_size(draft, source) in (node.output_bytes, None) for source in node.inputs)


def _size(draft: Draft, name: str) -> int | None:
    """Bytes of a tensor, none for a graph's input that is not counted."""
    size = draft.nodes[name].output_bytes or draft.nodes[draft.owner(name)].output_bytes
    return None if name in draft.given.inputs and not size else size


def _only_read_by(draft: Draft, name: str, reader: str) -> bool:
    """Whether a tensor that has memory of its own is read once, by one node, and nothing else is in that memory."""
    alone = draft.given.consumers[name] == (reader,) and draft.given.by_name[reader].inputs.count(name) == 1
    node = draft.nodes[name]
    return alone and not node.storage and name not in draft.given.outputs and len(draft.given.members[name]) == 1


def _terms(draft: Draft, node: Node) -> tuple[list[Term], list[str]]:
    """The terms of a sum in order, and the nodes that are replaced: additions, and what is done to one term alone."""
    terms, replaced = [], [node.name]
    stack = [(source, node.name) for source in reversed(node.inputs)]
    while stack:
        leaf, reader = stack.pop()
        if _adds(draft, leaf) and _only_read_by(draft, leaf, reader):
            replaced.append(leaf)
            stack += [(inner, leaf) for inner in reversed(draft.nodes[leaf].inputs)]
            continue
        chain = _own_operators(draft, leaf, reader)
        source = draft.nodes[chain[-1]].inputs[0] if chain else leaf
        through = [
            {"of": name, "op": draft.nodes[name].op, "attrs": dict(draft.nodes[name].attrs)} for name in chain[::-1]
        ]
        in_place = all(draft.nodes[name].in_place for name in (reader, *chain))
        whole = draft.nodes[draft.owner(source)].output_bytes == node.output_bytes
        terms.append(Term(source, {"of": node.name, "through": through}, in_place=in_place and whole))
        replaced += chain
    return terms, replaced


def _own_operators(draft: Draft, leaf: str, reader: str) -> list[str]:
    """What is done to a term and to nothing else, last first; nothing if it can take the place of what it is done to."""
    chain: list[str] = []
    size, name = draft.nodes[leaf].output_bytes, leaf
    while name not in draft.given.inputs and _only_read_by(draft, name, reader):
        node = draft.nodes[name]
        if node.op not in PER_TERM or len(node.inputs) != 1 or node.workspace_bytes or node.output_bytes != size:
            break
        chain.append(name)
        name, reader = node.inputs[0], name
    if (
        chain
        and draft.nodes[reader].in_place
        and name not in draft.given.inputs
        and _only_read_by(draft, name, reader)
    ):
        return []
    return chain
