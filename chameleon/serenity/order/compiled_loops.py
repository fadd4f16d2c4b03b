"""The inner loops of `chameleon.serenity.order.compiled`.

A set of steps is a row of `words` 64-bit words, one bit for each step.

The kernels stop and return when their arrays are full, or after a number of sets. Python then checks the limits, makes
room and calls them again. One compilation serves all sizes. Compiling for a fixed number of words would save 40% of
the time, but it would take 5 s for each number of words.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chameleon.serenity.order.compiled_tables import (
    BUDGET,
    DONE,
    DROPPED,
    FOUND,
    FULL,
    NO_LIMIT,
    PAUSED,
    PROVED,
    SOLVED,
    STACKED,
    STATES,
    STOPPED,
)
from chameleon.serenity.order.lazy import FINISHED, PASSED_OVER


@njit(cache=True)
def _hash(done, i, words):
    h = np.uint64(0x9E3779B97F4A7C15)
    for w in range(words):
        h = (h ^ done[i, w]) * np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(29)
    h *= np.uint64(0x94D049BB133111EB)
    return np.int64(h >> np.uint64(33))


@njit(cache=True)
def _within(part, i, whole, k, u, words):
    """Whether row i of `part` lies within row k of `whole` together with step u."""
    for w in range(words):
        bit = np.uint64(1) << np.uint64(u & 63) if u >> 6 == w else np.uint64(0)
        if part[i, w] & ~(whole[k, w] | bit):
            return False
    return True


@njit(cache=True)
def _lies_in(part, i, whole, k, words):
    """Whether row i of `part` lies within row k of `whole`."""
    for w in range(words):  # noqa: SIM110 (numba compiles no all())
        if part[i, w] & ~whole[k, w]:
            return False
    return True


@njit(cache=True)
def _meets(one, i, other, k, words):
    """Whether two rows have a one bit in common."""
    for w in range(words):  # noqa: SIM110
        if one[i, w] & other[k, w]:
            return True
    return False


@njit(cache=True)
def _same(one, i, other, k, words):
    same = True
    for w in range(words):
        same &= one[i, w] == other[k, w]
    return same


@njit(cache=True)
def _list(masks, i, numbers, words):
    """Write the positions of the one bits of row i into `numbers`; return how many there are."""
    count = 0
    for w in range(words):
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
    """List all steps that can run in set i, or only the first safe one if there is one.

    Returns how many were listed.
    """
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
    """List the moves of `chameleon.serenity.order.lazy.moves` in set i, or only the first safe one if there is one.

    Returns how many were listed.
    """
    count = _least_sets(tables, done, i, moves, words)
    count = _overwritten_sets(tables, done, i, moves, count, words)
    for m in range(count):
        _price(tables, done, i, in_use, moves, m, words)
        if safe_moves and moves.least[m] and moves.during[m] <= budget and moves.after[m] <= in_use:
            for w in range(words):
                moves.steps[0, w] = moves.steps[m, w]
            moves.during[0], moves.after[0] = moves.during[m], moves.after[m]
            return 1
    return count


@njit(cache=True)
def _missing(tables, e, done, i, moves, row, words):
    """Write what set i lacks of event e into a row of the moves; return whether it lacks anything."""
    some = False
    for w in range(words):
        moves.steps[row, w] = tables.closures[e, w] & ~done[i, w]
        some |= moves.steps[row, w] != 0
    return some


@njit(cache=True)
def _least_sets(tables, done, i, moves, words):
    """Like `chameleon.serenity.order.lazy._least`: fill in steps and freed bytes, return how many sets there are."""
    count = 0
    spare = len(moves.step) - 1
    for e in range(len(tables.closures)):
        if _lies_in(tables.closures, e, done, i, words):
            moves.place[e] = FINISHED
            continue
        at = FINISHED
        for k in range(tables.inside_at[e], tables.inside_at[e + 1]):
            inner = moves.place[tables.inside[k]]
            if inner != FINISHED and at != inner:
                at = inner if at == FINISHED else PASSED_OVER
            if at == PASSED_OVER:
                break
        if at != PASSED_OVER:
            _missing(tables, e, done, i, moves, spare, words)
            if at == FINISHED:
                at, count = _find(moves, count, spare, words)
            elif not moves.least[at] or not _same(moves.steps, at, moves.steps, spare, words):
                at = PASSED_OVER
        if at >= 0:
            moves.freed[at] += tables.event_size[e]
        moves.place[e] = at
    kept = 0
    for k in range(count):
        if moves.least[k]:
            moves.steps[kept], moves.freed[kept] = moves.steps[k], moves.freed[k]
            kept += 1
    moves.least[:kept] = True
    return kept


@njit(cache=True)
def _find(moves, count, spare, words):
    """Find the place of the set in the spare row among the least sets.

    The set is added if no smaller one is there. Otherwise its place is PASSED_OVER, unless the set itself is there.

    Returns the place, and how many sets there are.
    """
    for k in range(count):
        if moves.least[k] and _lies_in(moves.steps, k, moves.steps, spare, words):
            return (k if _same(moves.steps, k, moves.steps, spare, words) else PASSED_OVER), count
    for k in range(count):
        if moves.least[k] and _lies_in(moves.steps, spare, moves.steps, k, words):
            moves.least[k] = False
    moves.steps[count], moves.freed[count], moves.least[count] = moves.steps[spare], 0, True
    return count, count + 1


@njit(cache=True)
def _overwritten_sets(tables, done, i, moves, count, words):
    """Like `chameleon.serenity.order.lazy._overwriting`: add moves, return how many there are then."""
    least, spare, last = count, len(moves.step) - 1, len(moves.step) - 2
    for e in range(len(tables.closures)):
        if _lies_in(tables.overwriters, e, done, i, words):
            continue
        _missing(tables, e, done, i, moves, spare, words)
        known = False
        for w in range(words):
            moves.steps[last, w] = tables.overwriters[e, w] & ~done[i, w]
        for k in range(count):
            known |= _same(moves.steps, k, moves.steps, spare, words)
        for k in range(least):
            if _lies_in(moves.steps, k, moves.steps, spare, words):
                for w in range(words):
                    moves.steps[last, w] &= moves.steps[k, w]
        if known or not _meets(moves.steps, last, moves.steps, last, words):
            continue
        moves.steps[count], moves.freed[count], moves.least[count] = moves.steps[spare], 0, False
        for other in range(len(tables.closures)):
            if _missing(tables, other, done, i, moves, spare, words) and _lies_in(
                moves.steps, spare, moves.steps, count, words
            ):
                moves.freed[count] += tables.event_size[other]
        count += 1
    return count


@njit(cache=True)
def _price(tables, done, i, in_use, moves, m, words):
    """Compute what move m needs, like `chameleon.serenity.order.lazy._move`."""
    seen, spare = len(moves.step) - 2, len(moves.step) - 1
    for w in range(words):
        moves.steps[seen, w] = done[i, w]
        moves.steps[spare, w] = done[i, w] | moves.steps[m, w]
    after, workspace, saved = in_use, 0, 0
    for j in range(_list(moves.steps, m, moves.numbers, words)):
        u = moves.numbers[j]
        if tables.own_size[u] and not _meets(tables.starters, u, moves.steps, seen, words):
            after += tables.own_size[u]
        moves.steps[seen, u >> 6] |= np.uint64(1) << np.uint64(u & 63)
        workspace += tables.workspace[u]
        if (
            tables.overwrites[u]
            and tables.own_size[u] > saved
            and not _meets(tables.descendants, u, moves.steps, m, words)
        ):
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
    """Find the place in `new` of the set that move m makes of set i.

    A set that is not there yet is added. All but its bytes is filled in.

    Returns the place, and whether the set is new.
    """
    n, u = counters[STATES], moves.step[m]
    for w in range(words):
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
        for w in range(words):
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
def round_kernel(tables, sets, n_sets, at, new, counters, moves, budget, lower, safe_moves, quota, words):
    """Do one round of the paper's program, from set `at` on. Doing a set twice does no harm."""
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
def rise_kernel(tables, sets, stack, heap_key, heap_set, counters, moves, top, safe_moves, quota, words):
    """Search depth first under the budget.

    Sets with moves that do not fit wait in a heap for a larger budget.
    """
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
            if fresh:  # keep the new sets sorted: the fewest bytes on top
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
def fill(done, n, table, words):
    """Fill a hash table with the first `n` sets."""
    top = len(table) - 1
    for i in range(n):
        at = _hash(done, i, words) & top
        while table[at]:
            at = (at + 1) & top
        table[at] = i + 1
