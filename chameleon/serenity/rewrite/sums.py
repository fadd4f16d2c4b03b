"""Sums whose terms are added, one by one, to the one tensor of the sum.

The terms are partial convolutions, or the terms of additions in the given graph.

If one operator adds k tensors, it needs all of them at the same time. If they are added up in place, each tensor is
needed only until it has been added. And the sum may begin with whichever terms are there first. A sum of two terms is
not treated like this: one term alone frees no more than its sum takes.

`write_sum` writes such a sum into a draft. `accumulate` finds the terms of given additions. `gathered` moves the terms
of a sum next to each other, where an order keeps them apart without need. If terms stand side by side, one kernel can
do several of them, so fewer kernels are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chameleon.serenity.accounting import footprint
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.rewrite.draft import Draft

Accumulation = Literal["shared", "chain", "copy"]
"""How sums are kept.

- `shared`: all terms are added to the one tensor of the sum, in whatever order the schedule runs them.
- `chain`: each term is added to the sum before it, in the order in which the terms are given. It may overwrite that
  sum (`in_place`).
- `copy`: the same as `chain`, for a host that cannot overwrite. So two sums are in memory at a time.
"""

TERM = "add_term"
LEAST_TERMS = 3
PER_TERM = ("affine", "unary")
"""Operators that may be applied to a term when it is added, instead of before."""


@dataclass(frozen=True)
class Term:
    """One term of a sum.

    Attributes:
        source: the node that is read.
        attrs: what is done to the source before it is added.
        workspace_bytes: the workspace for that.
        in_place: whether this term may overwrite its source if it is the first term of its sum.
    """

    source: str
    attrs: dict[str, Any] = field(default_factory=dict)
    workspace_bytes: int = 0
    in_place: bool = False


def write_sum(draft: Draft, node: Node, what: str, terms: Sequence[Term], accumulation: Accumulation) -> None:
    """Turn a node into the sum of some terms.

    If the accumulation is `shared`, it makes nodes `add_WHAT`, and the node becomes a `sum`. Otherwise it makes nodes
    `partial_WHAT`.
    """
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
    """Whether a node is the last of some additions that can be accumulated.

    They must have at least `LEAST_TERMS` terms, and each term must lie in a memory of its own.
    """
    if not _adds(draft, node.name):
        return False
    readers = draft.given.consumers[node.name]
    if readers and _adds(draft, readers[0]) and _only_read_by(draft, node.name, readers[0]):
        return False  # it is part of a larger sum
    owners = [draft.owner(term.source) for term in _terms(draft, node)[0]]
    return len(owners) >= LEAST_TERMS and len(set(owners)) == len(owners)


def accumulate(draft: Draft, node: Node, accumulation: Accumulation) -> None:
    """Apply `accumulate` to a sum.

    What is done to one term, and to nothing else, is done together with its addition. The partial sums are removed.
    """
    terms, replaced = _terms(draft, node)
    total = replace(node, attrs={**node.attrs, "replaces": replaced})
    write_sum(draft, total, "term", terms, accumulation)
    for name in replaced:
        if name != node.name:
            del draft.nodes[name]


def gathered(graph: Graph, order: Sequence[str]) -> list[str]:
    """Move the terms of each sum next to later terms of the same sum, where no other step then needs more.

    Only terms of given additions are moved. A host whose steps need less than those of the graph loses nothing by the
    moves either.
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
    """Whether another order has a higher peak, or needs more in some step that adds no term."""
    old, new = (dict(zip(order, footprint(graph, order).during.tolist(), strict=True)) for order in (before, after))
    return max(new.values()) > max(old.values()) or any(new[n] > old[n] for n in old if graph.by_name[n].op != TERM)


def runs(graph: Graph, order: Sequence[str]) -> dict[str, list[list[str]]]:
    """List the terms of every given sum in the order in which they are added.

    Returns:
        For every sum a list of runs. A run is a list of terms with no other step between them.
    """
    found: dict[str, list[list[str]]] = {}
    last = ""
    for name in order:
        op = graph.by_name[name].op
        if op == "sum":
            continue  # it adds no term
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
    """Bytes of a tensor; None for a graph input that is not counted."""
    size = draft.nodes[name].output_bytes or draft.nodes[draft.owner(name)].output_bytes
    return None if name in draft.given.inputs and not size else size


def _only_read_by(draft: Draft, name: str, reader: str) -> bool:
    """Whether a tensor is read once, by `reader`, and by no other node.

    It must also have memory of its own in which nothing else lies, and it must not be an output of the graph.
    """
    alone = draft.given.consumers[name] == (reader,) and draft.given.by_name[reader].inputs.count(name) == 1
    node = draft.nodes[name]
    return alone and not node.storage and name not in draft.given.outputs and len(draft.given.members[name]) == 1


def _terms(draft: Draft, node: Node) -> tuple[list[Term], list[str]]:
    """Find the terms of a sum, in order, and the names of the nodes that are replaced.

    The replaced nodes are the additions, and the operators that are applied to one term alone.
    """
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
    """List the operators that are applied to a term and to nothing else, the last one first.

    The list is empty if the result can take the place of what the operators are applied to.
    """
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
