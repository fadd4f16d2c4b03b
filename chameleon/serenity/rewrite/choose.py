"""Which of many possible rewrites to apply, when each may help, hurt, or help only together with others."""

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
    """A set of sites and what it gives.

    Attributes:
        chosen: in the order in which the sites were given.
        score: of the chosen set; the first number is its peak.
        before: the score of no site.
        evaluations: how many sets were tried.
        complete: the search ended because nothing was left to try, not because its evaluations were spent.
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
    """The sites to rewrite: a local search, deterministic, with a bounded number of evaluations.

    No single site may lower the peak where two places of a network share it, or where it takes several rewrites in a row to
    get rid of a tensor; and all sites together may raise it. So the search starts from all sites, and from the best of *no
    site* and *all of a group*; puts in or takes out one bundle of `moves` or one site at a time as long as that lowers the
    score; and at the end takes out, in chunks that get smaller, every site without which the peak is the same. What stays is
    therefore needed: a rewrite stays only if the peak falls.

    Args:
        needs: per site all those without which it cannot be applied, those that they need included.
        evaluate: the score of a set that holds with every site what it needs; lower is better. The first number is the
            peak, the others tell apart sets of one peak, so that a step that clears one of two places counts.
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
        """The sites with all that they need."""
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
        """The sites less some and those that need them."""
        gone = set(dropped)
        return frozenset(site for site in sites if site not in gone and not gone & self.needs[site])

    def improved(self, best: frozenset[S]) -> frozenset[S]:
        """Put in or take out one bundle at a time while the score falls."""
        i = unchanged = 0
        while unchanged < len(self.moves) and not self.spent:
            move = self.moves[i % len(self.moves)]
            other = self.without(best, move) if move <= best else best | self.closed(move)
            i, unchanged = i + 1, unchanged + 1
            if self.score(other) < self.score(best):
                best, unchanged = other, 0
        return best

    def thinned(self, best: frozenset[S]) -> frozenset[S]:
        """Take out what the peak does not need: all, then halves, quarters, ... then single sites until none can go."""
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
