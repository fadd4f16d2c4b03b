"""Divide and conquer (Ahn 2020, sec. 3.2), and a lower bound that needs no search.

The paper cuts a network at single nodes that all others come before or after. We cut at every downset that each order passes:
those before and after such a node, and also where, say, two nodes both come before two others. Each order of the whole is then
an order of the first part followed by one of the second; the memory in use at the cut, tensors that bypass it included, is that
of the downset (`chameleon.serenity.order.problem.restrict` hands it to the parts). So the parts can be solved apart: this is exact.
"""

from __future__ import annotations

from itertools import pairwise

from chameleon.serenity.order.problem import Problem, restrict


def cuts(problem: Problem) -> list[int]:
    """The downsets that every order passes, from the empty to the full one.

    Such a downset holds the first steps of any valid order, so also of 0 .. n - 1; its steps come before all others.
    """
    found, common = [problem.full], problem.full  # common: what comes before all of the steps u .. n - 1
    for u in reversed(range(problem.n)):
        common &= problem.ancestors[u]
        start = (1 << u) - 1
        if common & start == start:
            found.append(start)
    return found[::-1] if problem.n else [0]


def divide(problem: Problem) -> list[Problem]:
    """The parts between the cuts, in the order in which they run."""
    return [restrict(problem, start, stop) for start, stop in pairwise(cuts(problem))]


def node_bound(problem: Problem) -> int:
    """What any order must hold while it runs some step: no order has a smaller peak.

    While u runs, a memory is in use if it is given or started by u or by what comes before u, and if it is kept or touched by
    u or by what comes after u. u's own is left out if u might overwrite an input instead.
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
