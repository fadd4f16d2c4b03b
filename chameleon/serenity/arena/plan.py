"""Plans the arena: one piece of memory for all tensors.

Each buffer gets its place in the arena, the offset. Buffers that are in use at the same time must not overlap.

No arena is smaller than the most that is live at any time (the liveness bound). Whether an arena can be as small as
that is an NP-hard question (dynamic storage allocation). SERENITY leaves it to the greedy allocator of TFLite (Ahn
2020, sec. 4), which may need more. Here the planner starts with a greedy placement, goes on with a local search, and
then with an exact search. It stops when the bound is reached.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from importlib.util import find_spec

import numpy as np

from chameleon.errors import ChameleonError, UsageError, unknown
from chameleon.serenity.accounting import Buffer
from chameleon.serenity.arena.greedy import greedy, improved
from chameleon.serenity.arena.problem import Ints, rectangles

METHODS = ("auto", "greedy", "improved", "exact")
SEED = 20200302
IMPROVED_SHARE, WITHOUT_NUMBA = 0.01, 0.3
"""The part of the time that the local search may take before the exact search. `WITHOUT_NUMBA` is the part if numba is
not installed, because the exact search is fast only with numba.
"""


class ArenaError(ChameleonError):
    """Buffers that cannot be placed, or a placement that is wrong. The message names the buffers."""


@dataclass(frozen=True)
class Arena:
    """A placement of buffers.

    Attributes:
        offsets: in bytes, by the names of the buffers; multiples of the alignment. A buffer of 0 bytes lies at 0.
        size_bytes: size of the arena, a multiple of the alignment.
        bound_bytes: the liveness bound: the most that is live at any time, each buffer rounded up to the alignment.
        least_bytes: no arena is smaller than this. It is the liveness bound, or more if the exact search found that
            out.
        method: what found the placement: `greedy`, `improved` or `exact`.
        seconds: how long it took.
    """

    offsets: Mapping[str, int] = field(repr=False)
    size_bytes: int
    bound_bytes: int
    least_bytes: int
    method: str
    seconds: float

    @property
    def proven(self) -> bool:
        """Whether no smaller arena exists."""
        return self.size_bytes == self.least_bytes

    @property
    def over_bound(self) -> float:
        """How far the arena is above the liveness bound, as a share of the bound: 0.02 is 2 % more."""
        return self.size_bytes / self.bound_bytes - 1 if self.bound_bytes else 0.0


def plan_arena(
    buffers: Sequence[Buffer],
    *,
    alignment: int = 64,
    method: str = "auto",
    time_limit_s: float = 10.0,
    capacity_bytes: int | None = None,
    rng: np.random.Generator | None = None,
) -> Arena:
    """Place buffers in an arena that is as small as possible, or that fits into a capacity.

    Args:
        buffers: with their lifetimes, as from `chameleon.serenity.accounting.lifetimes`.
        alignment: in bytes; offsets are multiples of it.
        method: `greedy`; `improved`: greedy, then a local search; `exact`: greedy, then a search that can prove that
            no arena is smaller; `auto`: all of these in turn. Each of them ends when the liveness bound is reached.
        time_limit_s: after this time the best placement so far is the result. The exact search may take a little
            longer. Loading the compiler is not counted. Compiling, which happens the first time on a machine, is not
            counted either.
        capacity_bytes: end as soon as the arena is not larger than this. The arena may still turn out larger; then
            `least_bytes` says whether it has to be.
        rng: of the searches; by default one with a fixed seed.

    Raises:
        UsageError: if a method, alignment, time limit or capacity makes no sense.
        ArenaError: if a buffer has a negative size or an empty lifetime, or two buffers have the same name.
    """
    start = time.perf_counter()
    _check_options(method, alignment, time_limit_s, capacity_bytes)
    _check_buffers(buffers)
    problem = rectangles(buffers, alignment)
    target = max(problem.bound, 0 if capacity_bytes is None else capacity_bytes // problem.unit_bytes)
    deadline_s = start + time_limit_s
    rng = np.random.default_rng(SEED) if rng is None else rng
    offsets, least, found_by = greedy(problem, target), problem.bound, "greedy"
    height = problem.height(offsets)

    def better(new: Ints, name: str) -> None:
        nonlocal offsets, height, found_by
        if problem.height(new) < height:
            offsets, height, found_by = new, problem.height(new), name

    if height > target and method in ("auto", "improved"):
        share = 1.0 if method == "improved" else IMPROVED_SHARE if find_spec("numba") else WITHOUT_NUMBA
        better(improved(problem, target, start + share * time_limit_s, rng), "improved")
    if height > target and method in ("auto", "exact"):
        before = time.perf_counter()
        from chameleon.serenity.arena.exact import exact, load

        load()
        new, least = exact(problem, offsets, target, deadline_s + time.perf_counter() - before, rng)
        better(new, "exact")
    real = [b.name for b in buffers if b.size_bytes]
    places = dict.fromkeys((b.name for b in buffers), 0) | dict(
        zip(real, (offsets * problem.unit_bytes).tolist(), strict=True)
    )
    size_bytes, bound_bytes, least_bytes = (units * problem.unit_bytes for units in (height, problem.bound, least))
    arena = Arena(places, size_bytes, bound_bytes, least_bytes, found_by, time.perf_counter() - start)
    check_arena(buffers, arena, alignment=alignment)
    return arena


def check_arena(buffers: Sequence[Buffer], arena: Arena, *, alignment: int = 1) -> None:
    """Check a placement. This shares no code with the solvers.

    Raises:
        ArenaError: if a buffer has no offset, an offset is negative or not aligned, a buffer ends beyond the arena, or
            two buffers overlap that are live at the same time. The message names the buffers.
    """
    for b in buffers:
        if b.name not in arena.offsets:
            raise ArenaError(f"buffer {b.name!r} has no offset in the arena")
        offset = arena.offsets[b.name]
        if offset < 0 or offset % alignment:
            raise ArenaError(f"buffer {b.name!r}: expected an offset that is a multiple of {alignment}, got {offset}")
        if offset + b.size_bytes > arena.size_bytes:
            raise ArenaError(
                f"buffer {b.name!r} ends at byte {offset + b.size_bytes} of an arena of {arena.size_bytes}"
            )
    _check_overlaps(buffers, arena)


def _check_overlaps(buffers: Sequence[Buffer], arena: Arena) -> None:
    """Go through the buffers as they start. Those that are live do not overlap, so only the nearest two can be hit."""
    live: list[tuple[int, int, str]] = []  # offset, place in `real`, name; sorted
    ends: list[tuple[int, int]] = []  # a heap: when a live buffer stops, its place in `real`
    real = sorted((b for b in buffers if b.size_bytes), key=lambda b: b.start)
    for i, b in enumerate(real):
        while ends and ends[0][0] <= b.start:
            gone = heappop(ends)[1]
            del live[bisect_left(live, (arena.offsets[real[gone].name], gone, ""))]
        at = bisect_left(live, (arena.offsets[b.name], i, b.name))
        for _, other, _ in live[max(at - 1, 0) : at + 1]:
            _check_apart(real[other], b, arena)
        live.insert(at, (arena.offsets[b.name], i, b.name))
        heappush(ends, (b.stop, i))


def _check_apart(one: Buffer, other: Buffer, arena: Arena) -> None:
    (low, high), (other_low, other_high) = (
        (arena.offsets[b.name], arena.offsets[b.name] + b.size_bytes) for b in (one, other)
    )
    if low < other_high and other_low < high:
        raise ArenaError(
            f"buffers {one.name!r} (bytes {low} to {high}, steps {one.start} to {one.stop}) "
            f"and {other.name!r} (bytes {other_low} to {other_high}, steps {other.start} to {other.stop}) "
            "overlap in the arena"
        )


def _check_options(method: str, alignment: int, time_limit_s: float, capacity_bytes: int | None) -> None:
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if alignment < 1:
        raise UsageError(f"expected an alignment of at least 1 byte, got {alignment}")
    if not time_limit_s > 0:
        raise UsageError(f"expected a time limit above 0 s, got {time_limit_s}")
    if capacity_bytes is not None and capacity_bytes < 0:
        raise UsageError(f"expected a capacity of at least 0 bytes, got {capacity_bytes}")


def _check_buffers(buffers: Sequence[Buffer]) -> None:
    seen: set[str] = set()
    for b in buffers:
        if b.name in seen:
            raise ArenaError(f"two buffers are called {b.name!r}; names must be unique")
        seen.add(b.name)
        if b.size_bytes < 0:
            raise ArenaError(f"buffer {b.name!r}: expected a size of at least 0 bytes, got {b.size_bytes}")
        if b.stop <= b.start:
            raise ArenaError(
                f"buffer {b.name!r}: expected `stop` to be after step {b.start}, where it starts, got {b.stop}"
            )
