"""Divide and conquer (Ahn 2020, sec. 3.2), and a lower bound that needs no search.

The paper cuts a network at a single node if every other node comes before or after it. We cut at every downset that
each order passes (a downset is the set of the steps that have run). That includes the downsets before and after such a
node. It also includes others, for example where two nodes both come before two others.

This is exact, because the parts can be solved separately. Each order of the whole is an order of the first part,
followed by an order of the second part. The memory in use at the cut is that of the downset, including tensors that
bypass the cut. `chameleon.serenity.order.problem.pieces` hands this memory to the parts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chameleon.serenity.order.problem import Problem, bits, pieces


def cuts(problem: Problem) -> list[int]:
    """Find the downsets that every order passes, from the empty to the full one.

    Such a downset holds the first steps of any valid order. So it also holds the first steps of 0 .. n - 1. All of its
    steps come before all other steps.
    """
    found, common = [problem.full], problem.full  # common: what comes before all of the steps u .. n - 1
    for u in reversed(range(problem.n)):
        common &= problem.ancestors[u]
        start = (1 << u) - 1
        if common & start == start:
            found.append(start)
    return found[::-1] if problem.n else [0]


def divide(problem: Problem) -> list[Problem]:
    """Split the problem into the parts between the cuts, in the order in which they run."""
    return pieces(problem, [stop.bit_length() for stop in cuts(problem)[1:]])


def node_bound(problem: Problem) -> int:
    """A lower bound for the peak of every order: what any order must hold while it runs some step.

    While step u runs, a memory is in use if two things hold. It is given, or it is started by u or by a step before u.
    And it is kept, or it is touched by u or by a step after u. The memory of u itself is left out if u might overwrite
    an input instead.
    """
    held = np.full(problem.n, problem.constant, np.int64)
    for m in problem.memories:
        started = problem.full if m.given else 0
        for u in bits(0 if m.given else m.starters):
            started |= problem.descendants[u] | 1 << u
        needed = problem.full if m.kept else 0
        for u in bits(0 if m.kept else m.touchers):
            needed |= problem.ancestors[u] | 1 << u
        held[_flags(started & needed, problem.n)] += m.size
    for u, needs in enumerate(problem.overwrites):
        own = problem.own[u]
        maybe_in_place = needs is not None and not needs & (problem.descendants[u] | 1 << u)
        if maybe_in_place and own >= 0 and not problem.memories[own].starters & problem.ancestors[u]:
            held[u] -= problem.memories[own].size
    held += np.array(problem.workspace, np.int64)
    return max(problem.first_bytes, int(held.max(initial=0)))


def _flags(mask: int, n: int) -> NDArray[np.bool_]:
    """The bits of a mask as an array, `[n]`."""
    data = np.frombuffer(mask.to_bytes(-(-n // 8), "little"), np.uint8)
    return np.unpackbits(data, count=n, bitorder="little").astype(bool)
