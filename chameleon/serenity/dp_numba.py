"""`rounds` and `rise` of `chameleon.serenity.dp`, compiled by numba. Sets of steps are rows of 64-bit words.

The kernels stop and return when their arrays are full or after a number of sets; Python then looks at the limits, makes room and
calls them again. Their argument `words` is a tuple of as many zeros as a set has words: its length is known when a kernel is
compiled, so that loops over the words are unrolled.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from chameleon.serenity.dp import Limits, Outcome
from chameleon.serenity.problem import Problem

Words = NDArray[np.uint64]

QUOTA = 40_000  # sets that a kernel expands before it returns
FIRST_CAPACITY = 1 << 12
NO_LIMIT = 1 << 62
DONE, FULL, PAUSED, SOLVED, PROVED = range(5)
STATES, STACKED, STOPPED, BUDGET, FOUND, DROPPED = range(6)  # places in the counters


class Tables(NamedTuple):
    """A problem as arrays; `n` steps, masks in `w` words.

    Attributes:
        before: `[n, w]` direct predecessors.
        readers: direct successors of all steps, those of u at `reader_at[u] : reader_at[u + 1]`.
        reader_at: `[n + 1]`.
        own_size: `[n]` size of the memory that a step may start, 0 if none.
        starters: `[n, w]` all steps that may start it.
        overwrites: `[n]` whether the step may overwrite an input.
        needs: `[n, w]` what must have run for that.
        workspace: `[n]` bytes.
        touchers: `[f, w]` of the memories that steps may free, those of u at `free_at[u] : free_at[u + 1]`.
        free_size: `[f]` their sizes.
        free_at: `[n + 1]`.
        full: `[w]` all steps.
    """

    before: Words
    readers: NDArray[np.int64]
    reader_at: NDArray[np.int64]
    own_size: NDArray[np.int64]
    starters: Words
    overwrites: NDArray[np.bool_]
    needs: Words
    workspace: NDArray[np.int64]
    touchers: Words
    free_size: NDArray[np.int64]
    free_at: NDArray[np.int64]
    full: Words


class Sets(NamedTuple):
    """Downsets in arrays of some capacity `c`, with a hash table of `h` places.

    Attributes:
        done: `[c, w]` the steps that have run.
        ready: `[c, w]` the steps that can run.
        in_use: `[c]` bytes.
        peak: `[c]` the least found to get there (`rounds`), or unused.
        parent: `[c]` the set before.
        move: `[c]` the step that led here.
        table: `[h]` index + 1, or 0.
    """

    done: Words
    ready: Words
    in_use: NDArray[np.int64]
    peak: NDArray[np.int64]
    parent: NDArray[np.int32]
    move: NDArray[np.int32]
    table: NDArray[np.int32]


def rounds(
    problem: Problem,
    *,
    budget: float = float("inf"),
    lower: int = 0,
    safe_moves: bool = False,
    width: int = 0,
    limits: Limits = Limits(),
) -> Outcome:
    """See `chameleon.serenity.dp.rounds`."""
    tables, words = _tables(problem)
    budget = int(min(budget, NO_LIMIT))
    sets, n_sets, total = _first(problem, words), 1, 1
    trail: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    counters = np.zeros(6, np.int64)
    counters[DROPPED] = NO_LIMIT
    scratch = np.empty((3, problem.n + 1), np.int64)
    for _ in range(problem.n):
        started, new, at = time.perf_counter(), _empty(FIRST_CAPACITY, words), 0
        counters[STATES] = 0
        while True:
            status, at = _round(tables, sets, n_sets, at, new, counters, scratch, budget, lower, safe_moves, QUOTA, words)
            found = int(counters[STATES])
            if status == DONE:
                break
            late = time.perf_counter()
            if late > limits.deadline_s or (limits.step_s and late - started > limits.step_s) or total + found > limits.states:
                return Outcome("timeout", states=total + found)
            if status == FULL:
                new = _grown(new, found, words)
        total += found
        if not found:
            return Outcome("no solution", lower=int(counters[DROPPED]), states=total)
        if total > limits.states:
            return Outcome("timeout", states=total)
        kept = np.lexsort((new.in_use[:found], new.peak[:found]))[:width] if width and found > width else np.arange(found)
        sets, n_sets = _cut(new, kept), len(kept)
        trail.append((sets.parent, sets.move))
    order, i = [], 0
    for parent, move in reversed(trail):
        order.append(int(move[i]))
        i = parent[i]
    peak = int(sets.peak[0])
    return Outcome("solution", tuple(reversed(order)), peak, 0 if width else peak, total)


def rise(
    problem: Problem, *, budget: int = 0, upper: int | None = None, safe_moves: bool = True, limits: Limits = Limits()
) -> Outcome:
    """See `chameleon.serenity.dp.rise`."""
    tables, words = _tables(problem)
    sets = _first(problem, words)
    stack, heap_key, heap_set = (np.zeros(FIRST_CAPACITY, kind) for kind in (np.int32, np.int64, np.int32))
    counters = np.array([1, 1, 0, max(budget, problem.first_bytes), 0, 0], np.int64)
    scratch = np.empty((3, problem.n + 1), np.int64)
    top = NO_LIMIT if upper is None else upper
    while True:
        status = _rise(tables, sets, stack, heap_key, heap_set, counters, scratch, top, safe_moves, QUOTA, words)
        states, budget = int(counters[STATES]), int(counters[BUDGET])
        if status == SOLVED:
            order, i = [], int(counters[FOUND])
            while sets.parent[i] >= 0:
                order.append(int(sets.move[i]))
                i = sets.parent[i]
            order = tuple(reversed(order))
            return Outcome("solution", order, problem.peak(order), budget, states)
        if status == PROVED:
            return Outcome("no solution", lower=top, states=states)
        if time.perf_counter() > limits.deadline_s or states > limits.states:
            return Outcome("timeout", lower=budget, states=states)
        if status == FULL:
            sets = _grown(sets, states, words)
            stack, heap_key, heap_set = (_wider(a, len(sets.in_use)) for a in (stack, heap_key, heap_set))


@njit(cache=True, inline="always")
def _hash(done, i, words):
    h = np.uint64(0x9E3779B97F4A7C15)
    for w in range(len(words)):
        h = (h ^ done[i, w]) * np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(29)
    h *= np.uint64(0x94D049BB133111EB)
    return np.int64(h >> np.uint64(33))


@njit(cache=True, inline="always")
def _within(part, i, whole, k, u, words):
    """Whether row i of `part` lies within row k of `whole` and u."""
    for w in range(len(words)):
        bit = np.uint64(1) << np.uint64(u & 63) if u >> 6 == w else np.uint64(0)
        if part[i, w] & ~(whole[k, w] | bit):
            return False
    return True


@njit(cache=True, inline="always")
def _meets(one, i, other, k, words):
    for w in range(len(words)):
        if one[i, w] & other[k, w]:
            return True
    return False


@njit(cache=True)
def _moves(tables, done, ready, i, in_use, scratch, budget, safe_moves, words):
    """All steps that can run in set i, with bytes during and after, into `scratch`; the safe one alone if there is one."""
    count = 0
    for w in range(len(words)):
        left = ready[i, w]
        u = w * 64 - 1
        while left:
            while not left & np.uint64(0xFF):
                left >>= np.uint64(8)
                u += 8
            while not left & np.uint64(1):
                left >>= np.uint64(1)
                u += 1
            left >>= np.uint64(1)
            u += 1
            during = in_use
            after = in_use
            if tables.own_size[u] and not _meets(tables.starters, u, done, i, words):
                after += tables.own_size[u]
                if not (tables.overwrites[u] and _within(tables.needs, u, done, i, u, words)):
                    during = after
            for f in range(tables.free_at[u], tables.free_at[u + 1]):
                if _within(tables.touchers, f, done, i, u, words):
                    after -= tables.free_size[f]
            during += tables.workspace[u]
            if safe_moves and during <= budget and after <= in_use:
                scratch[0, 0], scratch[1, 0], scratch[2, 0] = u, during, after
                return 1
            scratch[0, count], scratch[1, count], scratch[2, count] = u, during, after
            count += 1
    return count


@njit(cache=True)
def _child(tables, source, i, u, new, counters, words):
    """The place of set i with u in `new`; if it is not there yet it is added, except for its bytes, and the second is True."""
    n = counters[STATES]
    for w in range(len(words)):
        new.done[n, w] = source.done[i, w]
    new.done[n, u >> 6] |= np.uint64(1) << np.uint64(u & 63)
    top = len(new.table) - 1
    at = _hash(new.done, n, words) & top
    while new.table[at]:
        k = new.table[at] - 1
        same = True
        for w in range(len(words)):
            same &= new.done[k, w] == new.done[n, w]
        if same:
            return k, False
        at = (at + 1) & top
    new.table[at] = n + 1
    for w in range(len(words)):
        new.ready[n, w] = source.ready[i, w]
    new.ready[n, u >> 6] &= ~(np.uint64(1) << np.uint64(u & 63))
    for r in range(tables.reader_at[u], tables.reader_at[u + 1]):
        reader = tables.readers[r]
        if _within(tables.before, reader, new.done, n, u, words):
            new.ready[n, reader >> 6] |= np.uint64(1) << np.uint64(reader & 63)
    new.parent[n] = i
    new.move[n] = u
    counters[STATES] = n + 1
    return n, True


@njit(cache=True)
def _round(tables, sets, n_sets, at, new, counters, scratch, budget, lower, safe_moves, quota, words):
    """One round of the paper's program, from set `at` on. Doing a set twice does no harm."""
    for i in range(at, min(n_sets, at + quota)):
        if counters[STATES] + scratch.shape[1] > len(new.in_use):
            return FULL, i
        peak = sets.peak[i]
        count = _moves(
            tables, sets.done, sets.ready, i, sets.in_use[i], scratch, max(peak, lower), safe_moves, words
        )
        for m in range(count):
            reached = max(peak, scratch[1, m])
            if reached > budget:
                counters[DROPPED] = min(counters[DROPPED], reached)
                continue
            k, fresh = _child(tables, sets, i, scratch[0, m], new, counters, words)
            if fresh:
                new.in_use[k] = scratch[2, m]
                new.peak[k] = reached
            elif reached < new.peak[k]:
                new.peak[k] = reached
                new.parent[k] = i
                new.move[k] = scratch[0, m]
    at = min(n_sets, at + quota)
    return (DONE if at == n_sets else PAUSED), at


@njit(cache=True)
def _rise(tables, sets, stack, heap_key, heap_set, counters, scratch, top, safe_moves, quota, words):
    """Depth first under the budget; sets with moves that do not fit wait in a heap for a larger one."""
    for _ in range(quota):
        if not counters[STACKED]:
            counters[BUDGET] = max(counters[BUDGET], heap_key[0])
            if counters[BUDGET] >= top:
                return PROVED
            while counters[STOPPED] and heap_key[0] <= counters[BUDGET]:
                stack[counters[STACKED]] = _pop(heap_key, heap_set, counters)
                counters[STACKED] += 1
        if counters[STATES] + scratch.shape[1] > len(sets.in_use):
            return FULL
        counters[STACKED] -= 1
        i = stack[counters[STACKED]]
        complete = True
        for w in range(len(words)):
            complete &= sets.done[i, w] == tables.full[w]
        if complete:
            counters[FOUND] = i
            return SOLVED
        budget = counters[BUDGET]
        count = _moves(tables, sets.done, sets.ready, i, sets.in_use[i], scratch, budget, safe_moves, words)
        over = NO_LIMIT
        for m in range(count):
            if scratch[1, m] > budget:
                over = min(over, scratch[1, m])
        if over < NO_LIMIT:
            _push(heap_key, heap_set, counters, over, i)
        first = counters[STACKED]
        for m in range(count):
            if scratch[1, m] > budget:
                continue
            k, fresh = _child(tables, sets, i, scratch[0, m], sets, counters, words)
            if fresh:
                sets.in_use[k] = scratch[2, m]
                at = counters[STACKED]
                counters[STACKED] += 1
                while at > first and sets.in_use[stack[at - 1]] < scratch[2, m]:
                    stack[at] = stack[at - 1]
                    at -= 1
                stack[at] = k
    return PAUSED


@njit(cache=True)
def _push(heap_key, heap_set, counters, key, i):
    at = counters[STOPPED]
    counters[STOPPED] += 1
    while at and heap_key[(at - 1) // 2] > key:
        up = (at - 1) // 2
        heap_key[at], heap_set[at] = heap_key[up], heap_set[up]
        at = up
    heap_key[at], heap_set[at] = key, i


@njit(cache=True)
def _pop(heap_key, heap_set, counters):
    top = heap_set[0]
    counters[STOPPED] -= 1
    n = counters[STOPPED]
    key, i = heap_key[n], heap_set[n]
    at = 0
    while 2 * at + 1 < n:
        down = 2 * at + 1
        if down + 1 < n and heap_key[down + 1] < heap_key[down]:
            down += 1
        if heap_key[down] >= key:
            break
        heap_key[at], heap_set[at] = heap_key[down], heap_set[down]
        at = down
    heap_key[at], heap_set[at] = key, i
    return top


@njit(cache=True)
def _fill(done, n, table, words):
    top = len(table) - 1
    for i in range(n):
        at = _hash(done, i, words) & top
        while table[at]:
            at = (at + 1) & top
        table[at] = i + 1


def _tables(problem: Problem) -> tuple[Tables, tuple[int, ...]]:
    words = (0,) * max(1, -(-problem.n // 64))
    own = [problem.memories[o] if o >= 0 else None for o in problem.own]
    frees = [free for some in problem.frees for free in some]
    tables = Tables(
        before=_rows(problem.before, words),
        readers=np.array([r for some in problem.after for r in some], np.int64),
        reader_at=_ends([len(some) for some in problem.after]),
        own_size=np.array([m.size if m else 0 for m in own], np.int64),
        starters=_rows([m.starters if m else 0 for m in own], words),
        overwrites=np.array([mask is not None for mask in problem.overwrites], np.bool_),
        needs=_rows([mask or 0 for mask in problem.overwrites], words),
        workspace=np.array(problem.workspace, np.int64),
        touchers=_rows([touchers for touchers, _ in frees], words),
        free_size=np.array([size for _, size in frees], np.int64),
        free_at=_ends([len(some) for some in problem.frees]),
        full=_rows([problem.full], words)[0],
    )
    return tables, words


def _rows(masks, words: tuple[int, ...]) -> Words:
    """Masks as rows of words, `[len(masks), len(words)]`."""
    data = b"".join(mask.to_bytes(8 * len(words), "little") for mask in masks)
    return np.frombuffer(data, "<u8").astype(np.uint64).reshape(-1, len(words))


def _ends(counts: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _empty(capacity: int, words: tuple[int, ...]) -> Sets:
    masks = [np.zeros((capacity, len(words)), np.uint64) for _ in range(2)]
    sizes = [np.zeros(capacity, np.int64) for _ in range(2)]
    numbers = [np.zeros(capacity, np.int32) for _ in range(2)]
    return Sets(*masks, *sizes, *numbers, np.zeros(2 * capacity, np.int32))


def _first(problem: Problem, words: tuple[int, ...]) -> Sets:
    """The empty set alone."""
    sets = _empty(FIRST_CAPACITY, words)
    sets.ready[0] = _rows([problem.first_ready], words)[0]
    sets.in_use[0] = sets.peak[0] = problem.first_bytes
    sets.parent[0] = -1
    _fill(sets.done, 1, sets.table, words)
    return sets


def _grown(sets: Sets, n: int, words: tuple[int, ...]) -> Sets:
    """The same `n` sets with twice the room."""
    capacity = 2 * len(sets.in_use)
    table = np.zeros(2 * capacity, np.int32)
    _fill(sets.done, n, table, words)
    return Sets(*(_wider(a, capacity) for a in sets[:-1]), table)


def _wider(array: NDArray, capacity: int) -> NDArray:
    new = np.zeros((capacity, *array.shape[1:]), array.dtype)
    new[: len(array)] = array
    return new


def _cut(sets: Sets, kept: NDArray[np.intp]) -> Sets:
    """Some of the sets, without a table."""
    return Sets(*(a[kept] for a in sets[:-1]), np.zeros(0, np.int32))
