"""Places buffers one after the other: fast, but not always as low as possible."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from chameleon.serenity.arena.problem import Ints, Rectangles

TRIES_PER_BUFFER = 10
"""How many orders the local search tries, for each buffer of the problem."""
MANY = 128
"""From this many neighbours on, arrays are faster than lists."""


def orders(problem: Rectangles) -> Iterator[list[int]]:
    """Yield orders in which buffers can be placed.

    Three orders put the largest first: by size, by area, and by life time. The fourth puts those first that begin
    first. Buffers that are equal in this are sorted by size, or by life time if the size is what is equal.
    """
    size, life = problem.size, problem.stop - problem.start
    # np.lexsort sorts by the last key first
    for keys in (
        (-life, -size),
        (-size, -size * life),
        (-size, -life),
        (-size, problem.start),
    ):
        yield np.lexsort(keys).tolist()


def by_size(problem: Rectangles) -> Ints:
    """The usual greedy placement, `[n]`, used by TFLite among others.

    The largest buffer goes first, and each goes to the lowest place where it fits.
    """
    return first_fit(problem, np.argsort(-problem.size, kind="stable").tolist())


def greedy(problem: Rectangles, target: int = 0) -> Ints:
    """The lowest placement of several orders, each tried by first fit and by best fit, `[n]`.

    It stops at the first placement that is not above the target.
    """
    return _greedy(problem, target)[0]


def improved(
    problem: Rectangles, target: int, deadline_s: float, rng: np.random.Generator, tries: int | None = None
) -> Ints:
    """Improve a placement by a local search over the orders of first fit, `[n]`.

    Each try picks a rectangle that sticks out above the target, or one that meets such a rectangle. It moves the
    picked rectangle to an earlier place in the order: a random one, just before a rectangle that it meets. The new
    order stays unless it is worse. TelaMalloc (Maas 2022) had the idea that conflicts say what to move.

    Args:
        target: stop at this height.
        deadline_s: stop at this time of `time.perf_counter`.
        tries: stop after this many orders; by default `TRIES_PER_BUFFER` for each buffer.
    """
    offsets, order = _greedy(problem, target)
    best, cost = offsets, _cost(problem, offsets, target)
    for _ in range(TRIES_PER_BUFFER * len(problem) if tries is None else tries):
        if cost[0] <= target or time.perf_counter() > deadline_s:
            break
        out = np.flatnonzero(offsets + problem.size > target)
        which = int(rng.choice(out))
        if problem.near[which] and rng.random() < 0.5:
            which = int(rng.choice(problem.near[which]))
        moved = _moved(problem, order, which, rng)
        tried = first_fit(problem, moved)
        new = _cost(problem, tried, target)
        if new <= cost:
            order, offsets, cost = moved, tried, new
        if new[0] < problem.height(best):
            best = tried
    return best


def first_fit(problem: Rectangles, order: Sequence[int], best_fit: bool = False) -> Ints:
    """Place rectangles in this order, `[n]`.

    Each goes into the first gap between the rectangles placed before, or with `best_fit` into the tightest gap.
    """
    offsets, size = np.full(len(problem), -1, np.int64), problem.size.tolist()
    places = [-1] * len(problem)
    for b in order:
        near = problem.near[b]
        if len(near) > MANY:
            at = np.array(near, np.int64)
            places[b] = _place_among(offsets[at], problem.size[at], size[b], best_fit)
        else:
            places[b] = _place([(places[c], size[c]) for c in near if places[c] >= 0], size[b], best_fit)
        offsets[b] = places[b]
    return offsets


def _place(taken: list[tuple[int, int]], size: int, best_fit: bool) -> int:
    """Where `first_fit` places a rectangle of this size, beside others of these offsets and sizes."""
    top, place, room = 0, -1, 0
    for low, high in sorted(taken):
        gap = low - top
        if gap >= size and (place < 0 or gap < room):
            place, room = top, gap
            if not best_fit:
                break
        top = max(top, low + high)
    return top if place < 0 else place


def _place_among(offsets: Ints, sizes: Ints, size: int, best_fit: bool) -> int:
    """What `_place` does, for many others; those at -1 are not placed yet."""
    placed = np.flatnonzero(offsets >= 0)
    if not len(placed):
        return 0
    placed = placed[np.argsort(offsets[placed], kind="stable")]
    lows = offsets[placed]
    tops = np.concatenate([[0], np.maximum.accumulate(lows + sizes[placed])])
    gaps = lows - tops[:-1]
    fitting = np.flatnonzero(gaps >= size)
    if not len(fitting):
        return int(tops[-1])
    return int(tops[fitting[np.argmin(gaps[fitting])] if best_fit else fitting[0]])


def _greedy(problem: Rectangles, target: int) -> tuple[Ints, list[int]]:
    """Do what `greedy` does, and also return the order that the placement comes from."""
    best: tuple[int, Ints, list[int]] | None = None
    for order in orders(problem):
        for best_fit in (False, True):
            offsets = first_fit(problem, order, best_fit)
            height = problem.height(offsets)
            if best is None or height < best[0]:
                best = (height, offsets, order)
            if height <= target:
                return offsets, order
    assert best is not None
    return best[1], best[2]


def _cost(problem: Rectangles, offsets: Ints, target: int) -> tuple[int, int]:
    """The height, then how much lies above the target, weighted by life time."""
    above = np.maximum(offsets + problem.size - target, 0)
    return problem.height(offsets), int((above * (problem.stop - problem.start)).sum())


def _moved(problem: Rectangles, order: Sequence[int], which: int, rng: np.random.Generator) -> list[int]:
    """Move one rectangle in the order: before one that it meets and that came before it."""
    near = set(problem.near[which])
    at = order.index(which)
    before = [i for i in range(at) if order[i] in near]
    if not before:
        return list(order)
    to = before[int(rng.integers(len(before)))]
    return [*order[:to], which, *order[to:at], *order[at + 1 :]]
