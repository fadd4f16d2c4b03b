"""Sums that are added up in place, and contracted graphs.

The sums have the same results in any order of the terms, and never take more memory.
"""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.serenity.accounting import lifetimes, peak_bytes, validate
from chameleon.serenity.graph import Graph, GraphError, Node
from chameleon.serenity.order.contract import contracted
from chameleon.serenity.rewrite.identities import Accumulation, Site, apply_sites, find_sites
from chameleon.serenity.rewrite.search import choices, rewrite
from chameleon.serenity.rewrite.sums import gathered, runs
from tests.serenity.graphs import random_graph
from tests.serenity.oracles import least_peak
from tests.serenity.rewriting import SIDE, SUMS, check_same, random_network
from tests.serenity.test_rewrite import FORMS, solve, some_order

SEEDS = st.integers(0, 2**32 - 1)
T = SIDE * SIDE
AFFINE = {"shape": [1]}


def ladder(n: int, *, backwards: bool, in_place: bool = True) -> Graph:
    """p0 -> p1 -> ... and the sum of all, each times a constant, from the first or from the last on."""
    nodes = [Node("x", (), T)]
    for i in range(n):
        nodes.append(Node(f"p{i}", (nodes[i].name,), T, op="pool"))
    order = [f"p{i}" for i in range(n)][:: -1 if backwards else 1]
    nodes += [Node(f"{p}w", (p,), T, in_place=p if in_place else "", op="affine", attrs=AFFINE) for p in order]
    total = f"{order[0]}w"
    for p in order[1:]:
        nodes.append(Node(f"s{p}", (total, f"{p}w"), T, in_place=total if in_place else "", op="add"))
        total = nodes[-1].name
    return Graph(tuple(nodes), ("x",), (total,))


def accumulated(graph: Graph, form: Accumulation = "shared") -> Graph:
    return apply_sites(graph, [site for site in find_sites(graph) if site.kind == "accumulate"], form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_sum_computes_the_same_in_any_order_of_its_terms(form: Accumulation, backwards: bool) -> None:
    graph = ladder(4, backwards=backwards)
    after = accumulated(graph, form)
    assert [node.name for node in after.nodes if node.op in ("affine", "add")] == ["p3w"]  # it overwrites p3
    total = graph.outputs[0]
    if form != "shared":
        check_same(graph, after, some_order(after, 0))
        return
    for order in permutations(after.by_name[total].inputs):
        check_same(graph, after, ["p0", "p1", "p2", "p3", "p3w", *order, total])


@given(SEEDS, st.sampled_from(FORMS))
@settings(deadline=None, max_examples=80)
def test_random_sums_compute_the_same(seed: int, form: Accumulation) -> None:
    graph = random_network(seed, 10, SUMS)
    after = accumulated(graph, form)
    check_same(graph, after, some_order(after, seed))


@given(SEEDS)
@settings(deadline=None, max_examples=60)
def test_accumulating_is_never_worse(seed: int) -> None:
    """The additions as they were given are one of the orders: so all sums may be taken together."""
    graph = random_network(seed, 8, SUMS)
    assert solve(accumulated(graph)).peak_bytes <= solve(graph).peak_bytes


def test_it_costs_what_it_must() -> None:
    """p5 is there last: a sum that begins with it waits for it with all others."""
    for in_place in (True, False):
        wait = solve(ladder(6, backwards=True, in_place=in_place)).peak_bytes
        assert wait >= 6 * T
        after = accumulated(ladder(6, backwards=True, in_place=in_place))
        assert solve(after).peak_bytes == 3 * T == least_peak(after)  # the sum, a term and the next
        assert solve(accumulated(ladder(6, backwards=False, in_place=in_place))).peak_bytes == 3 * T


def test_one_operator_that_adds_many_tensors() -> None:
    nodes = [Node("x", (), T), *(Node(f"p{i}", ("x",), T, op="pool") for i in range(5))]
    graph = Graph((*nodes, Node("sum", tuple(f"p{i}" for i in range(5)), T, op="add")), ("x",), ("sum",))
    found = rewrite(graph, solve)
    assert found.before.peak_bytes == 6 * T
    assert found.schedule.peak_bytes == 3 * T  # x, a term and the sum
    assert found.applied == (Site("accumulate", "sum"),)
    check_same(graph, found.graph, found.schedule.order)


def test_the_first_term_may_overwrite_what_it_reads() -> None:
    nodes = (
        *(Node("x", (), 1), Node("a", ("x",), 4), Node("b", ("x",), 4)),
        *(Node("t0", ("a",), 4, storage="sum", in_place="a"), Node("t1", ("b",), 4, storage="sum", in_place="b")),
        *(Node("sum", ("t0", "t1"), 4), Node("y", ("sum",), 1)),
    )
    graph = Graph(nodes, ("x",), ("y",))
    order = ["a", "b", "t1", "t0", "sum", "y"]
    assert peak_bytes(graph, order) == 9  # x, a and b; the sum takes the place of b
    assert [b.tensors for b in lifetimes(graph, order)] == [("x",), ("a",), ("b", "t0", "t1", "sum"), ("y",)]
    nodes = tuple(Node(n.name, n.inputs, n.output_bytes, storage=n.storage) for n in nodes)
    assert peak_bytes(Graph(nodes, ("x",), ("y",)), order) == 12
    with pytest.raises(GraphError, match="lies in its memory already"):
        Graph((*nodes[:4], Node("t1", ("t0",), 4, storage="sum", in_place="t0"), *nodes[5:]), ("x",), ("y",))


def alone(graph: Graph, **changes: Node) -> Graph:
    """The graph with some nodes replaced or added."""
    nodes = {node.name: node for node in graph.nodes} | changes
    return Graph(tuple(nodes.values()), graph.inputs, graph.outputs)


def test_what_is_left_alone() -> None:
    graph = ladder(3, backwards=False)
    (site,) = find_sites(graph)
    assert site == Site("accumulate", "sp2")
    other = Node("other", ("sp1",), 1, op="what")
    assert (
        find_sites(alone(graph, other=other)) == {}
    )  # someone else reads the partial sum, and two terms are no such sum
    assert find_sites(Graph(graph.nodes, graph.inputs, (*graph.outputs, "sp1"))) == {}
    wide = Node("sp2", ("sp1", "p2w"), 2 * T, op="add")
    assert find_sites(alone(graph, sp2=wide)) == {}  # one that repeats a smaller tensor
    assert find_sites(alone(graph, sp2=Node("sp2", ("sp1", "sp1", "p2w"), T, op="add"))) == {}  # a term twice
    assert find_sites(alone(graph, p2w=Node("p2w", ("p1",), T, op="affine"))) == {}  # two of one tensor
    work = Node("sp2", ("sp1", "p2w"), T, workspace_bytes=1, op="add")
    assert find_sites(alone(graph, sp2=work)) == {}


def test_what_others_read_of_a_term_stays() -> None:
    graph = alone(ladder(3, backwards=False), other=Node("other", ("p1w",), T, op="pool"))
    graph = Graph(graph.nodes, graph.inputs, (*graph.outputs, "other"))
    after = accumulated(graph)
    through = [[step["of"] for step in after.by_name[name].attrs["through"]] for name in after.by_name["sp2"].inputs]
    assert through == [["p0w"], [], []]  # p2 is read by nothing else: its factor takes its place
    assert after.by_name["sp2"].attrs["replaces"] == ["sp2", "sp1", "p0w"]
    check_same(graph, after, some_order(after, 1))


def test_all_sums_are_one_choice() -> None:
    first = ladder(5, backwards=True)
    (end,) = first.outputs
    name = {node.name: f"{node.name}'" for node in first.nodes} | {"x": end}
    second = [
        Node(
            name[n.name], tuple(map(name.get, n.inputs)), T, in_place=name.get(n.in_place, ""), op=n.op, attrs=n.attrs
        )
        for n in first.nodes
        if n.name != "x"
    ]
    graph = Graph((*first.nodes, *second), ("x",), (name[end],))
    sites = choices(find_sites(graph), ("accumulate", "push"))
    assert sites == {
        Site("accumulate", end): {Site("accumulate", name[end])},
        Site("accumulate", name[end]): {Site("accumulate", end)},
    }
    found = rewrite(graph, solve)
    assert found.applied == tuple(sites)
    assert found.solves == 2
    assert found.schedule.peak_bytes == 3 * T
    assert rewrite(ladder(5, backwards=False), solve).applied == ()  # as good in the order in which it is given


@given(SEEDS)
@settings(deadline=None, max_examples=60)
def test_terms_are_gathered_where_that_costs_nothing(seed: int) -> None:
    graph = accumulated(random_network(seed, 10, SUMS))
    order = some_order(graph, seed)
    found = gathered(graph, order)
    validate(graph, found)
    assert peak_bytes(graph, found) <= peak_bytes(graph, order)
    before, after = runs(graph, order), runs(graph, found)
    assert before.keys() == after.keys()
    for total, known in after.items():
        assert len(known) <= len(before[total])
        assert [name for run in known for name in run] == [name for run in before[total] for name in run]


def test_gathered_terms_wait_for_the_next_one_only_if_no_step_needs_more() -> None:
    graph = accumulated(ladder(4, backwards=False))
    total = graph.outputs[0]
    t = graph.by_name[total].inputs
    order = ["p0", "p1", t[0], "p2", t[1], "p3", t[2], "p3w", t[3], total]
    assert peak_bytes(graph, order) == 3 * T
    assert runs(graph, gathered(graph, order)) == {total: [[t[0], t[1]], [t[2]], [t[3]]]}
    room = Node("room", (), 0, workspace_bytes=9 * T)
    graph = Graph((*graph.nodes, room), graph.inputs, (*graph.outputs, "room"))
    assert runs(graph, gathered(graph, ["room", *order])) == {total: [[t[0], t[1]], [t[2]], [t[3]]]}  # not even then


@given(SEEDS, st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_contracted_graph_has_the_same_least_peak(seed: int, sums: bool) -> None:
    graph = accumulated(random_network(seed, 9, SUMS)) if sums else random_graph(seed)
    short = contracted(graph)
    order = list(short.expanded(solve(short.graph).order))
    validate(graph, order)
    assert peak_bytes(graph, order) == solve(short.graph).peak_bytes == solve(graph).peak_bytes


def test_steps_in_place_join_the_one_before() -> None:
    nodes = (
        *(
            Node("x", (), 4),
            Node("a", ("x",), 4),
            Node("b", ("a",), 4, in_place="a"),
            Node("c", ("b",), 4, in_place="b"),
        ),
        *(Node("d", ("c",), 4, in_place="c"), Node("e", ("c", "d"), 4, in_place="d")),
    )
    short = contracted(Graph(nodes, ("x",), ("e",)))
    assert short.followers == {"a": ["b", "c"]}
    assert [node.name for node in short.graph.nodes] == ["x", "a", "d", "e"]
    assert list(short.expanded(["a", "d", "e"])) == ["a", "b", "c", "d", "e"]
