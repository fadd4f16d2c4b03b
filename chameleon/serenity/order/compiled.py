"""`rounds` and `rise` of `chameleon.serenity.order.search`, compiled by numba."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from chameleon.serenity.order.compiled_loops import fill, rise_kernel, round_kernel
from chameleon.serenity.order.compiled_tables import (
    BUDGET,
    DONE,
    DROPPED,
    FOUND,
    FULL,
    NO_LIMIT,
    PROVED,
    SOLVED,
    STATES,
    Sets,
    empty,
    room,
    rows,
    tables_of,
)
from chameleon.serenity.order.lazy import OutOfTimeError, unfold
from chameleon.serenity.order.problem import Problem
from chameleon.serenity.order.search import NO_LIMITS, Limits, Outcome

QUOTA = 40_000  # sets that a kernel expands before it returns
FIRST_CAPACITY = 1 << 10


def load() -> None:
    """Compile the kernels, or load what was compiled before.

    Without this call the first search does it, and it counts as part of the search time.
    """
    tiny = Problem(("load",), (0,), (), 0, (0,), (-1,), (None,))
    rounds(tiny)
    for lazy in (False, True):
        rise(tiny, lazy=lazy)


def rounds(
    problem: Problem,
    *,
    budget: float = float("inf"),
    lower: int = 0,
    safe_moves: bool = False,
    width: int = 0,
    limits: Limits = NO_LIMITS,
) -> Outcome:
    """See `chameleon.serenity.order.search.rounds`."""
    tables, words = tables_of(problem, lazy=False)
    budget = int(min(budget, NO_LIMIT))
    sets, n_sets, total = _first(problem, words), 1, 1
    trail: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    counters = np.zeros(6, np.int64)
    counters[DROPPED] = NO_LIMIT
    scratch = room(problem, tables, words)
    for _ in range(problem.n):
        started, new, at = time.perf_counter(), empty(FIRST_CAPACITY, words), 0
        counters[STATES] = 0
        while True:
            status, at = round_kernel(
                tables, sets, n_sets, at, new, counters, scratch, budget, lower, safe_moves, QUOTA, words
            )
            found = int(counters[STATES])
            if status == DONE:
                break
            late = time.perf_counter()
            if (
                late > limits.deadline_s
                or (limits.step_s and late - started > limits.step_s)
                or total + found > limits.states
            ):
                return Outcome("timeout", states=total + found)
            if status == FULL:
                new = _grown(new, found, words)
        total += found
        if not found:
            return Outcome("no solution", lower=int(counters[DROPPED]), states=total)
        if total > limits.states:
            return Outcome("timeout", states=total)
        kept = (
            np.lexsort((new.in_use[:found], new.peak[:found]))[:width] if width and found > width else np.arange(found)
        )
        sets, n_sets = _cut(new, kept), len(kept)
        trail.append((sets.parent, sets.move))
    order, i = [], 0
    for parent, move in reversed(trail):
        order.append(int(move[i]))
        i = parent[i]
    peak = int(sets.peak[0])
    return Outcome("solution", tuple(reversed(order)), peak, 0 if width else peak, total)


def rise(
    problem: Problem,
    *,
    budget: int = 0,
    upper: int | None = None,
    safe_moves: bool = True,
    lazy: bool = True,
    limits: Limits = NO_LIMITS,
) -> Outcome:
    """See `chameleon.serenity.order.search.rise`."""
    try:
        tables, words = tables_of(problem, lazy, limits.deadline_s)
    except OutOfTimeError:
        return Outcome("timeout", lower=max(budget, problem.first_bytes), states=1)
    sets = _first(problem, words)
    stack, heap_key, heap_set = (np.zeros(FIRST_CAPACITY, kind) for kind in (np.int32, np.int64, np.int32))
    counters = np.array([1, 1, 0, max(budget, problem.first_bytes), 0, 0], np.int64)
    scratch = room(problem, tables, words)
    top = NO_LIMIT if upper is None else upper
    quota = max(1, QUOTA // (problem.n if lazy else 1))
    while True:
        status = rise_kernel(tables, sets, stack, heap_key, heap_set, counters, scratch, top, safe_moves, quota, words)
        states, budget = int(counters[STATES]), int(counters[BUDGET])
        if status == SOLVED:
            order = _follow(problem, sets, int(counters[FOUND]))
            return Outcome("solution", order, problem.peak(order), budget, states)
        if status == PROVED:
            return Outcome("no solution", lower=top, states=states)
        if time.perf_counter() > limits.deadline_s or states > limits.states:
            return Outcome("timeout", lower=budget, states=states)
        if status == FULL:
            sets = _grown(sets, states, words)
            stack, heap_key, heap_set = (_wider(a, len(sets.in_use)) for a in (stack, heap_key, heap_set))


def _follow(problem: Problem, sets: Sets, i: int) -> tuple[int, ...]:
    """Find the order that led to set i."""
    order: list[int] = []
    while sets.parent[i] >= 0:
        after, before = (int.from_bytes(sets.done[k].astype("<u8").tobytes(), "little") for k in (i, sets.parent[i]))
        order[:0] = unfold(problem, before, after & ~before)
        i = sets.parent[i]
    return tuple(order)


def _first(problem: Problem, words: int) -> Sets:
    """Make the table of sets that holds only the empty set."""
    sets = empty(FIRST_CAPACITY, words)
    sets.ready[0] = rows([problem.first_ready], words)[0]
    sets.in_use[0] = sets.peak[0] = problem.first_bytes
    sets.parent[0] = -1
    fill(sets.done, 1, sets.table, words)
    return sets


def _grown(sets: Sets, n: int, words: int) -> Sets:
    """Copy the same `n` sets into arrays with twice the room."""
    capacity = 2 * len(sets.in_use)
    table = np.zeros(2 * capacity, np.int32)
    fill(sets.done, n, table, words)
    return Sets._make([*(_wider(a, capacity) for a in sets[:-1]), table])


def _wider(array: NDArray, capacity: int) -> NDArray:
    new = np.zeros((capacity, *array.shape[1:]), array.dtype)
    new[: len(array)] = array
    return new


def _cut(sets: Sets, kept: NDArray[np.intp]) -> Sets:
    """Keep only some of the sets, without a hash table."""
    return Sets._make([*(a[kept] for a in sets[:-1]), np.zeros(0, np.int32)])
