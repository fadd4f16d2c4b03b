"""The problem of placing buffers in memory, as a problem of rectangles.

A rectangle says how long a buffer lives and how large it is, and nothing else. All solvers share this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chameleon.serenity.accounting import Buffer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rectangles:
    """Rectangles to be placed: fixed in time, free in memory.

    Time is cut into sections. A section counts only if its set of live buffers is not contained in the set of a
    neighbour. That is enough, because two buffers that ever meet do so in one of these sections (the maximal cliques
    of the interval graph).

    Attributes:
        size: `[n]`, in units, all > 0.
        start: `[n]`, the first section.
        stop: `[n]`, one past the last section.
        unit_bytes: the unit of sizes and offsets, in bytes: a multiple of the alignment, as large as the sizes allow.
            Counting in units loses nothing: some best placement stacks buffers on one another from 0 on, so its
            offsets are sums of sizes.
    """

    size: Ints
    start: Ints
    stop: Ints
    unit_bytes: int = 1

    def __len__(self) -> int:
        return len(self.size)

    @cached_property
    def n_sections(self) -> int:
        """How many sections of time there are."""
        return int(self.stop.max(initial=0))

    @cached_property
    def loads(self) -> Ints:
        """Units that are live in each section, `[n_sections]`."""
        change = np.zeros(self.n_sections + 1, np.int64)
        np.add.at(change, self.start, self.size)
        np.subtract.at(change, self.stop, self.size)
        return np.cumsum(change)[:-1]

    @property
    def bound(self) -> int:
        """The liveness bound: no placement is lower than this many units."""
        return int(self.loads.max(initial=0))

    @cached_property
    def near(self) -> list[list[int]]:
        """For every rectangle, the rectangles that share a section with it."""
        meets = (self.start[:, None] < self.stop) & (self.start < self.stop[:, None])
        np.fill_diagonal(meets, False)
        return [np.flatnonzero(row).tolist() for row in meets]

    def height(self, offsets: Ints) -> int:
        """How high a placement reaches, in units."""
        return int((offsets + self.size).max(initial=0))

    def part(self, which: Ints) -> Rectangles:
        """Make a smaller problem of the rectangles of these indices, with sections of its own."""
        start, stop = _sections(self.start[which], self.stop[which])
        return Rectangles(self.size[which], start, stop, self.unit_bytes)

    def components(self) -> list[Ints]:
        """Split the rectangles into groups that share no section, and return the indices of each group.

        Each group can be placed by itself.
        """
        spans = np.zeros(self.n_sections + 1, np.int64)  # how many rectangles lie in both section k - 1 and section k
        np.add.at(spans, self.start + 1, 1)
        np.subtract.at(spans, self.stop, 1)
        group = np.cumsum(np.cumsum(spans) == 0)[self.start]
        return [np.flatnonzero(group == g) for g in np.unique(group)]


def rectangles(buffers: Sequence[Buffer], alignment: int) -> Rectangles:
    """Make the problem of placing buffers at multiples of `alignment`.

    Buffers of 0 bytes are left out. Every size is rounded up to a multiple of the alignment, so the size of an arena
    is such a multiple too.
    """
    real = [b for b in buffers if b.size_bytes]
    aligned = np.array([-(-b.size_bytes // alignment) for b in real], np.int64)
    unit = math.gcd(*aligned.tolist()) or 1
    start, stop = _sections(np.array([b.start for b in real], np.int64), np.array([b.stop for b in real], np.int64))
    return Rectangles(aligned // unit, start, stop, unit * alignment)


def _sections(start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """Convert lifetimes from steps to sections.

    A section ends where a buffer ends, if some buffer has begun since the end of the section before.
    """
    begins, ends = np.unique(start), np.unique(stop)
    kept, begun = [], 0  # kept: ends of the sections; begun: how many of `begins` lie in them so far
    for end in ends:
        now = int(np.searchsorted(begins, end))
        if now > begun:
            kept.append(end)
            begun = now
    ends = np.array(kept, np.int64)
    return np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="right")
