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
from chameleon.serenity.lazy import events, unfold
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
        full: `[1, w]` all steps.
        descendants: `[n, w]` what must run after a step.
        closures: `[e, w]` of the events (`chameleon.serenity.lazy`); none if moves are single steps.
        event_size: `[e]` bytes that they free.
        overwritten: `[e]` whether a step may overwrite that memory.
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
    descendants: Words
    closures: Words
    event_size: NDArray[np.int64]
    overwritten: NDArray[np.bool_]


class Moves(NamedTuple):
    """Room for the moves of one set, with two rows to spare.

    Attributes:
        steps: `[m, w]` what runs.
        step: `[m]` the step if it is one, else -1.
        during: `[m]` the most bytes in use.
        after: `[m]` bytes in use after it.
        freed: `[m]` bytes that it frees; of moves of several steps.
        least: `[m]` whether it may be safe (`chameleon.serenity.lazy.Move`).
        numbers: `[n]` for the steps of a set.
    """

    steps: Words
    step: NDArray[np.int64]
    during: NDArray[np.int64]
    after: NDArray[np.int64]
    freed: NDArray[np.int64]
    least: NDArray[np.bool_]
    numbers: NDArray[np.int64]


class Sets(NamedTuple):
    """Downsets in arrays of some capacity `c`, with a hash table of `h` places.

    Attributes:
        done: `[c, w]` the steps that have run.
        ready: `[c, w]` the steps that can run.
        in_use: `[c]` bytes.
        peak: `[c]` the least found to get there (`rounds`), or unused.
        parent: `[c]` the set before.
        move: `[c]` the step that led here, -1 if several.
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
    tables, words = _tables(problem, lazy=False)
    budget = int(min(budget, NO_LIMIT))
    sets, n_sets, total = _first(problem, words), 1, 1
    trail: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    counters = np.zeros(6, np.int64)
    counters[DROPPED] = NO_LIMIT
    scratch = _room(problem, tables, words)
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
    problem: Problem,
    *,
    budget: int = 0,
    upper: int | None = None,
    safe_moves: bool = True,
    lazy: bool = True,
    limits: Limits = Limits(),
) -> Outcome:
    """See `chameleon.serenity.dp.rise`."""
    tables, words = _tables(problem, lazy)
    sets = _first(problem, words)
    stack, heap_key, heap_set = (np.zeros(FIRST_CAPACITY, kind) for kind in (np.int32, np.int64, np.int32))
    counters = np.array([1, 1, 0, max(budget, problem.first_bytes), 0, 0], np.int64)
    scratch = _room(problem, tables, words)
    top = NO_LIMIT if upper is None else upper
    quota = max(1, QUOTA // (problem.n if lazy else 1))
    while True:
        status = _rise(tables, sets, stack, heap_key, heap_set, counters, scratch, top, safe_moves, quota, words)
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
    """The order that led to set i."""
    order: list[int] = []
    while sets.parent[i] >= 0:
        after, before = (int.from_bytes(sets.done[k].astype("<u8").tobytes(), "little") for k in (i, sets.parent[i]))
        order[:0] = unfold(problem, before, after & ~before)
        i = sets.parent[i]
    return tuple(order)


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
def _lies_in(part, i, whole, k, words):
    for w in range(len(words)):
        if part[i, w] & ~whole[k, w]:
            return False
    return True


@njit(cache=True, inline="always")
def _meets(one, i, other, k, words):
    for w in range(len(words)):
        if one[i, w] & other[k, w]:
            return True
    return False


@njit(cache=True, inline="always")
def _same(one, i, other, k, words):
    same = True
    for w in range(len(words)):
        same &= one[i, w] == other[k, w]
    return same


@njit(cache=True)
def _list(masks, i, numbers, words):
    """The positions of the ones of row i into `numbers`; returns how many."""
    count = 0
    for w in range(len(words)):
        left = masks[i, w]
        u = w * 64
        while left:
            while not left & np.uint64(0xFF):
                left >>= np.uint64(8)
                u += 8
            if left & np.uint64(1):
                numbers[count] = u
                count += 1
            left >>= np.uint64(1)
            u += 1
    return count


@njit(cache=True)
def _single_steps(tables, done, ready, i, in_use, moves, budget, safe_moves, words):
    """All steps that can run in set i; the first safe one alone if there is one. Returns how many."""
    count = _list(ready, i, moves.numbers, words)
    for m in range(count):
        u = moves.numbers[m]
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
        at = 0 if safe_moves and during <= budget and after <= in_use else m
        moves.step[at], moves.during[at], moves.after[at] = u, during, after
        if at < m or (at == m == 0 and safe_moves and during <= budget and after <= in_use):
            return 1
    return count


@njit(cache=True)
def _lazy_moves(tables, done, i, in_use, moves, budget, safe_moves, words):
    """The moves of `chameleon.serenity.lazy.moves` in set i; the first safe one alone if there is one. Returns how many."""
    count = _least_sets(tables, done, i, moves, words)
    count = _overwritten_sets(tables, done, i, moves, count, words)
    for m in range(count):
        _price(tables, done, i, in_use, moves, m, words)
        if safe_moves and moves.least[m] and moves.during[m] <= budget and moves.after[m] <= in_use:
            for w in range(len(words)):
                moves.steps[0, w] = moves.steps[m, w]
            moves.during[0], moves.after[0] = moves.during[m], moves.after[m]
            return 1
    return count


@njit(cache=True)
def _least_sets(tables, done, i, moves, words):
    """What is missing of events within which nothing smaller is missing, and what it frees."""
    count = 0
    spare = len(moves.step) - 1
    nothing = np.zeros((1, len(words)), np.uint64)
    for e in range(len(tables.closures)):
        for w in range(len(words)):
            moves.steps[spare, w] = tables.closures[e, w] & ~done[i, w]
        if _same(moves.steps, spare, nothing, 0, words):
            continue
        wanted = True
        for k in range(count):
            if _lies_in(moves.steps, k, moves.steps, spare, words):
                if _same(moves.steps, k, moves.steps, spare, words):
                    moves.freed[k] += tables.event_size[e]
                wanted = False
                break
        if not wanted:
            continue
        k = 0
        while k < count:
            if _lies_in(moves.steps, spare, moves.steps, k, words):
                count -= 1
                moves.steps[k], moves.freed[k] = moves.steps[count], moves.freed[count]
            else:
                k += 1
        moves.steps[count], moves.freed[count] = moves.steps[spare], tables.event_size[e]
        count += 1
    moves.least[:count] = True
    return count


@njit(cache=True)
def _overwritten_sets(tables, done, i, moves, count, words):
    """Adds the missing sets of memories that may be overwritten."""
    spare = len(moves.step) - 1
    for e in range(len(tables.closures)):
        if not tables.overwritten[e]:
            continue
        for w in range(len(words)):
            moves.steps[spare, w] = tables.closures[e, w] & ~done[i, w]
        known = _lies_in(tables.closures, e, done, i, words)
        for k in range(count):
            known |= _same(moves.steps, k, moves.steps, spare, words)
        if known:
            continue
        freed = 0
        for other in range(len(tables.closures)):
            if _lies_in(tables.closures, other, done, i, words):
                continue
            inside = True
            for w in range(len(words)):
                inside &= not tables.closures[other, w] & ~done[i, w] & ~moves.steps[spare, w]
            if inside:
                freed += tables.event_size[other]
        moves.steps[count], moves.freed[count], moves.least[count] = moves.steps[spare], freed, False
        count += 1
    return count


@njit(cache=True)
def _price(tables, done, i, in_use, moves, m, words):
    """What move m needs: `chameleon.serenity.lazy._move`."""
    seen, spare = len(moves.step) - 2, len(moves.step) - 1
    for w in range(len(words)):
        moves.steps[seen, w] = done[i, w]
        moves.steps[spare, w] = done[i, w] | moves.steps[m, w]
    after, workspace, saved = in_use, 0, 0
    for j in range(_list(moves.steps, m, moves.numbers, words)):
        u = moves.numbers[j]
        if tables.own_size[u] and not _meets(tables.starters, u, moves.steps, seen, words):
            after += tables.own_size[u]
        moves.steps[seen, u >> 6] |= np.uint64(1) << np.uint64(u & 63)
        workspace += tables.workspace[u]
        if tables.overwrites[u] and tables.own_size[u] > saved and not _meets(tables.descendants, u, moves.steps, m, words):
            bit = np.uint64(1) << np.uint64(u & 63)
            moves.steps[spare, u >> 6] &= ~bit
            if _lies_in(tables.needs, u, moves.steps, spare, words) and not _meets(
                tables.starters, u, moves.steps, spare, words
            ):
                saved = tables.own_size[u]
            moves.steps[spare, u >> 6] |= bit
    moves.step[m], moves.during[m], moves.after[m] = -1, after - saved + workspace, after - moves.freed[m]


@njit(cache=True)
def _child(tables, source, i, moves, m, new, counters, words):
    """The place of set i and move m in `new`; if it is not there yet it is added, except for its bytes, and the second is True."""
    n, u = counters[STATES], moves.step[m]
    for w in range(len(words)):
        new.done[n, w] = source.done[i, w] | (moves.steps[m, w] if u < 0 else np.uint64(0))
    if u >= 0:
        new.done[n, u >> 6] |= np.uint64(1) << np.uint64(u & 63)
    top = len(new.table) - 1
    at = _hash(new.done, n, words) & top
    while new.table[at]:
        if _same(new.done, new.table[at] - 1, new.done, n, words):
            return new.table[at] - 1, False
        at = (at + 1) & top
    new.table[at] = n + 1
    if u >= 0:
        for w in range(len(words)):
            new.ready[n, w] = source.ready[i, w]
        new.ready[n, u >> 6] &= ~(np.uint64(1) << np.uint64(u & 63))
        for r in range(tables.reader_at[u], tables.reader_at[u + 1]):
            reader = tables.readers[r]
            if _lies_in(tables.before, reader, new.done, n, words):
                new.ready[n, reader >> 6] |= np.uint64(1) << np.uint64(reader & 63)
    new.parent[n] = i
    new.move[n] = u
    counters[STATES] = n + 1
    return n, True


@njit(cache=True)
def _round(tables, sets, n_sets, at, new, counters, moves, budget, lower, safe_moves, quota, words):
    """One round of the paper's program, from set `at` on. Doing a set twice does no harm."""
    for i in range(at, min(n_sets, at + quota)):
        if counters[STATES] + len(moves.step) > len(new.in_use):
            return FULL, i
        peak = sets.peak[i]
        room = max(peak, lower)
        count = _single_steps(tables, sets.done, sets.ready, i, sets.in_use[i], moves, room, safe_moves, words)
        for m in range(count):
            reached = max(peak, moves.during[m])
            if reached > budget:
                counters[DROPPED] = min(counters[DROPPED], reached)
                continue
            k, fresh = _child(tables, sets, i, moves, m, new, counters, words)
            if fresh:
                new.in_use[k] = moves.after[m]
                new.peak[k] = reached
            elif reached < new.peak[k]:
                new.peak[k] = reached
                new.parent[k] = i
                new.move[k] = moves.step[m]
    at = min(n_sets, at + quota)
    return (DONE if at == n_sets else PAUSED), at


@njit(cache=True)
def _rise(tables, sets, stack, heap_key, heap_set, counters, moves, top, safe_moves, quota, words):
    """Depth first under the budget; sets with moves that do not fit wait in a heap for a larger one."""
    for _ in range(quota):
        if not counters[STACKED]:
            counters[BUDGET] = max(counters[BUDGET], heap_key[0])
            if counters[BUDGET] >= top:
                return PROVED
            while counters[STOPPED] and heap_key[0] <= counters[BUDGET]:
                stack[counters[STACKED]] = _pop(heap_key, heap_set, counters)
                counters[STACKED] += 1
        if counters[STATES] + len(moves.step) > len(sets.in_use):
            return FULL
        counters[STACKED] -= 1
        i, budget = stack[counters[STACKED]], counters[BUDGET]
        if _lies_in(tables.full, 0, sets.done, i, words):
            counters[FOUND] = i
            return SOLVED
        if len(tables.closures):
            count = _lazy_moves(tables, sets.done, i, sets.in_use[i], moves, budget, safe_moves, words)
        else:
            count = _single_steps(tables, sets.done, sets.ready, i, sets.in_use[i], moves, budget, safe_moves, words)
        over = NO_LIMIT
        for m in range(count):
            if moves.during[m] > budget:
                over = min(over, moves.during[m])
        if over < NO_LIMIT:
            _push(heap_key, heap_set, counters, over, i)
        first = counters[STACKED]
        for m in range(count):
            if moves.during[m] > budget:
                continue
            k, fresh = _child(tables, sets, i, moves, m, sets, counters, words)
            if fresh:  # the set with the fewest bytes on top
                sets.in_use[k] = moves.after[m]
                at = counters[STACKED]
                counters[STACKED] += 1
                while at > first and sets.in_use[stack[at - 1]] < moves.after[m]:
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


def _tables(problem: Problem, lazy: bool) -> tuple[Tables, tuple[int, ...]]:
    words = (0,) * max(1, -(-problem.n // 64))
    own = [problem.memories[o] if o >= 0 else None for o in problem.own]
    frees = [free for some in problem.frees for free in some]
    table = events(problem) if lazy else []
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
        full=_rows([problem.full], words),
        descendants=_rows(problem.descendants, words),
        closures=_rows([event.closure for event in table], words),
        event_size=np.array([event.size for event in table], np.int64),
        overwritten=np.array([event.overwritten for event in table], np.bool_),
    )
    return tables, words


def _room(problem: Problem, tables: Tables, words: tuple[int, ...]) -> Moves:
    rows = max(problem.n, 2 * len(tables.closures)) + 2
    numbers = [np.zeros(rows, np.int64) for _ in range(4)]
    return Moves(np.zeros((rows, len(words)), np.uint64), *numbers, np.zeros(rows, np.bool_), np.zeros(problem.n, np.int64))


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
