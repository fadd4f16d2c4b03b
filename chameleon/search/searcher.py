"""The searchers, which are made by name; all have the same `ask` and `tell`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.errors import UsageError, unknown
from chameleon.search.agent import AgentConfig
from chameleon.search.annealing import AnnealingConfig
from chameleon.search.cost_model import CostModelConfig
from chameleon.search.genetic import GeneticConfig
from chameleon.search.history import History, Prior
from chameleon.search.learner import Featurize, Learner
from chameleon.search.moves import unique_rows
from chameleon.search.planners import (
    AdaptivePlanner,
    GeneticPlanner,
    GreedyConfig,
    GreedyPlanner,
    GridPlanner,
    Planner,
    RandomPlanner,
    View,
    explorer,
)
from chameleon.search.sampling import SamplerConfig
from chameleon.search.space import Digits, KnobSpace
from chameleon.search.trial import Status, Trial

Seed = np.random.Generator | np.random.SeedSequence | int


class UnknownSearcherError(UsageError, ValueError):
    """A searcher, or an option of one, that does not exist."""


class Searcher:
    """Proposes configurations, and learns from the outcomes: ask, measure anywhere, tell.

    The planner makes a plan, which is a whole batch of configurations. `ask` takes its answers from this plan, so the
    caller's batches need not be as large as the planner's. A searcher holds no clock, no file and no host.

    Args:
        space: what may be asked.
        planner: makes the plans.
        rng: the only source of randomness.
    """

    def __init__(self, space: KnobSpace, planner: Planner, rng: np.random.Generator) -> None:
        self.space = space
        self.exhausted = False  # with an empty answer: whether every valid configuration is certain to be known
        self._planner = planner
        self._rng = rng
        self._history = History(space)
        self._queue: dict[bytes, Digits] = {}  # the rest of the plan, in order
        self._known: set[bytes] = set()  # told, asked or planned

    @property
    def best(self) -> Trial | None:
        """The best trial told so far: the one with the fewest seconds, or the highest score."""
        return self._history.best

    def ask(self, n: int) -> Digits:
        """`n` configurations to measure, `[n, n_knobs]`; fewer only where no more can be found, and at the end none.

        No configuration is handed out twice. After an answer with none, `exhausted` tells whether all were handed out.
        Where it is False, the constraints leave too few for the search to find any more.

        Raises:
            ValueError: if `n` is not an integer of at least 1.
        """
        rows = [self.ask_planned(n)]
        while (missing := n - sum(map(len, rows))) > 0 and len(rows[-1]):
            rows.append(self.ask_planned(missing))
        found = np.vstack(rows)
        self.exhausted = self.exhausted and not len(found)  # said with an answer that holds none
        return found

    def ask_planned(self, n: int) -> Digits:
        """What `ask` returns, but none beyond the current plan, `[m <= n, n_knobs]`.

        It suits a host that measures and tells as soon as it has anything: the next plan then knows the outcomes.

        Raises:
            ValueError: if `n` is not an integer of at least 1.
        """
        if not isinstance(n, Integral) or n < 1:
            raise ValueError(f"ask for at least 1 configuration, got n={n!r}")
        if not self._queue:
            self._replan(int(n))
        rows = [self._queue.pop(key) for key in list(itertools.islice(self._queue, int(n)))]
        return np.array(rows, dtype=np.int64).reshape(len(rows), self.space.n_knobs)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes outcomes in any order, of configurations that were asked for or of others (history).

        Raises:
            ValueError: if a configuration is not of this space or was told before; then nothing is taken.
        """
        self._history.add(trials)
        for trial in trials:
            key = np.array(trial.config, dtype=np.int64).tobytes()
            self._known.add(key)
            self._queue.pop(key, None)

    def believe(self, configs: Digits, throughput: NDArray[np.float64]) -> None:
        """Lets the cost model learn from configurations that were measured elsewhere; `ask` may still return them.

        Args:
            configs: `[n, n_knobs]`, valid or not, repeats possible. They replace what was believed before.
            throughput: of each configuration, relative to the best one there, `[n]` in 0..1.

        Raises:
            ValueError: if the two do not fit together, or do not fit the space.
        """
        configs, throughput = np.asarray(configs, dtype=np.int64), np.asarray(throughput, dtype=np.float64)
        inside = configs.shape == (len(throughput), self.space.n_knobs) and (configs >= 0).all()
        if (
            not inside
            or (configs >= self.space.cardinalities).any()
            or not ((throughput >= 0) & (throughput <= 1)).all()
        ):
            raise ValueError(
                f"expected [n, {self.space.n_knobs}] digits of this space and [n] throughputs in 0..1, got shapes "
                f"{configs.shape} and {throughput.shape}"
            )
        self._history.prior = Prior(configs, throughput)

    def _replan(self, wanted: int) -> None:
        view = View(self.space, self._history, self._known, self._rng, wanted)
        plan = self._planner.plan(view)
        plan = unique_rows(plan[self.space.is_valid(plan)], self._known) if len(plan) else plan
        if not len(plan):
            plan = view.draw(8)
        self._queue = dict(zip(KnobSpace.keys(plan), plan, strict=True))
        self._known.update(self._queue)
        self.exhausted = not len(plan) and self.space.can_be_listed

    def state(self) -> dict[str, Any]:
        """All that is needed to continue in exactly the same way, as plain values and arrays."""
        return {
            "version": 1,
            "space": self.space.fingerprint(),
            "rng": self._rng.bit_generator.state,
            "trials": [
                [list(t.config), t.status.value, t.seconds, t.message, dict(t.timings), t.score]
                for t in self._history.trials
            ],
            "prior": [self._history.prior.configs.tolist(), self._history.prior.throughput.tolist()],
            "known": [np.frombuffer(k, dtype=np.int64).tolist() for k in sorted(self._known)],
            "queue": [row.tolist() for row in self._queue.values()],
            "planner": self._planner.state(),
            "exhausted": self.exhausted,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state` that a searcher of the same name, options and space gave.

        Raises:
            ValueError: if the state belongs to another space.
        """
        if state["space"] != self.space.fingerprint():
            raise ValueError(
                f"the state is of space {state['space']}, this searcher's is {self.space.fingerprint()}; "
                "restore into a searcher made for the same space"
            )
        self._rng.bit_generator.state = state["rng"]
        self._history = History(self.space)
        self._history.add(
            [
                Trial(tuple(c), Status(s), sec, message, dict(t), *rest)
                for c, s, sec, message, t, *rest in state["trials"]
            ]
        )
        configs, throughput = state.get("prior", ([], []))
        self.believe(np.array(configs, dtype=np.int64).reshape(-1, self.space.n_knobs), np.array(throughput))
        self._known = {np.array(row, dtype=np.int64).tobytes() for row in state["known"]}
        queue = np.array(state["queue"], dtype=np.int64).reshape(-1, self.space.n_knobs)
        self._queue = dict(zip(KnobSpace.keys(queue), queue, strict=True))
        self._planner.restore(state["planner"])
        self.exhausted = bool(state["exhausted"])


@dataclass(frozen=True)
class Recipe:
    """How a searcher is put together.

    Attributes:
        about: one line for people.
        options: the settings of its components, by name, with the default values.
        build: makes the planner.
    """

    about: str
    options: Mapping[str, Any]
    build: Callable[[KnobSpace, np.random.Generator, Featurize | None, Mapping[str, Any]], Planner]


def _greedy(
    space: KnobSpace, rng: np.random.Generator, featurize: Featurize | None, parts: Mapping[str, Any]
) -> Planner:
    learner = Learner(space, parts["model"], int(rng.integers(1 << 31)), featurize)
    return GreedyPlanner(space, learner, explorer(space, parts["explorer"], rng), parts["picker"])


def _adaptive(synthesis: bool) -> Callable[..., Planner]:
    def build(
        space: KnobSpace, rng: np.random.Generator, featurize: Featurize | None, parts: Mapping[str, Any]
    ) -> Planner:
        learner = Learner(space, parts["model"], int(rng.integers(1 << 31)), featurize)
        return AdaptivePlanner(space, learner, explorer(space, parts["explorer"], rng), parts["sampler"], synthesis)

    return build


_EXPLORERS = (AgentConfig, AnnealingConfig)
"""The explorers' configurations. Any planner takes either explorer: the one given replaces the recipe's."""

_AGENT_SAMPLER = {"explorer": AgentConfig(), "sampler": SamplerConfig(), "model": CostModelConfig()}

SEARCHERS: Mapping[str, Recipe] = {
    "chameleon": Recipe("agent + adaptive sampling + synthesis (Ahn 2020)", _AGENT_SAMPLER, _adaptive(True)),
    "release": Recipe("agent + adaptive sampling (Ahn 2019)", _AGENT_SAMPLER, _adaptive(False)),
    "annealing": Recipe(
        "AutoTVM: parallel annealing + epsilon-greedy (Chen 2018)",
        {"explorer": AnnealingConfig(), "picker": GreedyConfig(), "model": CostModelConfig()},
        _greedy,
    ),
    "annealing+adaptive": Recipe(
        "parallel annealing + adaptive sampling",  # it plans four times as often, with a quarter of the steps
        {"explorer": AnnealingConfig(steps=125, keep=256), "sampler": SamplerConfig(), "model": CostModelConfig()},
        _adaptive(False),
    ),
    "agent": Recipe(
        "agent + epsilon-greedy",
        {"explorer": AgentConfig(), "picker": GreedyConfig(), "model": CostModelConfig()},
        _greedy,
    ),
    "genetic": Recipe(
        "genetic algorithm",
        {"genetic": GeneticConfig()},
        lambda space, rng, featurize, parts: GeneticPlanner(space, parts["genetic"]),
    ),
    "random": Recipe("uniform, without repeats", {}, lambda space, rng, featurize, parts: RandomPlanner()),
    "grid": Recipe("every configuration in order", {}, lambda space, rng, featurize, parts: GridPlanner()),
}


def make_searcher(
    name: str, space: KnobSpace, rng: Seed, *, featurize: Featurize | None = None, **options: Any
) -> Searcher:
    """Makes a searcher by name.

    Args:
        name: one of `SEARCHERS`.
        rng: the only source of randomness: a generator, or the seed of one.
        featurize: gives the host's features `[n, f]` of configurations `[n, n_knobs]`, for a second look at the
            finalists.
        options: for a component, its settings, such as `explorer={"walkers": 128}`, or its configuration.

    Raises:
        UnknownSearcherError: on a name, component or setting that does not exist.
        UsageError: if `rng` is neither a generator nor a seed.
    """
    rng = _generator(rng)
    if name not in SEARCHERS:
        raise unknown("searcher", name, SEARCHERS, UnknownSearcherError)
    recipe = SEARCHERS[name]
    return Searcher(space, recipe.build(space, rng, featurize, _configured(name, recipe, options)), rng)


def _generator(rng: Seed) -> np.random.Generator:
    if not isinstance(rng, (np.random.Generator, np.random.SeedSequence, Integral)):
        raise UsageError(
            f"expected `rng` to be a generator, such as np.random.default_rng(0), or a seed such as 0, got {rng!r:.80}"
        )
    try:
        return np.random.default_rng(rng)  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"expected a seed of at least 0, got {rng!r:.80}") from error


def _configured(name: str, recipe: Recipe, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the recipe's components, changed by `options`."""
    parts = dict(recipe.options)
    for part, given in options.items():
        if part not in parts:
            raise UnknownSearcherError(
                f"searcher {name!r} has no option {part!r}; it has: {', '.join(parts) or 'none'}"
            )
        if isinstance(given, _EXPLORERS if part == "explorer" else type(parts[part])):
            parts[part] = given
            continue
        allowed = [f.name for f in dataclasses.fields(parts[part])]
        wrong = sorted(set(given) - set(allowed))
        if wrong:
            raise UnknownSearcherError(
                f"option {part!r} of searcher {name!r} has no setting {', '.join(wrong)}; it has: {', '.join(allowed)}"
            )
        parts[part] = dataclasses.replace(parts[part], **given)
    return parts


class ChameleonSearcher(Searcher):
    """The `chameleon` searcher under its own name: `ChameleonSearcher(space, rng=np.random.default_rng(0))`."""

    def __init__(self, space: KnobSpace, *, rng: Seed, featurize: Featurize | None = None, **options: Any) -> None:
        rng = _generator(rng)
        recipe = SEARCHERS["chameleon"]
        super().__init__(space, recipe.build(space, rng, featurize, _configured("chameleon", recipe, options)), rng)


class EarlyStopping:
    """Tells when a search has stopped improving.

    Args:
        patience: stop after this many trials without a better one.
        min_trials: never stop before this many trials.
    """

    def __init__(self, patience: int, min_trials: int = 0) -> None:
        self._patience, self._min_trials = patience, min_trials
        self._best = float("inf")
        self._since = 0
        self._count = 0

    def update(self, trials: Sequence[Trial]) -> bool:
        """Takes measured trials (refusals do not count) and returns whether it is time to stop."""
        for trial in trials:
            if trial.status is Status.INVALID:
                continue
            self._count += 1
            self._since += 1
            if trial.cost < self._best:
                self._best, self._since = trial.cost, 0
        return self._count >= self._min_trials and self._since >= self._patience
