"""Likelihood-free Bayesian optimisation: a forest says which configurations are among the best, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search.history import History
from chameleon.search.moves import Moves, unique_rows
from chameleon.search.planners import View
from chameleon.search.ranges import AtLeastZero, Count, SomeShare, Whole, check_ranges
from chameleon.search.space import Digits, KnobSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LfboConfig:
    """Settings of LFBO. Where ours differ from those of Helion's autotuner, a comment says so."""

    first: Count = 16  # random trials before the forest is asked (Helion: 100, or 30 where it is to be quick)
    batch: Count = 8  # configurations in a plan (Helion: a tenth of its candidates, up to 150)
    good: SomeShare = 0.1  # this share of the successful trials is good
    trees: Count = 50  # in the forest (Helion: 100)
    copies: Count = 5  # candidates lie around this many of the best trials
    neighbours: Count = 100  # random neighbours of each of them (Helion: 300)
    radius: Count = 2  # most changes of one knob each that lead to a neighbour
    random: Whole = 256  # candidates from anywhere (Helion: none)
    penalty: AtLeastZero = 0.25  # weight of the similarity to what was picked before (Helion: 1)
    newest: Count = 2000  # learn from the newest trials, so many of them, and from all good ones (Helion: all)

    def __post_init__(self) -> None:
        check_ranges(self)


class LfboPlanner:
    """LFBO (Song 2022, "A General Recipe for Likelihood-free Bayesian Optimization"), as Helion's autotuner has it.

    A random forest learns to tell the good trials from the others, where a good one counts as much as it improves.
    Candidates are neighbours of the best and random ones. Those with the best chance to be good are picked, but not
    those that fall into the same leaves as the picks before them. Failures and refusals are trials that are not good.

    We differ: improvement is one of relative throughput, not of time. Each plan starts at the best trials of all; in
    Helion some descents go on apart. In Song's loss a good trial counts as one that is not good, too.
    """

    def __init__(self, space: KnobSpace, config: LfboConfig) -> None:
        self._moves = Moves(space)
        self._config = config

    def plan(self, view: View) -> Digits:
        config, history = self._config, view.history
        if history.measured < config.first or history.best is None:
            return view.draw(config.batch)
        candidates = self._candidates(view)
        forest = self._forest(history, int(view.rng.integers(1 << 31)))
        if not len(candidates) or len(forest.classes_) < 2:  # all trials are alike
            return view.draw(config.batch)
        features = view.space.features(candidates)
        chance = np.asarray(forest.predict_proba(features))[:, 1]
        return candidates[diverse(chance, np.asarray(forest.apply(features)), config.batch, config.penalty)]

    def _candidates(self, view: View) -> Digits:
        """New valid configurations: random neighbours of the best trials, and random ones, `[m, n_knobs]`."""
        config, rng = self._config, view.rng
        points = np.repeat(view.ranked(config.copies), config.neighbours, axis=0)
        points = points[view.space.is_valid(points)]
        anywhere = view.space.sample(config.random, rng)
        found = [anywhere[view.space.is_valid(anywhere)]]
        for _ in range(config.radius):
            near = rng.random(len(points)) < 0.5
            points = np.where(near[:, None], self._moves.nudge(points, rng), self._moves.mutate(points, rng))
            found.append(points)
        return unique_rows(np.vstack(found), view.known)

    def _forest(self, history: History, seed: int) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        prior, config = history.prior, self._config
        configs = np.vstack([prior.configs, history.configs])
        throughput = np.concatenate([prior.throughput, history.throughput()])
        worked = np.concatenate([prior.throughput > 0, history.succeeded])
        weights = utility(throughput, worked, config.good)
        newest = np.arange(len(configs)) >= len(configs) - config.newest
        rows = np.flatnonzero(newest | (weights > 0))
        forest = RandomForestClassifier(config.trees, criterion="log_loss", random_state=seed, n_jobs=1)
        good = weights[rows] > 0
        return forest.fit(history.space.features(configs[rows]), good, np.where(good, weights[rows], 1.0))

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The history is all the state there is."""


def utility(throughput: Floats, worked: NDArray[np.bool_], share: float) -> Floats:
    """What each trial improves on the threshold of the good, `[n]`; 0 where it does not (Song 2022, sec. 4.1: EI).

    The mean over the good ones is 1. As in Helion, one that lies at the threshold counts a little.

    Args:
        throughput: `[n]`.
        worked: which trials count for the threshold, `[n]`, at least one.
        share: of the working trials that is good.
    """
    threshold = np.quantile(throughput[worked], 1 - share)
    good = worked & (throughput >= threshold)
    gain = np.where(good, np.maximum(throughput - threshold, 1e-5), 0.0)
    return gain / gain[good].mean()


def diverse(chance: Floats, leaves: NDArray[np.int64], n: int, penalty: float) -> NDArray[np.int64]:
    """The positions of `n` picks, one after the other by their chance less a penalty, `[m <= n]`.

    The penalty is for the mean similarity to the picks before: the share of the trees where both are in one leaf.

    Args:
        chance: of each candidate, `[c]`.
        leaves: where each candidate ends in each tree, `[c, trees]`.
    """
    picked: list[int] = []
    similarity, free = np.zeros(len(chance)), np.zeros(len(chance))
    for _ in range(min(n, len(chance))):
        best = int(np.argmax(chance - penalty * similarity / max(len(picked), 1) + free))
        picked.append(best)
        free[best] = -np.inf
        similarity += (leaves == leaves[best]).mean(axis=1)
    return np.array(picked, dtype=np.int64)
