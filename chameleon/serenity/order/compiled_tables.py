"""The arrays of the compiled kernels (`chameleon.serenity.order.compiled_loops`). Sets of steps are rows of 64-bit words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chameleon.serenity.order.lazy import events
from chameleon.serenity.order.problem import Problem

Words = NDArray[np.uint64]

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
        closures: `[e, w]` of the events (`chameleon.serenity.order.lazy`); none if moves are single steps.
        event_size: `[e]` bytes that they free.
        overwriters: `[e, w]` the steps that may overwrite that memory.
        inside: the events whose closures lie within another, those of e at `inside_at[e] : inside_at[e + 1]`.
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
        steps: `[m, w]` what runs.
        step: `[m]` the step if it is one, else -1.
        during: `[m]` the most bytes in use.
        after: `[m]` bytes in use after it.
        freed: `[m]` bytes that it frees; of moves of several steps.
        least: `[m]` whether it may be safe (`chameleon.serenity.order.lazy.Move`).
        numbers: `[n]` for the steps of a set.
        place: `[e]` of every event among the moves.
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


def tables_of(problem: Problem, lazy: bool) -> tuple[Tables, int]:
    words = max(1, -(-problem.n // 64))
    own = [problem.memories[o] if o >= 0 else None for o in problem.own]
    frees = [free for some in problem.frees for free in some]
    table = events(problem) if lazy else []
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
    """Masks as rows of words, `[len(masks), words]`."""
    data = b"".join(mask.to_bytes(8 * words, "little") for mask in masks)
    return np.frombuffer(data, "<u8").astype(np.uint64).reshape(-1, words)


def _ends(counts: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def empty(capacity: int, words: int) -> Sets:
    done, ready = (np.zeros((capacity, words), np.uint64) for _ in range(2))
    in_use, peak = (np.zeros(capacity, np.int64) for _ in range(2))
    parent, move = (np.zeros(capacity, np.int32) for _ in range(2))
    return Sets(done, ready, in_use, peak, parent, move, np.zeros(2 * capacity, np.int32))
