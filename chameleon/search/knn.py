"""Variable neighbourhoods around one configuration; the nearest measured ones say which neighbour is worth a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search.moves import Moves, unique_rows
from chameleon.search.planners import View
from chameleon.search.ranges import AtLeastZero, Count, Share, Whole, check_ranges
from chameleon.search.space import Digits, KnobSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KnnConfig:
    """Settings of the search. Where ours differ from those of Kernel Tuner's hybrid_vndx, a comment says so."""

    first: Count = 8  # random trials, at first and at each restart (Kernel Tuner: 1)
    batch: Count = 4  # configurations in a plan (Kernel Tuner: 1)
    nearest: Count = 5  # measured configurations whose mean predicts a candidate
    pool: Count = 8  # candidates for each configuration of a plan: half of them neighbours
    elite: Count = 5  # two of this many best trials are crossed for a candidate
    temperature: AtLeastZero = 0.1  # of relative throughput, at the start of a walk (Kernel Tuner: 1, of time)
    cooling: Share = 0.995  # what each trial leaves of the temperature
    patience: Whole = 100  # a walk that was not moved by this many trials starts again

    def __post_init__(self) -> None:
        check_ranges(self)


class KnnPlanner:
    """Variable neighbourhood descent with a pool that is ranked by k nearest neighbours, as in hybrid_vndx.

    That strategy of Kernel Tuner was found by a language model (Willemsen 2025, "Automated Algorithm Design for
    Auto-Tuning Optimizers"). A walk stands at one configuration. A pool holds some of its neighbours, a crossing of
    two of the best, and random ones. The one with the best prediction is measured. The walk moves there by Metropolis'
    rule. Which of three kinds of neighbours is used follows how often each was accepted.

    We differ: what is known is never proposed, so there is no tabu list. The elite are the best (there, a heap drops
    the best first).
    """

    def __init__(self, space: KnobSpace, config: KnnConfig) -> None:
        self._moves = Moves(space)
        self._config = config
        self._restart(0)
        self._kind, self._weights = -1, np.ones(3)  # the kind of neighbours in the last plan, -1: it was random

    def _restart(self, seen: int) -> None:
        self._seen = seen  # of the trials, those from here on have not moved the walk yet
        self._place = -1  # the position of the trial where the walk stands; -1 before there is one
        self._temperature = self._config.temperature
        self._rejected = 0

    def plan(self, view: View) -> Digits:
        history, config = view.history, self._config
        self._walk(view)
        if self._rejected > config.patience:
            self._restart(len(history))
        if self._place < 0:
            self._kind = -1
            return view.draw(config.first)
        self._kind = int(view.rng.choice(3, p=self._weights / self._weights.sum()))
        pool = self._pool(view)
        configs = np.vstack([history.prior.configs, history.configs])
        throughput = np.concatenate([history.prior.throughput, history.throughput()])
        expected = nearest_mean(pool, configs, throughput, config.nearest)
        return pool[np.argsort(-expected, kind="stable")[: config.batch]]

    def _walk(self, view: View) -> None:
        """Lets the trials since the last plan move the walk, one after the other."""
        throughput, succeeded, refused = view.history.throughput(), view.history.succeeded, view.history.refused
        for i in np.flatnonzero(~refused[self._seen :]) + self._seen:
            loss = throughput[self._place] - throughput[i] if self._place >= 0 else 0.0
            chance = np.exp(-max(loss, 0.0) / max(self._temperature, 1e-8))
            accepted = bool(succeeded[i] and view.rng.random() < chance)
            self._place, self._rejected = (int(i), 0) if accepted else (self._place, self._rejected + 1)
            self._temperature *= self._config.cooling
            if self._kind >= 0:
                self._weights[self._kind] *= 1.1 if accepted else 0.9
                self._weights *= 3 / self._weights.sum()
        self._seen = len(view.history)

    def _pool(self, view: View) -> Digits:
        """New valid candidates, `[m, n_knobs]`: neighbours of the walk's place, crossings, and random ones."""
        space, rng, n = view.space, view.rng, self._config.pool * self._config.batch
        place = np.repeat(view.history.configs[self._place][None], n // 2, axis=0)
        if self._kind == 0:
            near = self._moves.nudge(place, rng)
        elif self._kind == 1:
            near = self._moves.mutate(place, rng)
        else:
            near = self._moves.step(place, rng.integers(self._moves.n_actions, size=place.shape), rng)
        elite = view.ranked(self._config.elite)
        parents = elite[rng.integers(len(elite), size=(2, n // 8))]
        crossed = space.canonical(np.where(rng.random(parents[0].shape) < 0.5, *parents))
        found = np.vstack([near, crossed, space.sample(4 * n, rng)])
        return unique_rows(found[space.is_valid(found)], view.known)[:n]

    def state(self) -> dict[str, Any]:
        return {
            "seen": self._seen,
            "place": self._place,
            "temperature": self._temperature,
            "rejected": self._rejected,
            "kind": self._kind,
            "weights": self._weights.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._seen, self._place = int(state["seen"]), int(state["place"])
        self._temperature, self._rejected = float(state["temperature"]), int(state["rejected"])
        self._kind, self._weights = int(state["kind"]), np.array(state["weights"], dtype=np.float64).reshape(3)


def nearest_mean(candidates: Digits, configs: Digits, throughput: Floats, nearest: int) -> Floats:
    """The mean throughput of the `nearest` of `configs` `[m, n_knobs]` to each candidate `[c, n_knobs]`, `[c]`.

    The distance is the number of knobs that differ. Of equally near ones the first count.
    """
    distance = (candidates[:, None] != configs[None]).sum(axis=2)
    near = np.argsort(distance, axis=1, kind="stable")[:, :nearest]
    return throughput[near].mean(axis=1)
