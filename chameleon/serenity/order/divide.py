"""Divide and conquer (Ahn 2020, sec. 3.2), and a lower bound that needs no search.

The paper cuts a network at a single node if every other node comes before or after it. We cut at every downset that
each order passes (a downset is the set of the steps that have run). That includes the downsets before and after such a
node. It also includes others, for example where two nodes both come before two others.

This is exact, because the parts can be solved separately. Each order of the whole is an order of the first part,
followed by an order of the second part. The memory in use at the cut is that of the downset, including tensors that
bypass the cut. `chameleon.serenity.order.problem.restrict` hands this memory to the parts.
"""

from __future__ import annotations

from itertools import pairwise

from chameleon.serenity.order.problem import Problem, restrict


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
    return [restrict(problem, start, stop) for start, stop in pairwise(cuts(problem))]


def node_bound(problem: Problem) -> int:
    """A lower bound for the peak of every order: what any order must hold while it runs some step.

    While step u runs, a memory is in use if two things hold. It is given, or it is started by u or by a step before u.
    And it is kept, or it is touched by u or by a step after u. The memory of u itself is left out if u might overwrite
    an input instead.
    """
    bound = problem.first_bytes
    for u in range(problem.n):
        before, later = problem.ancestors[u], problem.descendants[u] | 1 << u
        needs = problem.overwrites[u]
        maybe_in_place = needs is not None and not needs & later
        running = before if maybe_in_place else before | 1 << u
        held = sum(
            m.size for m in problem.memories if (m.given or m.starters & running) and (m.kept or m.touchers & later)
        )
        bound = max(bound, problem.constant + held + problem.workspace[u])
    return bound
