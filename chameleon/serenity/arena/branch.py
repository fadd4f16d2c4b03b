"""Decides whether a problem fits into a capacity: can all rectangles be placed below a given height?

The method is a branch and bound over canonical placements, after MiniMalloc (Moffitt, ASPLOS 2023).

Each rectangle is a buffer: it is fixed in time, and its offset is searched. Two rectangles meet if they are live at
the same time. Rectangles are placed one after the other, never lower than the one before. In a canonical placement
every rectangle rests on another one or on the ground. So its offset follows from the rectangles placed before: it is
the lowest offset above all those that it meets. Only the order of placing is left to choose.

We use these ideas of the paper:

- *canonical order*: several orders can lead to the same placement. Only one of them is searched: the order by offset,
  then by index.
- *floors by section*: time is cut into sections. The rectangles that are still to be placed in a section lie above the
  lowest offset that is still possible there.
- *dominance*: no rectangle is placed at a height if another unplaced rectangle would fit, at its lowest offset,
  completely below that height.
- *decomposition*: where no unplaced rectangle spans two sections, the two sides are solved separately.
- *preordering*: among rectangles of equal offset, the one that comes first in a static order goes first.

We differ from the paper in three points:

- A rectangle that lies too low to go next must be lifted by another one. In the floors it counts from its lifted
  offset.
- The sections that failed last are checked first.
- Static orders take turns with orders that are learnt from where the search failed (`chameleon.serenity.arena.exact`).

We also tried a sharper bound for a section, the bound of one machine with release times. It saved no nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from chameleon.serenity.arena.problem import Ints, Rectangles


def _compiler() -> Callable[[Any], Any]:
    """Return a decorator that compiles a function to machine code and keeps the code on disk.

    Without numba it leaves the function as it is, and the search is a hundred times slower.
    """
    try:
        from numba import njit
    except ImportError:
        return lambda function: function
    return njit(cache=True)


compiled = _compiler()
FAILED, SOLVED, STOPPED = 0, 1, 2


class Problem(NamedTuple):
    """The rectangles in the order of preference, and which of them meet.

    Attributes:
        size, start, stop: `[n]`, as in `Rectangles`.
        near, near_at: the rectangles that b meets are `near[near_at[b] : near_at[b + 1]]`.
        lives, lives_at: the rectangles of section s are `lives[lives_at[s] : lives_at[s + 1]]`.
        capacity: how high the rectangles may reach.
    """

    size: Ints
    start: Ints
    stop: Ints
    near: Ints
    near_at: Ints
    lives: Ints
    lives_at: Ints
    capacity: int


class State(NamedTuple):
    """What changes during the search.

    Attributes:
        offset: `[n]`, -1 where not placed yet.
        lowest: `[n + 2, n]`, for every depth of the search, the lowest offset of each rectangle above all that is
            placed.
        least: `[n]`, the least offset that each rectangle can still get, as of the last check.
        unplaced, rest: `[n_sections]`, how many rectangles of a section are not placed yet, and the sum of their
            sizes.
        across: `[n_sections]`, how many of these unplaced rectangles also live in the section before.
        weight: `[n_sections]`, how often the section was the reason for a failure.
        often: `[n_sections]`, the sections, sorted so that those that failed last come first.
        trail: `[n]`, the placed rectangles, in the order of placing.
        count: `[3]`, the length of the trail, nodes visited, nodes allowed.
    """

    offset: Ints
    lowest: Ints
    least: Ints
    unplaced: Ints
    rest: Ints
    across: Ints
    weight: Ints
    often: Ints
    trail: Ints
    count: Ints


def prepared(problem: Rectangles, order: Ints, capacity: int) -> Problem:
    """Make the arrays of the search, with the rectangles in this order."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    near = [np.sort(rank[problem.near[b]]) for b in order]
    start, stop = problem.start[order], problem.stop[order]
    lives = [np.flatnonzero((start <= s) & (s < stop)) for s in range(problem.n_sections)]
    return Problem(problem.size[order], start, stop, *_flat(near), *_flat(lives), capacity)


def blank(p: Problem, limit: int) -> State:
    """Make the state before the search, which may visit `limit` nodes."""
    n, sections = len(p.size), len(p.lives_at) - 1
    lives = [p.lives[p.lives_at[k] : p.lives_at[k + 1]] for k in range(sections)]
    return State(
        offset=np.full(n, -1, np.int64),
        lowest=np.zeros((n + 2, n), np.int64),
        least=np.zeros(n, np.int64),
        unplaced=np.diff(p.lives_at),
        rest=np.array([p.size[of].sum() for of in lives], np.int64),
        across=np.array([(p.start[of] < k).sum() for k, of in enumerate(lives)], np.int64),
        weight=np.zeros(sections, np.int64),
        often=np.arange(sections),
        trail=np.zeros(n, np.int64),
        count=np.array([0, 0, limit], np.int64),
    )


def _flat(lists: list[Ints]) -> tuple[Ints, Ints]:
    at = np.cumsum([0, *map(len, lists)])
    return np.concatenate(lists).astype(np.int64), at.astype(np.int64)


@compiled
def branch(p: Problem, s: State, depth: int, first: int, last: int, floor: int, rank: int) -> int:
    """Place all unplaced rectangles of the sections from `first` to `last` (exclusive).

    These sections form a part that cannot be decomposed further.

    Args:
        depth: of the recursion; `s.lowest[depth]` belongs to this node.
        floor, rank: offset and index of the rectangle placed last. The next one comes after it in the canonical order.

    Returns:
        SOLVED, with `s.offset` set; FAILED, with everything undone; STOPPED when the limit is reached.
    """
    s.count[1] += 1
    if s.count[1] > s.count[2]:
        return STOPPED
    while fits(p, s, depth, first, last, floor, rank):
        b = candidate(p, s, depth, first, last, floor, rank)
        if b < 0:
            break
        floor, rank, mark = s.lowest[depth, b], b, s.count[0]
        place(p, s, depth, b)
        raise_neighbours(p, s, depth, b)
        result, begin = SOLVED, first
        while begin < last and result == SOLVED:
            end = part_end(p, s, begin, last)
            if several(s, begin, end):
                result = branch(p, s, depth + 1, begin, end, floor, rank)
            elif s.unplaced[begin]:
                result = place_alone(p, s, depth + 1, begin)
            begin = end
        if result != FAILED:
            return result
        undo(p, s, mark)  # from here on b is not the next rectangle: it lies too low, or must be lifted
    return FAILED


@compiled
def fits(p: Problem, s: State, depth: int, first: int, last: int, floor: int, rank: int) -> bool:
    """Whether the part may still have a placement above (`floor`, `rank`).

    False means that there is none. True only means that no bound rules it out.
    """
    lowest = s.lowest[depth]
    for b in range(len(p.size)):
        if s.offset[b] >= 0 or p.start[b] < first or p.start[b] >= last:
            continue
        top = lowest[b] + p.size[b]
        if top <= floor or top > p.capacity:  # it fits below all that is still to come (dominance), or nowhere
            return False
        s.least[b] = lowest[b] if after(lowest[b], b, floor, rank) else lifted(p, s, depth, b, floor, rank)
        if s.least[b] + p.size[b] > p.capacity:
            for k in range(p.start[b], p.stop[b]):
                s.weight[k] += 1
            return False
    for i in range(len(s.often)):  # the sections that failed last come first
        k = s.often[i]
        if first <= k < last and s.unplaced[k] and stacked(p, s, k) > p.capacity:
            s.weight[k] += 1
            for j in range(i, 0, -1):
                s.often[j] = s.often[j - 1]
            s.often[0] = k
            return False
    return True


@compiled
def after(low: int, b: int, floor: int, rank: int) -> bool:
    """Whether rectangle `b` at offset `low` comes after the rectangle placed last, in the canonical order."""
    return low > floor or (low == floor and b > rank)


@compiled
def lifted(p: Problem, s: State, depth: int, b: int, floor: int, rank: int) -> int:
    """The least offset of a rectangle that lies too low to be next.

    Such a rectangle must rest on one of those that are still to come.
    """
    least = p.capacity + 1
    for i in range(p.near_at[b], p.near_at[b + 1]):
        c = p.near[i]
        if s.offset[c] < 0:
            least = min(least, max(s.lowest[depth, c], floor) + p.size[c])
    return least


@compiled
def stacked(p: Problem, s: State, k: int) -> int:
    """A lower bound for how high the unplaced rectangles of section `k` reach.

    The bound stacks all of them, from their smallest least offset on.
    """
    low = p.capacity + 1
    for i in range(p.lives_at[k], p.lives_at[k + 1]):
        if s.offset[p.lives[i]] < 0:
            low = min(low, s.least[p.lives[i]])
    return low + s.rest[k]


@compiled
def candidate(p: Problem, s: State, depth: int, first: int, last: int, floor: int, rank: int) -> int:
    """Find the rectangle that comes next in the canonical order; -1 if there is none.

    Only a rectangle whose least offset is its lowest offset can come next.
    """
    lowest, best, ceiling = s.lowest[depth], -1, p.capacity
    for b in range(len(p.size)):
        if s.offset[b] >= 0 or p.start[b] < first or p.start[b] >= last:
            continue
        ceiling = min(ceiling, lowest[b] + p.size[b])
        if s.least[b] == lowest[b] and (best < 0 or lowest[b] < lowest[best]):
            best = b
    return best if best >= 0 and lowest[best] < ceiling else -1


@compiled
def place(p: Problem, s: State, depth: int, b: int) -> None:
    """Put a rectangle at its lowest offset."""
    s.offset[b] = s.lowest[depth, b]
    s.trail[s.count[0]] = b
    s.count[0] += 1
    for k in range(p.start[b], p.stop[b]):
        s.unplaced[k] -= 1
        s.rest[k] -= p.size[b]
        s.across[k] -= k > p.start[b]


@compiled
def raise_neighbours(p: Problem, s: State, depth: int, b: int) -> None:
    """Set the lowest offsets for the next depth: rectangles that meet rectangle `b` must lie above it."""
    s.lowest[depth + 1] = s.lowest[depth]
    top = s.offset[b] + p.size[b]
    for i in range(p.near_at[b], p.near_at[b + 1]):
        c = p.near[i]
        s.lowest[depth + 1, c] = max(s.lowest[depth + 1, c], top)


@compiled
def undo(p: Problem, s: State, mark: int) -> None:
    """Take back everything that was placed since the trail had length `mark`."""
    while s.count[0] > mark:
        s.count[0] -= 1
        b = s.trail[s.count[0]]
        s.offset[b] = -1
        for k in range(p.start[b], p.stop[b]):
            s.unplaced[k] += 1
            s.rest[k] += p.size[b]
            s.across[k] += k > p.start[b]


@compiled
def part_end(p: Problem, s: State, begin: int, last: int) -> int:
    """Find where the part that starts at section `begin` ends.

    It ends at the first section after `begin` that shares no unplaced rectangle with the section before it.
    """
    k = begin + 1
    while k < last and s.across[k]:
        k += 1
    return k


@compiled
def several(s: State, begin: int, end: int) -> bool:
    """Whether a part has more than one unplaced rectangle. If so, two of them meet in some section."""
    for k in range(begin, end):  # noqa: SIM110 - compiled code knows no generators
        if s.unplaced[k] > 1:
            return True
    return False


@compiled
def place_alone(p: Problem, s: State, depth: int, k: int) -> int:
    """Place the only unplaced rectangle of section `k` as low as possible.

    No other unplaced rectangle meets it. The result is FAILED if it does not fit.
    """
    for i in range(p.lives_at[k], p.lives_at[k + 1]):
        b = p.lives[i]
        if s.offset[b] < 0:
            if s.lowest[depth, b] + p.size[b] > p.capacity:
                return FAILED
            place(p, s, depth, b)
    return SOLVED
