"""The lowest placement, or one that fits into a capacity: several searches take turns, and prove that nothing is lower."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from chameleon.serenity import arena_search
from chameleon.serenity.arena_problem import Ints, Rectangles

PREFERENCES = ("TWA", "TAW", "WAT", "WTA", "ATW", "AWT", "ZT", "OZ")
"""Static orders: by total (the most that is live at a time of the rectangle's), width (life time), area, size, overlaps."""
FIRST_NODES = 500
"""Nodes of the search by each order in the first turn; each turn has twice as many as the one before."""


def exact(problem: Rectangles, offsets: Ints, target: int, deadline_s: float, rng: np.random.Generator) -> tuple[Ints, int]:
    """Lower a placement until it is not above `target`, or no lower one exists, or the time is up.

    Parts of the problem that share no time are solved by themselves.

    Args:
        offsets: a placement, `[n]`.
        target: no part needs to be lower.
        deadline_s: in the time of `time.perf_counter`.

    Returns:
        The placement, `[n]`, and the height below which none exists.
    """
    best, least = offsets.copy(), problem.bound
    parts = [part for part in problem.components() if problem.part(part).height(offsets[part]) > target]
    for number, part in enumerate(parts):
        now = time.perf_counter()
        share_s = (deadline_s - now) / (len(parts) - number)
        best[part], proven = _lowest(problem.part(part), best[part], target, now + share_s, rng)
        least = max(least, proven)
    return best, least


def fit(problem: Rectangles, capacity: int, deadline_s: float, rng: np.random.Generator) -> tuple[int, Ints | None]:
    """Find a placement of one component within a capacity.

    Returns:
        `arena_search.SOLVED` and the placement, `[n]`; or `FAILED`, if there is none; or `STOPPED`, if the time was up.
    """
    if problem.bound > capacity:
        return arena_search.FAILED, None
    spent_nodes, spent_s = 0, 0.0
    for order, nodes in _turns(problem, rng):
        start = time.perf_counter()
        if spent_s and start < deadline_s:  # not beyond the deadline, by the speed so far
            nodes = min(nodes, max(1, int((deadline_s - start) * spent_nodes / spent_s)))
        if start >= deadline_s:
            break
        p = arena_search.prepared(problem, order, capacity)
        state = arena_search.blank(p, nodes)
        result = arena_search.branch(p, state, 0, 0, problem.n_sections, 0, -1)
        spent_nodes, spent_s = spent_nodes + int(state.count[1]), spent_s + time.perf_counter() - start
        if result == arena_search.SOLVED:
            found = np.empty(len(problem), np.int64)
            found[order] = state.offset
            return result, found
        if result == arena_search.FAILED:
            return result, None
    return arena_search.STOPPED, None


def _lowest(problem: Rectangles, offsets: Ints, target: int, deadline_s: float, rng: np.random.Generator) -> tuple[Ints, int]:
    """As `exact`, of one component: try the lowest capacity that may be enough, then bisect."""
    best, high, low = offsets, problem.height(offsets), problem.bound  # what is known: low <= the least height <= high
    aim = max(low, target)
    while high > max(low, target) and (now := time.perf_counter()) < deadline_s:
        last = aim >= high - 1
        result, found = fit(problem, aim, deadline_s if last else now + (deadline_s - now) / 2, rng)
        if found is not None:
            best, high = found, problem.height(found)
        elif result == arena_search.FAILED:
            low = aim + 1
        elif last:
            break
        aim = max((max(low, target) + high - 1) // 2 if result != arena_search.STOPPED else (aim + high) // 2, low, target)
    return best, low


def _turns(problem: Rectangles, rng: np.random.Generator) -> Iterator[tuple[Ints, int]]:
    """Orders and how many nodes each may visit, without end: all `PREFERENCES`, from the second turn on with some chance."""
    nodes, noise = FIRST_NODES, 0.0
    while True:
        for preference in PREFERENCES:
            yield _order(problem, preference, noise, rng), nodes
        nodes, noise = 2 * nodes, 0.1


def _order(problem: Rectangles, preference: str, noise: float, rng: np.random.Generator) -> Ints:
    """The rectangles from the largest to the smallest by the values that the letters name, the first before the others."""
    life = problem.stop - problem.start
    total = np.array([problem.loads[a:b].max() for a, b in zip(problem.start, problem.stop, strict=True)], np.int64)
    values = {"T": total, "W": life, "A": problem.size * life, "Z": problem.size}
    values["O"] = np.array([len(near) for near in problem.near], np.int64)
    keys = [-values[letter] * (1 + noise * rng.standard_normal(len(problem))) for letter in preference]
    return np.lexsort(keys[::-1])
