"""Chooses which of many possible rewrites to apply.

Each rewrite may help, hurt, or help only together with others. A place that can be rewritten is called a site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)
Score = tuple[float, ...]

NOT_POSSIBLE: Score = (math.inf,)
"""The score of a set of sites that cannot be rewritten together."""


@dataclass(frozen=True)
class Choice(Generic[S]):
    """A set of sites and what it gains.

    Attributes:
        chosen: the chosen sites, in the order in which the sites were given.
        score: the score of the chosen set. The first number is its peak.
        before: the score of the set without any site.
        evaluations: how many sets were tried.
        complete: whether the search ended because nothing was left to try. Otherwise it had used up its evaluations.
    """

    chosen: tuple[S, ...]
    score: Score
    before: Score
    evaluations: int
    complete: bool


def choose_sites(
    needs: Mapping[S, frozenset[S]],
    evaluate: Callable[[frozenset[S]], Score],
    groups: Iterable[Iterable[S]] = (),
    moves: Iterable[Iterable[S]] = (),
    max_evaluations: int = 256,
    stop: Callable[[], bool] = lambda: False,
) -> Choice[S]:
    """Choose the sites to rewrite by a local search.

    The search is deterministic, and its number of evaluations is bounded.

    A single site may not lower the peak. This happens where two places of a network share the peak, or where it takes
    several rewrites in a row to get rid of a tensor. And all sites together may raise the peak. So the search works in
    these steps:

    1. It starts twice: from all sites, and from the best of *no site*, *all sites* and *all sites of a group*.
    2. It puts in or takes out one bundle of `moves`, or one site, at a time, as long as that lowers the score.
    3. At the end it takes out every site without which the peak is the same. It does so in chunks that get smaller.

    So every site that stays is needed: a rewrite stays only if the peak falls.

    Args:
        needs: for each site, all sites without which it cannot be applied, including the sites that these need.
        evaluate: the score of a set of sites; lower is better. The set holds with every site what that site needs. The
            first number is the peak. The other numbers compare sets of equal peak, so that a step counts even if it
            clears only one of two places that have the peak.
        groups: sets to start from.
        moves: bundles of sites that may only help together.
        max_evaluations: at least 1.
        stop: says that no time is left; no set but that of no site is evaluated any more.
    """
    bundles = [frozenset(move) for move in (*moves, *([site] for site in needs))]
    search = _Search(needs, list(dict.fromkeys(bundles)), evaluate, max_evaluations, stop)
    none: frozenset[S] = frozenset()
    starts = [none, *(search.closed(group) for group in (needs, *groups))]
    starts = [min(starts, key=search.rank), starts[1]]
    best = search.thinned(min((search.improved(start) for start in starts), key=search.rank))
    chosen = tuple(site for site in needs if site in best)
    return Choice(chosen, search.known[best], search.known[none], len(search.known), not search.spent)


@dataclass
class _Search(Generic[S]):
    needs: Mapping[S, frozenset[S]]
    moves: list[frozenset[S]]
    evaluate: Callable[[frozenset[S]], Score]
    max_evaluations: int
    stop: Callable[[], bool]
    known: dict[frozenset[S], Score] = field(default_factory=dict)
    spent: bool = False

    def closed(self, sites: Iterable[S]) -> frozenset[S]:
        """The sites together with all that they need."""
        return frozenset().union(*({site} | self.needs[site] for site in sites))

    def score(self, sites: frozenset[S]) -> Score:
        if sites not in self.known:
            if self.known and (len(self.known) >= self.max_evaluations or self.stop()):
                self.spent = True
                return NOT_POSSIBLE
            self.known[sites] = self.evaluate(sites)
        return self.known[sites]

    def rank(self, sites: frozenset[S]) -> Score:
        return (*self.score(sites), len(sites))

    def without(self, sites: frozenset[S], dropped: Iterable[S]) -> frozenset[S]:
        """The sites without those in `dropped` and without the sites that need them."""
        gone = set(dropped)
        return frozenset(site for site in sites if site not in gone and not gone & self.needs[site])

    def improved(self, best: frozenset[S]) -> frozenset[S]:
        """Put in or take out one bundle at a time, as long as the score falls."""
        i = unchanged = 0
        while unchanged < len(self.moves) and not self.spent:
            move = self.moves[i % len(self.moves)]
            other = self.without(best, move) if move <= best else best | self.closed(move)
            i, unchanged = i + 1, unchanged + 1
            if self.score(other) < self.score(best):
                best, unchanged = other, 0
        return best

    def thinned(self, best: frozenset[S]) -> frozenset[S]:
        """Take out the sites that the peak does not need.

        It tries to take out all of them, then halves, quarters and so on. At the end it tries single sites until none
        can go.
        """
        size = 2 * len(best)
        while size:
            size = max(size // 2, 1)
            before, sites = best, [site for site in self.needs if site in best]
            for start in range(0, len(sites), size):
                fewer = self.without(best, sites[start : start + size])
                if self.score(fewer)[0] <= self.score(best)[0]:
                    best = fewer
            if size == 1 and best == before:
                break
        return best
