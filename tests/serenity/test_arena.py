"""Placements against brute force, by hand, and as properties of every method."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.errors import UsageError
from chameleon.serenity.accounting import Buffer, lifetimes, peak_bytes
from chameleon.serenity.arena import branch
from chameleon.serenity.arena.exact import fit, luby
from chameleon.serenity.arena.greedy import by_size, first_fit
from chameleon.serenity.arena.plan import METHODS, Arena, ArenaError, check_arena, plan_arena
from chameleon.serenity.arena.problem import Rectangles, rectangles
from tests.serenity.graphs import random_graph, random_order

ROOT = Path(__file__).parents[2]


def buffers(*sizes_and_steps: tuple[int, int, int]) -> list[Buffer]:
    return [Buffer(f"b{i}", size, start, stop) for i, (size, start, stop) in enumerate(sizes_and_steps)]


def random_buffers(seed: int, n: int, steps: int = 8, size: int = 6) -> list[Buffer]:
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, steps, n)
    stops = starts + rng.integers(1, steps // 2, n)
    return buffers(*zip(rng.integers(0, size, n).tolist(), starts.tolist(), stops.tolist(), strict=True))


def least_by_brute_force(placed: list[Buffer]) -> int:
    """The least height over all orders, each buffer as low as those before it allow, never below one that it meets.

    A lowest placement can be pushed down until each buffer rests on another one; by growing offset it is such an
    order.
    """
    best = sum(b.size_bytes for b in placed)
    for order in itertools.permutations(placed):
        tops: list[tuple[Buffer, int]] = []
        for b in order:
            low = max((top for other, top in tops if other.start < b.stop and b.start < other.stop), default=0)
            tops.append((b, low + b.size_bytes))
        best = min(best, max((top for _, top in tops), default=0))
    return best


GREEDY_FAILS = buffers((4, 4, 5), (3, 3, 5), (4, 1, 3), (3, 3, 4), (2, 2, 4))
"""All greedy orders need 9; least 8, the bound."""


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 30), alignment=st.sampled_from([1, 2, 4, 64]))
@settings(max_examples=40, deadline=None)
def test_every_method_makes_a_sound_arena(method: str, seed: int, n: int, alignment: int) -> None:
    given_buffers = random_buffers(seed, n, size=200)
    arena = plan_arena(given_buffers, alignment=alignment, method=method, time_limit_s=0.2)
    check_arena(given_buffers, arena, alignment=alignment)
    rounded = [-(-b.size_bytes // alignment) * alignment for b in given_buffers]
    loads = [sum(s for s, b in zip(rounded, given_buffers, strict=True) if b.start <= t < b.stop) for t in range(12)]
    assert arena.bound_bytes == max(loads)
    assert arena.bound_bytes <= arena.least_bytes <= arena.size_bytes <= sum(rounded)
    assert set(arena.offsets) == {b.name for b in given_buffers}
    assert arena.size_bytes % alignment == 0


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_exact_is_the_least_by_brute_force(seed: int, n: int) -> None:
    given_buffers = random_buffers(seed, n, steps=5)
    arena = plan_arena(given_buffers, alignment=1, method="exact", time_limit_s=60)
    assert arena.proven
    assert arena.size_bytes == least_by_brute_force(given_buffers)


@pytest.mark.parametrize("seed", [*range(2), pytest.param(2, marks=pytest.mark.slow), *range(3, 12)])  # 2: brute force
def test_the_search_says_no_exactly_below_the_least(seed: int) -> None:
    """By brute force, for problems of which many need more than their bound."""
    rng = np.random.default_rng(seed)
    problem = rectangles(random_buffers(seed + 1000, 7, steps=7, size=9), 1)
    for part in problem.components():
        one = problem.part(part)
        whole = [Buffer(str(i), int(one.size[i]), int(one.start[i]), int(one.stop[i])) for i in range(len(one))]
        least = least_by_brute_force(whole)
        assert fit(one, least - 1, time.perf_counter() + 60, rng)[0] == branch.FAILED
        result, offsets = fit(one, least, time.perf_counter() + 60, rng)
        assert result == branch.SOLVED
        assert offsets is not None
        assert one.height(offsets) == least


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_arena_of_a_graph_reaches_its_liveness_bound_or_a_proof(seed: int) -> None:
    graph, order = random_graph(seed), random_order(seed)
    arena = plan_arena(lifetimes(graph, order), alignment=1)
    assert arena.proven
    assert arena.bound_bytes == peak_bytes(graph, order)


def test_exact_reaches_the_bound_where_greedy_does_not() -> None:
    greedy, exact = (plan_arena(GREEDY_FAILS, alignment=1, method=method) for method in ("greedy", "exact"))
    assert (greedy.size_bytes, greedy.bound_bytes, greedy.proven) == (9, 8, False)
    assert greedy.over_bound == 1 / 8
    assert (exact.size_bytes, exact.method, exact.proven) == (8, "exact", True)
    assert least_by_brute_force(GREEDY_FAILS) == 8
    assert plan_arena(GREEDY_FAILS, alignment=1).size_bytes == 8


def test_the_search_is_the_same_without_the_compiler() -> None:
    """In a process where numba cannot be imported."""
    given_buffers = random_buffers(6, 40, steps=12, size=50)
    arena = plan_arena(given_buffers, alignment=1, method="exact")
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from tests.serenity.test_arena import plan_arena, random_buffers\n"
        "arena = plan_arena(random_buffers(6, 40, steps=12, size=50), alignment=1, method='exact', time_limit_s=60)\n"
        "print(arena.method, arena.size_bytes, arena.least_bytes, sorted(arena.offsets.items()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == f"exact {arena.size_bytes} {arena.least_bytes} {sorted(arena.offsets.items())}"


def test_luby_by_its_definition() -> None:
    sequence = [1]
    while len(sequence) < 200:
        sequence += [*sequence, 2 * sequence[-1]]
    assert [luby(i) for i in range(1, 200)] == sequence[:199]


def test_a_capacity_ends_the_search_early() -> None:
    assert plan_arena(GREEDY_FAILS, alignment=1, capacity_bytes=9).method == "greedy"
    assert plan_arena(GREEDY_FAILS, alignment=1, capacity_bytes=8).size_bytes == 8
    assert plan_arena(GREEDY_FAILS, alignment=1, capacity_bytes=3).least_bytes == 8


@pytest.mark.parametrize("method", METHODS)
def test_no_buffer_one_buffer_and_buffers_of_nothing(method: str) -> None:
    empty = plan_arena([], method=method)
    assert (empty.size_bytes, empty.bound_bytes, dict(empty.offsets), empty.proven) == (0, 0, {}, True)
    one = plan_arena(buffers((100, 3, 5)), method=method)
    assert (one.size_bytes, dict(one.offsets), one.proven) == (128, {"b0": 0}, True)
    nothing = plan_arena(buffers((0, 0, 4), (5, 0, 4), (0, 1, 2)), alignment=1, method=method)
    assert (nothing.size_bytes, dict(nothing.offsets)) == (5, {"b0": 0, "b1": 0, "b2": 0})


def test_an_alignment_rounds_sizes_up() -> None:
    placed = buffers((1, 0, 2), (65, 1, 3), (64, 2, 4))
    arena = plan_arena(placed, alignment=64)
    assert (arena.size_bytes, arena.bound_bytes) == (192, 192)
    assert all(offset % 64 == 0 for offset in arena.offsets.values())


@pytest.mark.parametrize("method", METHODS)
def test_hardly_any_time_is_still_enough_for_an_arena(method: str) -> None:
    given_buffers = random_buffers(3, 120, steps=40, size=1000)
    arena = plan_arena(given_buffers, alignment=1, method=method, time_limit_s=1e-6)
    check_arena(given_buffers, arena)


def test_half_open_lifetimes_share_memory() -> None:
    assert plan_arena(buffers((7, 0, 1), (7, 1, 2), (7, 2, 3)), alignment=1).size_bytes == 7


def test_sections_keep_who_meets_whom_and_the_bound() -> None:
    for seed in range(50):
        given_buffers = [b for b in random_buffers(seed, 15, steps=20) if b.size_bytes]
        problem = rectangles(given_buffers, 1)
        for i, one in enumerate(given_buffers):
            met = [j for j, o in enumerate(given_buffers) if j != i and o.start < one.stop and one.start < o.stop]
            assert problem.near[i] == met
        loads = [sum(b.size_bytes for b in given_buffers if b.start <= t < b.stop) for t in range(30)]
        assert problem.bound * problem.unit_bytes == max(loads)
        groups = problem.components()
        assert sorted(i for group in groups for i in group) == list(range(len(problem)))
        assert not any(j in problem.near[i] for a, b in itertools.permutations(groups, 2) for i in a for j in b)


def test_best_fit_takes_the_tightest_gap() -> None:
    problem = Rectangles(*np.array([[4, 2, 1, 9, 1], [0, 0, 0, 0, 1], [1, 2, 2, 1, 2]]))
    order = [0, 1, 3, 2, 4]
    assert first_fit(problem, order).tolist() == [0, 4, 15, 6, 0]
    assert by_size(problem).tolist() == [9, 13, 15, 0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b0": 1}, "multiple of 2, got 1"),
        ({"b0": -2}, "got -2"),
        ({"b1": 4}, "'b1' ends at byte 8 of an arena of 6"),
        ({"b1": 0}, "buffers 'b0' (bytes 0 to 2, steps 0 to 2) and 'b1' (bytes 0 to 4, steps 1 to 3) overlap"),
    ],
)
def test_the_check_names_what_is_wrong(change: dict[str, int], words: str) -> None:
    placed = buffers((2, 0, 2), (4, 1, 3))
    arena = Arena({"b0": 0, "b1": 2}, 6, 6, 6, "greedy", 0.0)
    check_arena(placed, arena, alignment=2)
    with pytest.raises(ArenaError) as caught:
        check_arena(placed, replace(arena, offsets={**arena.offsets, **change}), alignment=2)
    assert words in str(caught.value)


def test_the_check_misses_no_buffer() -> None:
    with pytest.raises(ArenaError, match="'b1' has no offset"):
        check_arena(buffers((2, 0, 2), (4, 1, 3)), Arena({"b0": 0}, 6, 6, 6, "greedy", 0.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "exakt"}, "did you mean exact"),
        ({"alignment": 0}, "alignment of at least 1"),
        ({"time_limit_s": 0.0}, "time limit above 0"),
        ({"capacity_bytes": -1}, "capacity of at least 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_arena([], **options)  # type: ignore[arg-type]


def test_wrong_buffers_are_refused() -> None:
    for wrong, words in (
        ([Buffer("x", -1, 0, 1)], "size of at least 0"),
        ([Buffer("x", 1, 1, 1)], "after step 1, where it starts, got 1"),
        ([Buffer("x", 1, 0, 1)] * 2, "two buffers are called 'x'"),
    ):
        with pytest.raises(ArenaError, match=words):
            plan_arena(wrong)
