"""Graphs of thousands of steps: the processor time grows with their length, and limits hold while tables are made."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from chameleon.serenity.accounting import Buffer
from chameleon.serenity.arena.greedy import MANY, _place, _place_among
from chameleon.serenity.arena.plan import Arena, ArenaError, check_arena, plan_arena
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.order import search
from chameleon.serenity.order.heuristics import greedy_order
from chameleon.serenity.order.lazy import OutOfTimeError, events
from chameleon.serenity.order.problem import problem_of
from chameleon.serenity.order.schedule import ScheduleOptions
from chameleon.serenity.order.search import Limits
from chameleon.serenity.summary import summarise


def long_chain(n: int) -> Graph:
    nodes = [Node("v0", (), 1024), *(Node(b, (a,), 1024) for a, b in pairwise(f"v{i}" for i in range(n)))]
    return Graph(tuple(nodes), ("v0",), (f"v{n - 1}",))


def residual_chain(n: int) -> Graph:
    """Blocks of two steps and a sum with what went in."""
    nodes = [Node("b0", (), 100)]
    for i in range(1, n // 3 + 1):
        nodes += [
            Node(f"c{i}", (f"b{i - 1}",), 64 * (1 + i % 5)),
            Node(f"d{i}", (f"c{i}",), 100),
            Node(f"b{i}", (f"d{i}", f"b{i - 1}"), 100),
        ]
    return Graph(tuple(nodes), ("b0",), (f"b{n // 3}",))


def fan(n: int) -> Graph:
    """One tensor with many readers, all of which are joined at the end."""
    readers = [Node(f"u{i}", ("x",), 1 + i % 50) for i in range(n)]
    return Graph((Node("x", (), 5000), *readers, Node("s", tuple(r.name for r in readers), 10)), ("x",), ("s",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "peak"), [(long_chain(4000), 2048), (residual_chain(3000), 128 + 320 + 128), (fan(1500), None)]
)
def test_long_graphs_take_seconds(graph: Graph, peak: int | None) -> None:
    """Ten times slower before; the limit is the processor's time, so that a busy machine does not matter."""
    started = time.process_time()
    summary = summarise(graph, ScheduleOptions(time_limit_s=10, engine="python"))
    assert time.process_time() - started < 15
    assert summary.best.proven
    assert summary.best.peak_bytes == summary.arena.size_bytes == (peak or summary.best.peak_bytes)


def test_the_greedy_order_of_a_fan_is_quick() -> None:
    started = time.process_time()
    assert len(greedy_order(problem_of(fan(4000)))) == 4001
    assert time.process_time() - started < 5


def test_making_the_table_of_events_keeps_the_deadline() -> None:
    problem = problem_of(fan(300))
    with pytest.raises(OutOfTimeError):
        events(problem, time.perf_counter() - 1)
    found = search.rise(problem, budget=7, limits=Limits(deadline_s=time.perf_counter() - 1))
    assert (found.flag, found.lower >= 7) == ("timeout", True)
    compiled = pytest.importorskip("chameleon.serenity.order.compiled")
    assert compiled.rise(problem, budget=7, limits=Limits(deadline_s=time.perf_counter() - 1)).flag == "timeout"


def test_placing_by_arrays_is_placing_by_lists() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(0, 12))
        offsets, sizes = rng.integers(-1, 30, n), rng.integers(1, 8, n)
        taken = [(int(o), int(s)) for o, s in zip(offsets, sizes, strict=True) if o >= 0]
        for best_fit in (False, True):
            size = int(rng.integers(1, 6))
            assert _place_among(offsets, sizes, size, best_fit) == _place(taken, size, best_fit)


def test_overlaps_are_found_as_by_looking_at_all_pairs() -> None:
    rng, found = np.random.default_rng(1), 0
    for _ in range(400):
        n = int(rng.integers(1, 7))
        starts, lengths = rng.integers(0, 6, n), rng.integers(1, 4, n)
        buffers = [
            Buffer(f"b{i}", int(rng.integers(0, 5)), int(starts[i]), int(starts[i] + lengths[i])) for i in range(n)
        ]
        arena = Arena({b.name: int(rng.integers(0, 12)) for b in buffers}, 32, 32, 32, "greedy", 0.0)
        at = arena.offsets
        overlap = any(
            a.start < b.stop and b.start < a.stop and at[a.name] < at[b.name] + b.size_bytes
            and at[b.name] < at[a.name] + a.size_bytes and a.size_bytes and b.size_bytes
            for i, a in enumerate(buffers) for b in buffers[:i]
        )  # fmt: skip
        found += overlap
        if overlap:
            with pytest.raises(ArenaError, match="overlap in the arena"):
                check_arena(buffers, arena)
        else:
            check_arena(buffers, arena)
    assert 100 < found < 350


def test_many_neighbours_are_placed_tightly() -> None:
    buffers = [Buffer(f"b{i}", 64, 0, 2) for i in range(2 * MANY)] + [Buffer(f"c{i}", 64, 1, 3) for i in range(MANY)]
    arena = plan_arena(buffers, method="greedy")
    assert arena.size_bytes == arena.bound_bytes == 3 * MANY * 64
