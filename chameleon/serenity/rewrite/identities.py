"""Identity graph rewriting: graphs that compute the same with less memory (Ahn 2020, sec. 3.3).

A site is a place where one rewrite can be applied. The graph is rewritten one site at a time.

**What a node must say.** The rewriting reads `op` and, as plain data, `attrs`. Channels are the channels of the
tensors.

- `concat` joins its inputs. `channels`, a list, says how many channels each input has. Without `channels` the
  concatenation is left alone.
- `conv` has one input (weights are not nodes). `groups` is 1 if absent. A convolution with more groups is left alone.
- `depthwise` has one input. `multiplier` is the number of output channels per input channel, 1 if absent.
- `unary`, `affine` and `pool` have one input and need no attrs. Output channel c depends on input channel c only.
  `affine` has a scale and a shift for each channel.
- `add` has two inputs or more, all of one shape, and needs no attrs.

Everything else in `attrs` (what to compute) is carried along.

**Nodes that the rewriting makes** also have `of`, the name of a node, and `slice`, `[start, stop]`. They do the work
of node `of` on these of its input channels.

- `depthwise`, `unary`, `affine` and `pool` as above, and after them a `concat`.
- `add_conv` computes the convolution of its input and adds it to what lies in the `sum` that reads it. The first
  `add_conv` of a sum that runs writes instead of adding.
- `add_term` does to its input what `through` says, and adds the result to what lies in its `sum`. `through` is a list
  of `of`, `op` and `attrs`.
- `sum` of `add_conv`s does what follows the convolution in node `of` (a bias, an activation), perhaps nothing. It does
  so in place. `sum` of `add_term`s does nothing. Its `replaces` lists the nodes whose work the terms do.
- `partial_conv` reads a part and, after the first one, a sum so far. It computes the convolution plus that sum. The
  one with `last`: true also does what follows the convolution. `partial_term` works the same way.

**Kinds of sites.** The arrow means "is replaced by".

- `channel_wise`: conv(concat(x_i)) -> sum of partial convolutions. The paper's sum|x_i| + |y| becomes max|x_i| + |y|.
- `kernel_wise`: depthwise(concat(x_i)) -> concat(depthwise_i(x_i)).
- `push`: f(concat(x_i)) -> concat(f_i(x_i)), where f is an activation, an affine map per channel or a pooling.
  Otherwise f would hide one of the two patterns above.
- `flatten`: concat(concat(a, b), c) -> concat(a, b, c).
- `zero_copy`: parts of a concatenation are written at their place in it (`storage`). The concatenation gets the attr
  `placed`, the positions of these parts among its inputs. The other parts are copied: inputs and outputs of the graph,
  and parts that already lie elsewhere.
- `accumulate`: a sum x_1 + x_2 + ... is added up in place, each term as soon as it is there
  (`chameleon.serenity.rewrite.sums`). The sum has three terms or more, in any tree of additions that nobody else
  reads. Activations and affine maps of one term alone are done together with its addition. The old order of the
  additions is still one of the possible orders, so this is never worse. That is why it is one choice for all sums of a
  graph.

**Where we differ from the paper.** The paper has only the first two kinds. It adds partial results in a fixed order,
and it applies a pattern wherever it matches. Here the terms of a sum may run in any order (`Accumulation`), and chains
of operators are followed. Which sites are applied is chosen by solving (`chameleon.serenity.rewrite.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.rewrite.draft import Draft, Site
from chameleon.serenity.rewrite.sums import Accumulation, Term, accumulate, is_sum, write_sum

KIND_OF_OP = {
    "conv": "channel_wise",
    "depthwise": "kernel_wise",
    **dict.fromkeys(("unary", "affine", "pool"), "push"),
}
KINDS = ("channel_wise", "kernel_wise", "push", "flatten", "zero_copy", "accumulate")


def find_sites(graph: Graph) -> dict[Site, frozenset[Site]]:
    """Find all sites, including sites that exist only after other sites were rewritten.

    Returns:
        The sites in the order of the data. For each site, the sites without which it does not exist.

    Raises:
        GraphError: if a node says something impossible about its channels.
    """
    needs: dict[Site, frozenset[Site]] = {}

    def take(site: Site, opened_by: Collection[Site]) -> bool:
        needs[site] = frozenset(opened_by).union(*(needs[s] for s in opened_by))
        return True

    _run(graph, take, "shared")
    return needs


def apply_sites(graph: Graph, sites: Collection[Site], accumulation: Accumulation = "shared") -> Graph:
    """Rewrite some of the sites of `find_sites`.

    A site whose pattern is not there is passed over. Nodes keep their names where they still make the same tensor. So
    a node that reads a rewritten node still reads the same tensor.

    Raises:
        GraphError: if a node says something impossible about its channels.
    """
    chosen = set(sites)
    return _run(graph, lambda site, _: site in chosen, accumulation)


def data_order(graph: Graph) -> list[str]:
    """List all nodes, including the inputs of the graph, so that each comes after the nodes that it reads.

    The nodes come in the order in which they are listed. Where a node still lacks something that it reads, that comes
    first.
    """
    order: dict[str, None] = {}
    stack = [node.name for node in reversed(graph.nodes)]
    while stack:
        waiting = [source for source in graph.by_name[stack[-1]].inputs if source not in order]
        if waiting:
            stack += reversed(waiting)
        else:
            order[stack.pop()] = None
    return list(order)


Take = Callable[[Site, Collection[Site]], bool]


def _run(graph: Graph, take: Take, accumulation: Accumulation) -> Graph:
    """Go through the nodes once, in the order of the data, and let `take` decide at every site."""
    draft = Draft(graph, {node.name: node for node in graph.nodes})
    order = data_order(graph)
    for name in order:
        node = draft.nodes[name]
        if node.op == "concat" and _nested(draft, node):
            opened = [draft.made_by[s] for s in dict.fromkeys(node.inputs) if s in draft.made_by]
            if take(Site("flatten", name), opened):
                _flatten(draft, node)
        elif node.op in KIND_OF_OP and _matches(draft, node):
            site = Site(KIND_OF_OP[node.op], name)
            opened = [draft.made_by[node.inputs[0]]] if node.inputs[0] in draft.made_by else []
            if take(site, opened):
                _split(draft, node, accumulation) if site.kind == "channel_wise" else _push(draft, node, site)
        elif is_sum(draft, node) and take(Site("accumulate", name), ()):
            accumulate(draft, node, accumulation)
    for name in order:
        if name in draft.nodes and draft.nodes[name].op == "concat" and _in_place_parts(draft, name):
            opened = [draft.made_by[name]] if name in draft.made_by else []
            if take(Site("zero_copy", name), opened) and not _is_dead(draft, name):
                _write_in_place(draft, name)
    _drop_dead(draft)
    return Graph(tuple(draft.nodes.values()), graph.inputs, graph.outputs, graph.name)


def _is_splittable(draft: Draft, name: str) -> bool:
    """Whether a node is a concatenation that its readers can do without."""
    node = draft.nodes[name]
    if node.op != "concat" or len(node.inputs) < 2 or not draft.channels(name):
        return False
    members = draft.members(name)
    if not members:
        return True
    # Its parts lie in it already. They must have sizes of their own to stand alone, and nothing else may lie there.
    sizes = sum(draft.nodes[part].output_bytes for part in node.inputs)
    known = all(m in node.inputs or draft.sum_of.get(m) in node.inputs for m in members)
    return known and len(set(node.inputs)) == len(node.inputs) and sizes == node.output_bytes


def _matches(draft: Draft, node: Node) -> bool:
    """Whether a node can be split.

    Its kind must allow that, it must read a concatenation, and its sizes must be divisible.
    """
    if len(node.inputs) != 1 or not _is_splittable(draft, node.inputs[0]):
        return False
    if node.op == "conv":
        return node.attrs.get("groups", 1) == 1 and not node.in_place
    channels = draft.channels(node.inputs[0])
    return all(node.output_bytes * c % sum(channels) == 0 for c in channels)


def _nested(draft: Draft, node: Node) -> set[str]:
    """The parts of a concatenation that are concatenations themselves and can be dissolved."""
    if not draft.channels(node.name) or draft.members(node.name):
        return set()
    return {part for part in node.inputs if not draft.nodes[part].storage and _is_splittable(draft, part)}


def _flatten(draft: Draft, node: Node) -> None:
    """`flatten`: concat(concat(a, b), c) -> concat(a, b, c)."""
    nested = _nested(draft, node)
    parts, channels = [], []
    for source, count in zip(node.inputs, draft.channels(node.name), strict=True):
        if source in nested:
            parts += draft.nodes[source].inputs
            channels += draft.channels(source)
            draft.passed.add(source)
        else:
            parts.append(source)
            channels.append(count)
    draft.update(node.name, inputs=tuple(parts), attrs={**node.attrs, "channels": channels})


def _slices(draft: Draft, node: Node) -> list[tuple[str, int, dict[str, Any]]]:
    """For every part of the concatenation that a node reads, say what work the node has to do on it.

    Returns:
        For each part its name, its channels, and the attrs of the work on it.
    """
    concat = node.inputs[0]
    draft.passed.add(concat)
    channels = draft.channels(concat)
    start = node.attrs.get("slice", [0])[0]
    found = []
    for part, count in zip(draft.nodes[concat].inputs, channels, strict=True):
        attrs = {**node.attrs, "of": node.attrs.get("of", node.name), "slice": [start, start + count]}
        found.append((part, count, attrs))
        start += count
    return found


def _share(size: int, count: int, total: int) -> int:
    """The share of a workspace that the work on some of the channels needs, rounded up."""
    return -(-size * count // total)


def _split(draft: Draft, node: Node, accumulation: Accumulation) -> None:
    """`channel_wise`: replace a convolution by the sum of the convolutions of the parts."""
    slices = _slices(draft, node)
    total = sum(count for _, count, _ in slices)
    terms = [Term(part, attrs, _share(node.workspace_bytes, count, total)) for part, count, attrs in slices]
    write_sum(draft, node, "conv", terms, accumulation)


def _push(draft: Draft, node: Node, site: Site) -> None:
    """`kernel_wise` and `push`: f(concat(x_i)) -> concat(f_i(x_i))."""
    slices = _slices(draft, node)
    total = sum(count for _, count, _ in slices)
    overwrites = node.in_place == node.inputs[0]
    parts = []
    for i, (part, count, attrs) in enumerate(slices):
        size = node.output_bytes * count // total
        in_place = overwrites and draft.nodes[draft.owner(part)].output_bytes == size
        parts.append(
            draft.add(
                f"{node.name}.{i}",
                inputs=(part,),
                output_bytes=size,
                workspace_bytes=_share(node.workspace_bytes, count, total),
                in_place=part if in_place else "",
                op=node.op,
                attrs=attrs,
            )
        )
    multiplier = node.attrs.get("multiplier", 1)
    channels = {"channels": [count * multiplier for _, count, _ in slices]}
    draft.update(node.name, inputs=tuple(parts), workspace_bytes=0, in_place="", op="concat", attrs=channels)
    draft.made_by[node.name] = site


def _in_place_parts(draft: Draft, concat: str) -> list[str]:
    """The parts of a concatenation that can be written at their place in it."""
    node, given = draft.nodes[concat], draft.given
    if node.in_place or sum(draft.nodes[part].output_bytes for part in node.inputs) != node.output_bytes:
        return []
    return [
        part
        for part in dict.fromkeys(node.inputs)
        if node.inputs.count(part) == 1
        and not draft.nodes[part].storage
        and draft.nodes[part].output_bytes
        and part not in given.inputs
        and part not in given.outputs
    ]


def _write_in_place(draft: Draft, concat: str) -> None:
    """`zero_copy`: let the parts, and everything that lies in them, lie in the concatenation.

    From then on nothing overwrites them any more.
    """
    owner, node = draft.owner(concat), draft.nodes[concat]
    parts = _in_place_parts(draft, concat)
    draft.update(concat, attrs={**node.attrs, "placed": [node.inputs.index(part) for part in parts]})
    for part in parts:
        inside = [part, *draft.members(part)]
        for name in inside:
            draft.update(name, storage=owner, in_place="")
        for node in list(draft.nodes.values()):
            if node.in_place in inside:
                draft.update(node.name, in_place="")


def _is_dead(draft: Draft, name: str) -> bool:
    return name in draft.passed and name not in draft.given.outputs and not draft.readers(name)


def _drop_dead(draft: Draft) -> None:
    """Remove the concatenations that nobody reads any more.

    Tensors that lay in them then have memory of their own.
    """
    dead = [name for name in draft.passed if _is_dead(draft, name)]
    while dead:
        for name in sorted(dead):
            for member in draft.members(name):
                draft.update(member, storage=draft.sum_of.get(member, ""))
            del draft.nodes[name]
            draft.passed.discard(name)
        dead = [name for name in draft.passed if _is_dead(draft, name)]
