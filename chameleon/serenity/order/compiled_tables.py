"""The arrays of the compiled kernels (`chameleon.serenity.order.compiled_loops`).

A set of steps is a row of 64-bit words, one bit for each step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chameleon.serenity.order.lazy import events
from chameleon.serenity.order.problem import Problem

Words = NDArray[np.uint64]

NO_LIMIT = 1 << 62
DONE, FULL, PAUSED, SOLVED, PROVED = range(5)  # what a kernel returns
STATES, STACKED, STOPPED, BUDGET, FOUND, DROPPED = range(6)  # places in the counters


class Tables(NamedTuple):
    """A problem as arrays: `n` steps, with masks of `w` words.

    Attributes:
        before: `[n, w]` direct predecessors.
        readers: direct successors of all steps. Those of step u are at `reader_at[u] : reader_at[u + 1]`.
        reader_at: `[n + 1]`.
        own_size: `[n]` size of the memory that a step may start, 0 if none.
        starters: `[n, w]` all steps that may start this memory.
        overwrites: `[n]` whether the step may overwrite an input.
        needs: `[n, w]` the steps that must have run before it can overwrite that input.
        workspace: `[n]` bytes.
        touchers: `[f, w]` the touchers of the memories that steps may free. The memories of step u are at
            `free_at[u] : free_at[u + 1]`.
        free_size: `[f]` the sizes of these memories.
        free_at: `[n + 1]`.
        full: `[1, w]` all steps.
        descendants: `[n, w]` the steps that must run after a step.
        closures: `[e, w]` closures of the events (`chameleon.serenity.order.lazy`); none if moves are single steps.
        event_size: `[e]` bytes that the events free.
        overwriters: `[e, w]` the steps that may overwrite the memory that an event frees.
        inside: for every event, the events whose closures lie within its closure. Those of event e are at
            `inside_at[e] : inside_at[e + 1]`.
        inside_at: `[e + 1]`.
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
    overwriters: Words
    inside: NDArray[np.int64]
    inside_at: NDArray[np.int64]


class Moves(NamedTuple):
    """Room for the moves of one set, with two rows to spare.

    Attributes:
        steps: `[m, w]` the steps that the move runs.
        step: `[m]` the step if the move is a single one, else -1.
        during: `[m]` the most bytes in use while it runs.
        after: `[m]` bytes in use after it.
        freed: `[m]` bytes that it frees; used for moves of several steps.
        least: `[m]` whether it may be safe (`chameleon.serenity.order.lazy.Move`).
        numbers: `[n]` room to list the steps of a set.
        place: `[e]` the place of every event among the moves.
    """

    steps: Words
    step: NDArray[np.int64]
    during: NDArray[np.int64]
    after: NDArray[np.int64]
    freed: NDArray[np.int64]
    least: NDArray[np.bool_]
    numbers: NDArray[np.int64]
    place: NDArray[np.int64]


class Sets(NamedTuple):
    """Downsets in arrays of some capacity `c`, with a hash table of `h` places.

    Attributes:
        done: `[c, w]` the steps that have run.
        ready: `[c, w]` the steps that can run.
        in_use: `[c]` bytes in use.
        peak: `[c]` the least peak found on the way to the set; used in `rounds` only.
        parent: `[c]` the set before.
        move: `[c]` the step that led here, -1 if there were several.
        table: `[h]` index of a set + 1, or 0 if the place is empty.
    """

    done: Words
    ready: Words
    in_use: NDArray[np.int64]
    peak: NDArray[np.int64]
    parent: NDArray[np.int32]
    move: NDArray[np.int32]
    table: NDArray[np.int32]


def tables_of(problem: Problem, lazy: bool, deadline_s: float = math.inf) -> tuple[Tables, int]:
    """Convert a problem to arrays; also return the number of words of a mask.

    Raises:
        OutOfTimeError: if the deadline, in the time of `time.perf_counter`, passes before.
    """
    words = max(1, -(-problem.n // 64))
    own = [problem.memories[o] if o >= 0 else None for o in problem.own]
    frees = [free for some in problem.frees for free in some]
    table = events(problem, deadline_s) if lazy else []
    tables = Tables(
        before=rows(problem.before, words),
        readers=np.array([r for some in problem.after for r in some], np.int64),
        reader_at=_ends([len(some) for some in problem.after]),
        own_size=np.array([m.size if m else 0 for m in own], np.int64),
        starters=rows([m.starters if m else 0 for m in own], words),
        overwrites=np.array([mask is not None for mask in problem.overwrites], np.bool_),
        needs=rows([mask or 0 for mask in problem.overwrites], words),
        workspace=np.array(problem.workspace, np.int64),
        touchers=rows([touchers for touchers, _ in frees], words),
        free_size=np.array([size for _, size in frees], np.int64),
        free_at=_ends([len(some) for some in problem.frees]),
        full=rows([problem.full], words),
        descendants=rows(problem.descendants, words),
        closures=rows([event.closure for event in table], words),
        event_size=np.array([event.size for event in table], np.int64),
        overwriters=rows([event.overwriters for event in table], words),
        inside=np.array([i for event in table for i in event.inside], np.int64),
        inside_at=_ends([len(event.inside) for event in table]),
    )
    return tables, words


def room(problem: Problem, tables: Tables, words: int) -> Moves:
    """Make room for the moves of one set."""
    rows = max(problem.n, 2 * len(tables.closures)) + 2
    step, during, after, freed = (np.zeros(rows, np.int64) for _ in range(4))
    steps, least = np.zeros((rows, words), np.uint64), np.zeros(rows, np.bool_)
    return Moves(
        steps,
        step,
        during,
        after,
        freed,
        least,
        np.zeros(problem.n, np.int64),
        np.zeros(len(tables.closures), np.int64),
    )


def rows(masks: Sequence[int], words: int) -> Words:
    """Convert masks to rows of words, `[len(masks), words]`."""
    data = b"".join(mask.to_bytes(8 * words, "little") for mask in masks)
    return np.frombuffer(data, "<u8").astype(np.uint64).reshape(-1, words)


def _ends(counts: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def empty(capacity: int, words: int) -> Sets:
    """Make arrays for `capacity` sets, without any set in them."""
    done, ready = (np.zeros((capacity, words), np.uint64) for _ in range(2))
    in_use, peak = (np.zeros(capacity, np.int64) for _ in range(2))
    parent, move = (np.zeros(capacity, np.int32) for _ in range(2))
    return Sets(done, ready, in_use, peak, parent, move, np.zeros(2 * capacity, np.int32))
