"""The scheduler against all orders one by one, against an integer program, and against itself with other switches."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.errors import UsageError
from chameleon.serenity.accounting import peak_bytes, validate
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.order import search as dp
from chameleon.serenity.order.divide import cuts, divide, node_bound
from chameleon.serenity.order.heuristics import kahn
from chameleon.serenity.order.problem import problem_of
from chameleon.serenity.order.schedule import Schedule, ScheduleOptions, schedule
from chameleon.serenity.order.search import Limits, Outcome, soft_budget
from chameleon.serenity.wiring import watts_strogatz
from tests.serenity.graphs import random_graph
from tests.serenity.oracles import fits, least_peak

SEARCHES = (
    {"soft_budget": False},
    {"budget_search": "paper"},
    {"lazy": False},
    {"lazy": True},
)
SWITCHES = [
    {**search, "divide": d, "safe_moves": s, "bounds": b}
    for search, d, s, b in itertools.product(SEARCHES, *[(False, True)] * 3)
]
ENGINES = ("python", pytest.param("numba", marks=pytest.mark.needs("numba")))


def solved(graph: Graph, **options: object) -> Schedule:
    """A schedule whose claims hold as far as the accounting can tell."""
    found = schedule(graph, ScheduleOptions(**options))
    validate(graph, found.order)
    assert found.peak_bytes == peak_bytes(graph, found.order)
    assert found.lower_bound_bytes <= found.peak_bytes
    assert found.proven == (found.lower_bound_bytes == found.peak_bytes)
    return found


def in_place_graph(seed: int, n: int) -> Graph:
    """A random graph most of whose nodes may be computed in place, of few sizes, some with workspaces."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = []
    for i in range(n):
        sources = [nodes[j] for j in sorted(rng.choice(i, size=min(i, int(rng.integers(1, 4))), replace=False))]
        names, work = tuple(s.name for s in sources), int(rng.integers(0, 4)) * int(rng.random() < 0.2)
        if sources and rng.random() < 0.7:
            taken = sources[int(rng.integers(len(sources)))]
            nodes.append(Node(f"n{i}", names, taken.output_bytes, work, in_place=taken.name))
        else:
            nodes.append(Node(f"n{i}", names, int(rng.integers(1, 5)), work))
    return Graph(tuple(nodes), outputs=(f"n{n - 1}",))


def wired(n: int, seed: int, varied: bool = False) -> Graph:
    rng = np.random.default_rng([n, seed])
    return watts_strogatz(n, rng=rng, sizes=(rng.integers(1, 33, n) * 64).tolist() if varied else None)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_switch_gives_the_peak_of_the_best_of_all_orders(engine: str) -> None:
    for seed in range(100 if engine == "python" else 30):
        for graph in (random_graph(seed, 3 + seed % 5), in_place_graph(seed, 3 + seed % 5)):
            best = least_peak(graph)
            for switches in SWITCHES:
                found = solved(graph, engine=engine, **switches)
                assert (found.peak_bytes, found.proven) == (best, True), (seed, switches)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@given(seed=st.integers(0, 2**32 - 1), switches=st.sampled_from(SWITCHES))
@settings(deadline=None, max_examples=200)
def test_every_switch_gives_the_peak_of_the_plain_program(engine: str, seed: int, switches: dict) -> None:
    """On graphs that are too large for trying all orders."""
    for graph in (random_graph(seed, 8 + seed % 7), in_place_graph(seed, 8 + seed % 5)):
        plain = dp.rounds(problem_of(graph))
        assert solved(graph, engine=engine, **switches).peak_bytes == plain.peak == plain.lower


@pytest.mark.slow
@pytest.mark.needs("ortools")
@pytest.mark.parametrize(("n", "varied"), [(16, False), (16, True), (24, True), (32, False), (32, True), (40, True)])
def test_an_integer_program_agrees(n: int, varied: bool) -> None:
    graph = wired(n, 0, varied)
    found = solved(graph)
    assert found.proven
    assert fits(graph, found.peak_bytes - 1) is False
    assert fits(graph, found.peak_bytes) is True


@pytest.mark.needs("numba")
@pytest.mark.parametrize("engine", ["numba", pytest.param("python", marks=pytest.mark.slow)])
def test_more_than_64_nodes(engine: str) -> None:
    """Sets of several words: three wirings that read one another's results, without a cut between them."""
    nodes = [Node("x", (), 3)]
    for k in range(3):
        part = wired(22, k, varied=True)
        ends = {"input": "x" if k < 2 else "0.output", "output": f"{k}.output"}
        for node in part.nodes[1:]:
            sources = tuple(ends.get(s, f"{k}.{s}") for s in node.inputs)
            nodes.append(Node(ends.get(node.name, f"{k}.{node.name}"), sources, node.output_bytes))
    nodes.append(Node("y", ("1.output", "2.output"), 1))
    graph = Graph(tuple(nodes), ("x",), ("y",))
    found = solved(graph, engine=engine, divide=False)
    assert found.proven
    assert found.peak_bytes == solved(graph, engine="numba", lazy=False).peak_bytes


def test_tensors_that_bypass_a_cut_are_counted() -> None:
    """`a` is read before and after the cut `c`: the part between holds it, though it does not read it."""
    nodes = (
        *(Node("x", (), 1), Node("a", ("x",), 10), Node("b", ("a",), 5), Node("c", ("b",), 1)),
        *(Node("d", ("c",), 20), Node("e", ("d",), 1), Node("y", ("e", "a"), 1)),
    )
    graph = Graph(nodes, ("x",), ("y",))
    assert len(cuts(problem_of(graph))) == 7
    found = solved(graph)
    assert found.peak_bytes == 10 + 1 + 20
    assert found.states == 0  # nothing is left to decide


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_every_order_passes_the_cuts_and_the_parts_need_what_the_whole_needs(seed: int) -> None:
    problem = problem_of(random_graph(seed, 8))
    rng = np.random.default_rng(seed)
    order, done, ready, passed = [], 0, problem.first_ready, {0}
    while ready:
        u = int(rng.choice([u for u in range(problem.n) if ready >> u & 1]))
        done |= 1 << u
        ready = problem.ready_after(done, ready, u)
        order.append(u)
        passed.add(done)
    assert set(cuts(problem)) <= passed
    parts, peak, at = divide(problem), 0, 0
    for part in parts:
        names = [problem.names[u] for u in order[at : at + part.n]]
        peak, at = max(peak, part.peak([part.names.index(name) for name in names])), at + part.n
    assert max(peak, problem.first_bytes) == problem.peak(order)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_names_and_their_order_in_the_list_do_not_matter(seed: int) -> None:
    graph = random_graph(seed)
    rng = np.random.default_rng(seed)
    new = dict(zip(graph.by_name, (f"m{i}" for i in rng.permutation(len(graph.nodes))), strict=True)) | {"": ""}
    nodes = [
        Node(
            *(new[node.name], tuple(new[s] for s in node.inputs), node.output_bytes, node.workspace_bytes),
            *(new[node.storage], new[node.in_place]),
        )
        for node in (graph.nodes[i] for i in rng.permutation(len(graph.nodes)))
    ]
    other = Graph(tuple(nodes), tuple(new[i] for i in graph.inputs), tuple(new[o] for o in graph.outputs))
    assert solved(other, engine="python").peak_bytes == solved(graph, engine="python").peak_bytes


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_no_order_is_below_the_bound(seed: int) -> None:
    graph = random_graph(seed)
    assert node_bound(problem_of(graph)) <= solved(graph, engine="python", bounds=False).peak_bytes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("search", SEARCHES)
def test_at_a_limit_the_best_found_comes_with_its_bound(engine: str, search: dict) -> None:
    graph = wired(128, 0)
    for limits in ({"time_limit_s": 0.05}, {"max_states": 50, "time_limit_s": 0.2}):
        found = solved(graph, engine=engine, **search, **limits)
        assert not found.proven
        assert 0 < found.lower_bound_bytes < found.peak_bytes <= peak_bytes(graph, kahn(graph))
        assert found.gap > 0


@pytest.mark.needs("numba")
def test_the_bound_rises_with_the_search() -> None:
    graph = wired(96, 0)
    few, more = (solved(graph, engine="numba", max_states=n, time_limit_s=0.5) for n in (20, 2000))
    assert node_bound(problem_of(graph)) <= few.lower_bound_bytes < more.lower_bound_bytes


def test_soft_budgeting_goes_down_after_timeouts_and_up_after_no_solution() -> None:
    tried = []

    def solve(tau: float) -> Outcome:
        tried.append(tau)
        if tau >= 50:
            return Outcome("timeout", states=1)
        return (
            Outcome("solution", (0,), 40, 40, 1) if tau >= 40 else Outcome("no solution", lower=int(tau) + 1, states=1)
        )

    found = soft_budget(solve, 100, 3)
    assert tried == [100, 50, 25, 38, 44]
    assert (found.flag, found.peak, found.states) == ("solution", 40, 5)


def test_soft_budgeting_ends_where_no_budget_is_small_and_wide_enough() -> None:
    found = soft_budget(lambda tau: Outcome("timeout" if tau >= 10 else "no solution", lower=int(tau) + 1), 100, 3)
    assert (found.flag, found.lower) == ("timeout", 10)


def test_a_beam_that_is_wide_enough_is_exact() -> None:
    problem = problem_of(wired(24, 1))
    assert dp.rounds(problem, width=1 << 20).peak == dp.rounds(problem).peak
    assert dp.rounds(problem, width=3).lower == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_search_under_a_budget_that_is_too_low_proves_a_bound(engine: str) -> None:
    graph = wired(24, 2)
    best = solved(graph, engine=engine).peak_bytes
    problem = problem_of(graph)
    rounds = dp.rounds
    if engine == "numba":
        from chameleon.serenity.order.compiled import rounds
    found = rounds(problem, budget=best - 1, limits=Limits())
    assert (found.flag, found.order) == ("no solution", ())
    assert best - 1 < found.lower <= best
    assert rounds(problem, budget=best).flag == "solution"


def test_empty_and_tiny_graphs() -> None:
    assert solved(Graph(())).order == ()
    assert solved(Graph((Node("x", (), 4),), ("x",), ("x",))).peak_bytes == 4
    assert solved(Graph((Node("x", (), 4),), ("x",))).peak_bytes == 0
    assert solved(Graph((Node("x", (), 4, 3),))).peak_bytes == 7


@pytest.mark.parametrize("name", ["time_limit_s", "step_limit_s", "max_states"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} to be positive, got 0"):
        schedule(Graph(()), ScheduleOptions(**{name: 0}))


def test_without_numba_python_does_the_work_and_asking_for_numba_says_what_to_install() -> None:
    code = """
import sys
sys.modules["numba"] = None  # as if it were not installed
import numpy as np
from chameleon.errors import UsageError
from chameleon.serenity.order.schedule import ScheduleOptions, schedule
from chameleon.serenity.wiring import watts_strogatz
graph = watts_strogatz(64, rng=np.random.default_rng(0))
found = schedule(graph)
assert found.proven and found.states > 100, found
try:
    schedule(graph, ScheduleOptions(engine="numba"))
except UsageError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert 'pip install "chameleon-tvm[memory]"' in ran.stdout
