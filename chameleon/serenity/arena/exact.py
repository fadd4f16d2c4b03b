"""Finds the lowest placement, or one that fits into a capacity.

Several searches take turns. They can also prove that no placement is lower.
"""

from __future__ import annotations

import functools
import itertools
import time

import numpy as np
from numpy.typing import NDArray

from chameleon.serenity.arena import branch
from chameleon.serenity.arena.problem import Ints, Rectangles

Floats = NDArray[np.float64]
PREFERENCES = ("TWA", "TAW", "WAT", "WTA", "ATW", "AWT", "ZT", "OZ")
"""Static orders. Each letter is a sort key, and the largest value goes first: T is the total (the most that is live at
any time while the rectangle lives), W the width (its life time), A the area, Z the size, O the number of overlaps.
"""
NODES = 1000
"""How many nodes the search may visit in a turn. This is multiplied by a number of Luby's sequence."""
MEMORY, NOISE = 0.9, 0.1
"""MEMORY: how much of what earlier turns learnt counts in the next turn.
NOISE: the spread of the noise on the sort keys of the orders.
"""


SHARE = 0.75
"""The part of the remaining time that the search at one capacity may take before it tries a larger capacity."""


@functools.cache
def load() -> None:
    """Compile the search before it is needed.

    This takes seconds the first time on a machine, and less than one second later.
    """
    two = Rectangles(*np.array([[1, 1], [0, 0], [1, 1]]))
    fit(two, 2, time.perf_counter() + 1, np.random.default_rng(0))


def exact(
    problem: Rectangles, offsets: Ints, target: int, deadline_s: float, rng: np.random.Generator
) -> tuple[Ints, int]:
    """Lower a placement until it is not above `target`, no lower one exists, or the time is up.

    Parts of the problem that share no time are solved separately.

    Args:
        offsets: a placement, `[n]`.
        target: no part needs to be lower than this.
        deadline_s: when to stop, in the time of `time.perf_counter`.

    Returns:
        The placement, `[n]`, and the height below which none exists.
    """
    best, least = offsets.copy(), problem.bound
    parts = [part for part in problem.components() if problem.part(part).height(offsets[part]) > target]
    for number, part in enumerate(sorted(parts, key=len)):  # time that small parts do not use is left for large ones
        now = time.perf_counter()
        share_s = (deadline_s - now) / (len(parts) - number)
        best[part], proven = _lowest(problem.part(part), best[part], target, now + share_s, rng)
        least = max(least, proven)
    return best, least


def fit(problem: Rectangles, capacity: int, deadline_s: float, rng: np.random.Generator) -> tuple[int, Ints | None]:
    """Find a placement of one component within a capacity.

    Returns:
        `branch.SOLVED` and the placement, `[n]`; or `FAILED`, if there is none; or `STOPPED`, if the time was up.
    """
    if problem.bound > capacity:
        return branch.FAILED, None
    trouble = np.zeros(problem.n_sections)
    speed = 0.0  # nodes a second
    for turn in itertools.count():
        start = time.perf_counter()
        if start >= deadline_s:
            break
        order, nodes = _order(problem, turn, trouble, rng), NODES * luby(turn + 1)
        if speed:  # not beyond the deadline
            nodes = min(nodes, max(1, int((deadline_s - start) * speed)))
        p = branch.prepared(problem, order, capacity)
        state = branch.blank(p, nodes)
        result = branch.branch(p, state, 0, 0, problem.n_sections, 0, -1)
        speed = state.count[1] / (time.perf_counter() - start)
        trouble = MEMORY * trouble + state.weight / max(state.weight.max(), 1)
        if result == branch.SOLVED:
            found = np.empty(len(problem), np.int64)
            found[order] = state.offset
            return result, found
        if result == branch.FAILED:
            return result, None
    return branch.STOPPED, None


def _lowest(
    problem: Rectangles, offsets: Ints, target: int, deadline_s: float, rng: np.random.Generator
) -> tuple[Ints, int]:
    """Do what `exact` does, for one component.

    It tries the lowest capacity that may be enough, then bisects.
    """
    best, high, low = offsets, problem.height(offsets), problem.bound  # what is known: low <= the least height <= high
    aim = max(low, target)
    while high > max(low, target) and (now := time.perf_counter()) < deadline_s:
        last = aim >= high - 1
        result, found = fit(problem, aim, deadline_s if last else now + SHARE * (deadline_s - now), rng)
        if found is not None:
            best, high = found, problem.height(found)
        elif result == branch.FAILED:
            low = aim + 1
        elif last:
            break
        aim = max((max(low, target) + high - 1) // 2 if result != branch.STOPPED else (aim + high) // 2, low, target)
    return best, low


def luby(i: int) -> int:
    """The `i`-th number (from 1) of Luby's sequence 1, 1, 2, 1, 1, 2, 4, ...

    As limits these numbers are good for any kind of search (Luby 1993).
    """
    k = i.bit_length()
    return 2 ** (k - 1) if i == 2**k - 1 else luby(i - 2 ** (k - 1) + 1)


def _order(problem: Rectangles, turn: int, trouble: Floats, rng: np.random.Generator) -> Ints:
    """Sort the rectangles by the preference of a turn.

    The first turns use the `PREFERENCES`. Later turns use where the search has failed so far.

    Args:
        trouble: `[n_sections]`, how often the search failed in each section. A rectangle counts as much as all of its
            sections together. So rectangles that live long in crowded times go first (like the weights of constraints
            of Boussemart 2004).
    """
    life = problem.stop - problem.start
    spans = list(zip(problem.start, problem.stop, strict=True))
    if turn < len(PREFERENCES):
        total = np.array([problem.loads[a:b].max() for a, b in spans], np.int64)
        values = {"T": total, "W": life, "A": problem.size * life, "Z": problem.size}
        values["O"] = np.array([len(near) for near in problem.near], np.int64)
        keys = [-values[letter] for letter in PREFERENCES[turn]]
    else:
        learnt = np.array([trouble[a:b].sum() for a, b in spans])
        keys = [-learnt * np.exp(NOISE * rng.standard_normal(len(problem))), -life]
    return np.lexsort(keys[::-1])  # np.lexsort sorts by its last key first
