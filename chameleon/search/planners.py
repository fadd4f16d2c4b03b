"""Planners: they decide what to measure next, and are put together from the other parts of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from chameleon.errors import UsageError
from chameleon.search import sampling
from chameleon.search.agent import Agent, AgentConfig
from chameleon.search.annealing import Annealer, AnnealingConfig, Score
from chameleon.search.feasible import regular, walk
from chameleon.search.genetic import Genetic, GeneticConfig
from chameleon.search.history import History
from chameleon.search.learner import Learner
from chameleon.search.moves import Moves, ranked, unique_rows
from chameleon.search.ranges import AtLeastZero, Count, Share, Whole, check_ranges
from chameleon.search.space import Digits, KnobSpace

Floats = NDArray[np.float64]

_DRAWS = 1 << 18
"""Most random draws in the search for new configurations; a walk from known ones may try as many."""


@dataclass(frozen=True)
class View:
    """What a planner may look at."""

    space: KnobSpace
    history: History
    known: set[bytes]  # keys of all configurations that were told, asked for or planned
    rng: np.random.Generator
    wanted: int  # how many configurations the host has just asked for

    def draw(self, n: int) -> Digits:
        """Draws up to `n` different valid configurations that are not known, uniformly.

        They are fewer than `n` only when no more can be found. If the space can be listed, then there are no more.
        Where constraints leave too few for draws to find, others near valid ones follow, which are not uniform.
        """
        found = np.empty((0, self.space.n_knobs), dtype=np.int64)
        drawn, size = 0, max(2 * n, 64)
        while len(found) < n and drawn < min(_DRAWS, 16 * self.space.size):
            fresh = self.space.sample(size, self.rng)
            found = unique_rows(np.vstack([found, fresh[self.space.is_valid(fresh)]]), self.known)
            drawn, size = drawn + size, min(2 * size, 1 << 14)
        if len(found) < n and self.space.can_be_listed:
            rows = self.space.rows(0, self.space.size)
            found = self.rng.permutation(unique_rows(rows[self.space.is_valid(rows)], self.known))
        elif len(found) < n:
            found = np.vstack([found, self._near_valid(found, n - len(found))])
        return found[:n]

    def _near_valid(self, found: Digits, n: int) -> Digits:
        """Up to `n` new valid configurations near those in `found` and those that are known, `[m, n_knobs]`."""
        rows = np.frombuffer(b"".join(sorted(self.known)), dtype=np.int64).reshape(-1, self.space.n_knobs)
        seeds = np.vstack([found, rows[self.space.is_valid(rows)]])
        if not len(seeds):
            seeds = regular(self.space, _DRAWS, self.rng)
        if not len(seeds):
            return seeds
        return walk(self.space, seeds, self.known | set(KnobSpace.keys(found)), n, _DRAWS, self.rng)

    def starts(self, elite: int, n: int) -> Digits:
        """Valid configurations to explore from, `[elite + n, n_knobs]`.

        The first `elite` are the best measured ones (at most 16 different, repeated in turn); random ones follow. No
        failure is among the first.
        """
        worked = self.ranked(len(self.history))
        best = worked[np.arange(elite) % min(elite, len(worked), 16)] if elite and len(worked) else worked[:0]
        fresh = self.space.sample(4 * n, self.rng)
        rows = np.vstack([best, fresh, self.history.configs])
        rows = rows[self.space.is_valid(rows)]
        if not len(rows):
            rows = self.draw(n)
        return rows[np.arange(elite + n) % len(rows)]

    def ranked(self, n: int) -> Digits:
        """The first `n` configurations that worked, those with the highest throughput first, `[m <= n, n_knobs]`."""
        order = np.argsort(-self.history.throughput(), kind="stable")
        return self.history.configs[order[self.history.succeeded[order]][:n]]


class Planner(Protocol):
    """Proposes the next batch."""

    def plan(self, view: View) -> Digits:
        """Configurations to measure next, best first, `[m, n_knobs]`; the caller drops invalid and known ones."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class RandomPlanner:
    """Draws configurations uniformly, never the same one twice."""

    def plan(self, view: View) -> Digits:
        return view.draw(64)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is kept."""


class GridPlanner:
    """Takes every configuration in the order of the space.

    Where constraints leave so few that a long stretch of the space holds none, some found elsewhere come in between.
    """

    def __init__(self) -> None:
        self._next = 0

    def plan(self, view: View) -> Digits:
        found = np.empty((0, view.space.n_knobs), dtype=np.int64)
        stop = self._next + _DRAWS
        while not len(found) and self._next < min(view.space.size, stop):
            rows = view.space.rows(self._next, self._next + 4096)
            self._next += 4096
            found = unique_rows(rows[view.space.is_valid(rows)], view.known)
        return found if len(found) else view.draw(64)

    def state(self) -> dict[str, Any]:
        return {"next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        self._next = int(state["next"])


class GeneticPlanner:
    """Plans the generations of the genetic algorithm; the first one is random."""

    def __init__(self, space: KnobSpace, config: GeneticConfig) -> None:
        self._moves = Moves(space)
        self._genetic = Genetic(config)

    def plan(self, view: View) -> Digits:
        n = self._genetic.config.population
        if view.history.measured < n:
            return view.draw(n)
        children = unique_rows(self._genetic.generation(view.history, self._moves, view.rng), view.known)[:n]
        return np.vstack([children, view.draw(n - len(children))]) if len(children) < n else children

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The history is all the state there is."""


class Explorer(Protocol):
    """Looks for configurations that the cost model rates high: the agent or the annealer."""

    elite: int  # how many starting points among the best measured configurations it wants
    starts: int  # how many random starting points it wants

    def explore(
        self, score: Score, starts: Digits, known: set[bytes], rng: np.random.Generator
    ) -> tuple[Digits, Floats]:
        """Candidates that are not `known`, best-scored first, `[m, n_knobs]`, and their scores `[m]`."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def explorer(space: KnobSpace, config: AgentConfig | AnnealingConfig, rng: np.random.Generator) -> Explorer:
    """The explorer that `config` belongs to; an agent's first weights are drawn from `rng`."""
    return Agent(space, config, rng) if isinstance(config, AgentConfig) else Annealer(space, config)


@dataclass(frozen=True)
class PlannerConfig:
    """How the model-based searchers choose what to measure: each setting is one decision, and none needs another.

    The defaults are those of `chameleon`. Where they differ from the papers', a comment says so: (paper: ...).
    """

    # When to plan, and how much
    first: Count = 16  # trials measured before the cost model is trusted (paper: 64)
    least: Count = 8  # smallest batch; every batch is a multiple of it
    most: Count = 16  # largest batch (paper: as many clusters as pay, by the knee of the loss: 8 to 64)
    growth: Count = 4  # between these two, a batch has measured trials / growth (paper: no such bound)
    # What is thought of
    around: Whole = 3  # the neighbours of this many best measured configurations are candidates as well (paper: none)
    candidates: Count = 256  # how many of the best-scored candidates are looked at (paper: all)
    finalists: Count = 3  # so many for each pick get a second look with the host's features, where the host has any
    # How it is scored
    optimism: AtLeastZero = 1.5  # score = mean + optimism * spread (paper: the mean)
    success: bool = True  # the score is scaled by the chance that the configuration works at all (paper: not)
    # What is picked
    select: Literal["clusters", "top"] = "clusters"  # one candidate for each cluster, or simply the best
    largest: Count | None = None  # cluster by this many knobs, those with most values (paper: 2); None: by all
    epsilon: Share = 0.0  # share of the picks that random configurations replace
    synthesis: bool = True  # the mode of a cluster replaces a pick that scores lower (paper: one that is invalid)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.least > self.most:
            raise UsageError(f"expected least <= most in PlannerConfig, got least={self.least}, most={self.most}")


AUTOTVM = PlannerConfig(
    first=64, least=64, most=64, around=0, optimism=0.0, select="top", epsilon=0.05, synthesis=False
)
"""As AutoTVM's model-based tuner plans (Chen 2018): 64 configurations with the best predictions, a few of them random.

The success model is ours (AutoTVM: none).
"""


class ModelPlanner:
    """Chameleon's planner, and that of every searcher with a cost model.

    The first plans are random. Later the explorer looks for candidates that score high. Some of them are picked, and
    synthesis may replace some of these picks.
    """

    def __init__(self, space: KnobSpace, learner: Learner, explorer: Explorer, config: PlannerConfig) -> None:
        self._space, self._learner, self._explorer, self._config = space, learner, explorer, config
        by_size = np.argsort(-space.cardinalities, kind="stable")
        self._clustered = sorted(by_size[: config.largest].tolist())
        self._moves = Moves(space)

    def plan(self, view: View) -> Digits:
        history, config = view.history, self._config
        if not self._learner.ready(history, config.first):
            return view.draw(config.least)
        candidates, scores = self._candidates(view)
        if not len(candidates):
            return view.draw(config.least)
        labels = self._groups(view, candidates)
        if self._learner.has_second_look:
            scores = self._second_look(view, candidates, scores, labels)
        chosen = self._chosen(view, scores, labels)
        picks = candidates[chosen]
        if config.synthesis:
            groups = [candidates[labels == labels[i]] for i in chosen]
            made = sampling.synthesise(picks, groups, np.ones(len(picks), dtype=bool), self._space, view.known)
            better = self._score(history, made, self._learner.has_second_look) > scores[chosen]
            picks = np.where(better[:, None], made, picks)
        if config.epsilon:
            n = self._batch(view)
            picks = sampling.epsilon_greedy(picks, n, config.epsilon, view.draw(n), view.rng)
        return picks

    def _candidates(self, view: View) -> tuple[Digits, Floats]:
        """What the explorer found, and the neighbours of the best; the best-scored of all, and their scores."""
        history, config = view.history, self._config
        starts = view.starts(self._explorer.elite, self._explorer.starts)
        candidates, scores = self._explorer.explore(lambda c: self._score(history, c), starts, view.known, view.rng)
        near = self._moves.around(view.ranked(config.around), view.rng)
        if len(near):
            every = np.vstack([candidates, near])
            candidates, scores = ranked(every, np.concatenate([scores, self._score(history, near)]), view.known)
        kept = slice(max(config.candidates, self._batch(view)))
        return candidates[kept], scores[kept]

    def _second_look(self, view: View, candidates: Digits, scores: Floats, labels: NDArray[np.int64]) -> Floats:
        """The second scores of the finalists, which are the best of each group; -inf for all others, `[m]`."""
        groups = np.unique(labels)
        each = -(-self._config.finalists * self._batch(view) // len(groups))
        order = np.argsort(-scores, kind="stable")
        finalists = np.concatenate([order[labels[order] == group][:each] for group in groups])
        second = np.full(len(candidates), -np.inf)
        second[finalists] = self._score(view.history, candidates[finalists], rich=True)
        return second

    def _score(self, history: History, configs: Digits, rich: bool = False) -> Floats:
        mean, spread = self._learner.predict(history, configs, self._config.success, rich)
        return mean + self._config.optimism * spread

    def _batch(self, view: View) -> int:
        """How many to measure: at most as many as the host asks for, so that the next plan knows their outcomes.

        But never fewer than `least`: a host that asks for one at a time gets so many from one plan.
        """
        least, most = self._config.least, min(self._config.most, view.wanted)
        return max(min(view.history.measured // self._config.growth, most) // least, 1) * least

    def _groups(self, view: View, candidates: Digits) -> NDArray[np.int64]:
        """The group of every candidate: its cluster; without clusters all are one group."""
        if self._config.select == "top":
            return np.zeros(len(candidates), dtype=np.int64)
        points = sampling.normalised(self._space.features(candidates, self._clustered))
        return sampling.clusters(points, self._batch(view), int(view.rng.integers(1 << 31)))

    def _chosen(self, view: View, scores: Floats, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of the picks."""
        if self._config.select == "top":
            return np.argsort(-scores, kind="stable")[: self._batch(view)]
        return sampling.snap(labels, scores)

    def state(self) -> dict[str, Any]:
        return {"learner": self._learner.state(), "explorer": self._explorer.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._learner.restore(state["learner"])
        self._explorer.restore(state["explorer"])
