"""Rewriting: the same outputs in the memory that is claimed, the least peak among all choices, never a higher one."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.serenity.accounting import peak_bytes
from chameleon.serenity.graph import Graph, GraphError, Node
from chameleon.serenity.order.schedule import Schedule, ScheduleOptions, schedule
from chameleon.serenity.rewrite.choose import choose_sites
from chameleon.serenity.rewrite.identities import KINDS, Accumulation, Site, apply_sites, find_sites
from chameleon.serenity.rewrite.search import RewriteOptions, choices, floor_bytes, rewrite
from tests.serenity.rewriting import SIDE, check_same, least_peak, random_network

FORMS: tuple[Accumulation, ...] = ("shared", "chain", "copy")
SEEDS = st.integers(0, 2**32 - 1)


@lru_cache(maxsize=4096)
def solve(graph: Graph) -> Schedule:
    """By the solver; the same graph once."""
    return schedule(graph, ScheduleOptions(engine="python"))


def some_order(graph: Graph, seed: int) -> list[str]:
    rng, done, order = np.random.default_rng(seed), set(graph.inputs), []
    while len(order) < len(graph.steps):
        ready = [s for s in graph.steps if s not in done and done.issuperset(graph.by_name[s].inputs)]
        order.append(str(rng.choice(ready)))
        done.add(order[-1])
    return order


def network(*middle: str, parts: int = 3, channels: int = 2, bias: bool = True) -> Graph:
    """x -> parts -> concatenation -> the operators of `middle`, one after the other."""
    size = channels * SIDE * SIDE
    nodes = [Node("x", (), size)]
    names = [f"p{i}" for i in range(parts)]
    conv = {"kernel": 3, "shape": [channels, channels], "bias": bias}
    nodes += [Node(name, ("x",), size, op="conv", attrs=conv) for name in names]
    nodes.append(Node("cat", tuple(names), parts * size, op="concat", attrs={"channels": [channels] * parts}))
    attrs = {
        "unary": {"function": "relu"},
        "affine": {"shape": [parts * channels]},
        "pool": {},
        "depthwise": {"multiplier": 1, "shape": [parts * channels]},
        "conv": {"kernel": 3, "shape": [channels, parts * channels], "bias": bias},
    }
    for i, op in enumerate(middle):
        out = size if op == "conv" else parts * size
        nodes.append(Node(f"{op}{i}", (nodes[-1].name,), out, op=op, attrs=attrs[op]))
    return Graph(tuple(nodes), ("x",), (nodes[-1].name,))


@given(SEEDS, st.sampled_from(FORMS), st.data())
@settings(deadline=None, max_examples=80)
def test_any_choice_of_sites_computes_the_same_in_any_order(
    seed: int, form: Accumulation, data: st.DataObject
) -> None:
    graph = random_network(seed, 8)
    sites = list(find_sites(graph))
    chosen = [site for site in sites if data.draw(st.booleans())]
    after = apply_sites(graph, chosen, form)
    check_same(graph, after, some_order(after, seed))
    everything = apply_sites(graph, sites, form)
    check_same(graph, everything, some_order(everything, seed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "middle",
    [("conv",), ("unary", "conv"), ("affine", "unary", "conv"), ("depthwise", "conv"), ("unary", "pool", "depthwise")],
)
def test_a_pattern_behind_others_is_found_and_computes_the_same(middle: tuple[str, ...], form: Accumulation) -> None:
    graph = network(*middle)
    after = apply_sites(graph, list(find_sites(graph)), form)
    names = {node.name: node.op for node in after.nodes}
    assert "cat" not in names
    assert names[graph.outputs[0]] == (
        "concat" if middle[-1] != "conv" else "sum" if form == "shared" else "partial_conv"
    )
    check_same(graph, after, some_order(after, 0))


def test_channel_wise_costs_what_the_paper_says() -> None:
    graph = network("conv", parts=4)
    t = graph.by_name["p0"].output_bytes
    graph = Graph(graph.nodes, (), graph.outputs)  # count no input beyond its last reader
    assert solve(graph).peak_bytes == 8 * t  # the parts and their copy
    in_place = apply_sites(graph, [Site("zero_copy", "cat")])
    assert solve(in_place).peak_bytes == 5 * t  # sum of |x_i| + |y|, with x instead of y at first
    for form, tensors in (("shared", 3), ("chain", 3), ("copy", 4)):
        split = apply_sites(graph, [Site("channel_wise", "conv0")], form)
        assert solve(split).peak_bytes == tensors * t  # x, a part and y; two sums where they are copied


def test_kernel_wise_needs_a_part_and_the_output() -> None:
    graph = network("depthwise", parts=4)
    t = graph.by_name["p0"].output_bytes
    split = apply_sites(graph, [Site("kernel_wise", "depthwise0")])
    assert solve(split).peak_bytes == 8 * t  # the parts of y and y
    placed = apply_sites(graph, [Site("kernel_wise", "depthwise0"), Site("zero_copy", "depthwise0")])
    assert solve(placed).peak_bytes == (1 + 1 + 4) * t  # x, a part and y; two sums where they are copied


@given(SEEDS, st.data())
@settings(deadline=None, max_examples=30)
def test_what_can_be_overwritten_never_costs_more(seed: int, data: st.DataObject) -> None:
    graph = random_network(seed, 5)
    chosen = [site for site in find_sites(graph) if site.kind != "zero_copy" and data.draw(st.booleans())]
    graphs = [apply_sites(graph, chosen, form) for form in FORMS]
    if all(len(g.steps) <= 10 for g in graphs):
        peaks = [solve(g).peak_bytes for g in graphs]
        assert peaks == sorted(peaks)


@given(SEEDS)
@settings(deadline=None, max_examples=30)
def test_the_peak_never_rises_and_every_rewrite_that_stays_is_needed(seed: int) -> None:
    graph = random_network(seed, 5)
    found = rewrite(graph, solve, RewriteOptions(max_solves=40))
    assert found.before.peak_bytes == solve(graph).peak_bytes
    assert peak_bytes(found.graph, found.schedule.order) == found.schedule.peak_bytes <= found.before.peak_bytes
    assert bool(found.applied) == (found.saved_bytes > 0)
    assert found.solves <= 40
    check_same(graph, found.graph, found.schedule.order)
    needs = choices(find_sites(graph), KINDS)
    for site in found.applied if found.complete else ():
        fewer = [s for s in found.applied if s != site and site not in needs[s]]
        assert solve(apply_sites(graph, fewer)).peak_bytes > found.schedule.peak_bytes
    assert rewrite(graph, solve, RewriteOptions(max_solves=40)) == found


def test_the_search_finds_nearly_always_the_best_of_all_sets() -> None:
    found = {"same": 0, "worse": 0}
    for seed in range(100):
        graph = random_network(seed, 6)
        sites = list(find_sites(graph))
        if not 2 <= len(sites) <= 4:
            continue
        sets = [chosen for n in range(len(sites) + 1) for chosen in combinations(sites, n)]
        best = min(solve(apply_sites(graph, chosen)).peak_bytes for chosen in sets)
        result = rewrite(graph, solve).schedule.peak_bytes
        assert result >= best
        if best < solve(graph).peak_bytes:  # else there is nothing to find
            found["same" if result == best else "worse"] += 1
    assert found["same"] >= 10
    assert found["worse"] <= 1


@given(SEEDS, st.booleans())
@settings(deadline=None, max_examples=20)
def test_the_solver_is_right_about_rewritten_graphs(seed: int, rewritten: bool) -> None:
    graph = random_network(seed, 4)
    graph = apply_sites(graph, list(find_sites(graph))) if rewritten else graph
    if len(graph.steps) <= 8:
        assert solve(graph).peak_bytes == least_peak(graph).peak_bytes


@given(SEEDS, st.data())
@settings(deadline=None, max_examples=60)
def test_no_rewrite_gets_below_what_no_rewrite_changes(seed: int, data: st.DataObject) -> None:
    graph = random_network(seed, 7)
    if data.draw(st.booleans()):  # one in whose memory parts lie already
        graph = apply_sites(graph, [site for site in find_sites(graph) if site.kind == "zero_copy"])
    sites = find_sites(graph)
    chosen = [site for site in sites if data.draw(st.booleans())]
    after = apply_sites(graph, chosen, data.draw(st.sampled_from(FORMS)))
    for trial in range(5):
        assert floor_bytes(graph, sites) <= peak_bytes(after, some_order(after, trial))


def test_the_search_stops_at_once_where_the_peak_is_out_of_reach() -> None:
    graph = network("conv", parts=2)
    t = graph.by_name["p0"].output_bytes
    big = Node("big", ("x",), 100 * t, op="what")
    graph = Graph((*graph.nodes, big, Node("end", ("big", graph.outputs[0]), t)), ("x",), ("end",))
    found = rewrite(graph, solve)
    assert (found.solves, found.applied) == (1, ())
    assert found.sites > 0
    assert found.complete


def test_two_cells_with_one_peak_are_both_rewritten() -> None:
    first = network("conv", parts=4)
    rename = {"x": "conv0"}
    second = [
        Node(
            f"{node.name}'",
            tuple(rename.get(i, f"{i}'") for i in node.inputs),
            node.output_bytes,
            op=node.op,
            attrs=node.attrs,
        )
        for node in first.nodes
        if node.name != "x"
    ]
    graph = Graph((*first.nodes, *second), ("x",), ("conv0'",))
    found = rewrite(graph, solve)
    assert {str(site) for site in found.applied} == {"channel_wise:conv0", "channel_wise:conv0'"}
    check_same(graph, found.graph, found.schedule.order)


def test_a_concatenation_that_others_read_stays_for_them() -> None:
    graph = network("unary", "conv")
    graph = Graph((*graph.nodes, Node("other", ("cat",), 1, op="what")), graph.inputs, (*graph.outputs, "other"))
    after = apply_sites(graph, list(find_sites(graph)))
    assert after.by_name["other"].inputs == ("cat",)
    assert set(after.consumers["cat"]) == {"other"}
    assert "unary0" not in after.by_name


def test_parts_that_lie_in_the_concatenation_already_stand_alone_when_it_goes() -> None:
    graph = network("conv", parts=4)
    placed = apply_sites(graph, [Site("zero_copy", "cat")])
    after = apply_sites(placed, [Site("channel_wise", "conv0")])
    assert not any(after.by_name[f"p{i}"].storage for i in range(4))
    assert solve(after).peak_bytes == solve(apply_sites(graph, [Site("channel_wise", "conv0")])).peak_bytes


def test_slices_of_slices_name_the_original_channels() -> None:
    graph = network("unary", "conv", parts=2)
    concat = Node("p1", ("a", "b"), graph.by_name["p1"].output_bytes, op="concat", attrs={"channels": [1, 1]})
    nodes = [concat if node.name == "p1" else node for node in graph.nodes]
    inner = Graph((*nodes, *(Node(name, ("x",), SIDE * SIDE) for name in "ab")), graph.inputs, graph.outputs)
    after = apply_sites(inner, list(find_sites(inner)))
    cuts = {node.attrs["of"]: [] for node in after.nodes if "slice" in node.attrs}
    for node in after.nodes:
        if "slice" in node.attrs:
            cuts[node.attrs["of"]].append(node.attrs["slice"])
    assert cuts == {"unary0": [[0, 2], [2, 3], [3, 4]], "conv1": [[0, 2], [2, 3], [3, 4]]}


@pytest.mark.parametrize("op", ["conv", "depthwise", "unary", "affine", "pool"])
def test_what_reads_more_than_the_concatenation_is_left_alone(op: str) -> None:
    graph = network(op)
    last = graph.nodes[-1]
    more = Node(last.name, (*last.inputs, "x"), last.output_bytes, op=op, attrs=last.attrs)
    assert not [
        s for s in find_sites(Graph((*graph.nodes[:-1], more), graph.inputs, graph.outputs)) if s.kind != "zero_copy"
    ]


def test_grouped_convolutions_and_concatenations_without_channels_are_left_alone() -> None:
    graph = network("conv")
    grouped = Node("conv0", ("cat",), 32, op="conv", attrs={"groups": 2})
    assert Site("channel_wise", "conv0") not in find_sites(
        Graph((*graph.nodes[:-1], grouped), graph.inputs, graph.outputs)
    )
    silent = [Node(n.name, n.inputs, n.output_bytes, op=n.op) if n.op == "concat" else n for n in graph.nodes]
    assert {s.kind for s in find_sites(Graph(tuple(silent), graph.inputs, graph.outputs))} <= {"zero_copy"}


@pytest.mark.parametrize("channels", [[2, 2], [2, 2, 0], [2, 2, "2"], 6])
def test_channels_that_cannot_be_are_refused_with_the_place(channels: object) -> None:
    graph = network("conv")
    nodes = [
        Node(n.name, n.inputs, n.output_bytes, op=n.op, attrs={"channels": channels}) if n.op == "concat" else n
        for n in graph.nodes
    ]
    with pytest.raises(GraphError, match=r"node 'cat': expected attrs\['channels'\] to hold 3 positive integers"):
        find_sites(Graph(tuple(nodes), graph.inputs, graph.outputs))


def test_only_the_kinds_that_are_asked_for_are_applied() -> None:
    graph = network("unary", "conv", parts=4)
    for kinds in ((), ("zero_copy",), ("channel_wise",), KINDS):
        found = rewrite(graph, solve, RewriteOptions(kinds=kinds))
        assert {site.kind for site in found.applied} <= set(kinds)


@given(st.integers(1, 6), SEEDS, st.integers(1, 30))
@settings(deadline=None)
def test_the_search_spends_no_more_than_it_may_and_keeps_nothing_idle(n: int, seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=2**n)
    needs = {i: frozenset() for i in range(n)}

    def evaluate(sites: frozenset[int]) -> tuple[int, ...]:
        return (int(scores[sum(1 << i for i in sites)]),)

    choice = choose_sites(needs, evaluate, max_evaluations=most)
    assert choice.evaluations <= most
    assert choice.score == evaluate(frozenset(choice.chosen)) <= choice.before == evaluate(frozenset())
    if choice.complete:
        for site in choice.chosen:
            assert evaluate(frozenset(choice.chosen) - {site}) > choice.score
        assert not choice.chosen or choice.score < choice.before
