"""The searchers by name: what each is made of, and how options change that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from chameleon.errors import UsageError, unknown
from chameleon.search.agent import AgentConfig
from chameleon.search.annealing import AnnealingConfig
from chameleon.search.cost_model import CostModelConfig
from chameleon.search.droplet import DropletConfig, DropletPlanner
from chameleon.search.genetic import GeneticConfig
from chameleon.search.knn import KnnConfig, KnnPlanner
from chameleon.search.learner import Learner
from chameleon.search.lfbo import LfboConfig, LfboPlanner
from chameleon.search.planners import (
    AUTOTVM,
    GeneticPlanner,
    GridPlanner,
    ModelPlanner,
    Planner,
    PlannerConfig,
    RandomPlanner,
    explorer,
)
from chameleon.search.program_features import Featurize
from chameleon.search.searcher import Searcher
from chameleon.search.space import KnobSpace

Seed = np.random.Generator | np.random.SeedSequence | int


class UnknownSearcherError(UsageError, ValueError):
    """A searcher, or an option of one, that does not exist."""


Build = Callable[[KnobSpace, np.random.Generator, Featurize | None, Mapping[str, Any]], Planner]


def _with_model(
    space: KnobSpace, rng: np.random.Generator, featurize: Featurize | None, parts: Mapping[str, Any]
) -> Planner:
    learner = Learner(space, parts["model"], int(rng.integers(1 << 31)), featurize)
    return ModelPlanner(space, learner, explorer(space, parts["explorer"], rng), parts["planner"])


@dataclass(frozen=True)
class Recipe:
    """How a searcher is put together.

    Attributes:
        about: one line for people.
        options: the settings of its components, by name, with the default values.
        build: makes the planner.
        former: an older name of the option `planner` that is still taken.
    """

    about: str
    options: Mapping[str, Any]
    build: Build = _with_model
    former: str | None = None


_EXPLORERS = (AgentConfig, AnnealingConfig)
"""The explorers' configurations. Any planner takes either explorer: the one given replaces the recipe's."""


def _parts(explorer: AgentConfig | AnnealingConfig, planner: PlannerConfig) -> dict[str, Any]:
    return {"explorer": explorer, "planner": planner, "model": CostModelConfig()}


def _of_one(name: str, about: str, config: Any, planner: Callable[[KnobSpace, Any], Planner]) -> Recipe:
    """A searcher whose planner has one component, of the searcher's own name, and no cost model."""
    return Recipe(about, {name: config}, lambda space, rng, featurize, parts: planner(space, parts[name]))


SEARCHERS: Mapping[str, Recipe] = {
    "chameleon": Recipe(
        "agent + adaptive sampling + synthesis (Ahn 2020)", _parts(AgentConfig(), PlannerConfig()), former="sampler"
    ),
    "release": Recipe(
        "agent + adaptive sampling (Ahn 2019)",
        _parts(AgentConfig(), PlannerConfig(synthesis=False)),
        former="sampler",
    ),
    "annealing": Recipe(
        "AutoTVM: parallel annealing + epsilon-greedy (Chen 2018)",
        _parts(AnnealingConfig(), AUTOTVM),
        former="picker",
    ),
    "annealing+adaptive": Recipe(
        "parallel annealing + adaptive sampling",  # it plans four times as often, with a quarter of the steps
        _parts(AnnealingConfig(steps=125, keep=256), PlannerConfig(synthesis=False)),
        former="sampler",
    ),
    "agent": Recipe("agent + epsilon-greedy", _parts(AgentConfig(), AUTOTVM), former="picker"),
    "genetic": _of_one("genetic", "genetic algorithm", GeneticConfig(), GeneticPlanner),
    "lfbo": _of_one("lfbo", "forest of the best tenth around the best (Song 2022; Helion)", LfboConfig(), LfboPlanner),
    "droplet": _of_one(
        "droplet", "descent, one knob at a time (Canesche 2024; AutoTVM)", DropletConfig(), DropletPlanner
    ),
    "knn": _of_one(
        "knn",
        "variable neighbourhoods, ranked by nearest neighbours (Kernel Tuner's hybrid_vndx)",
        KnnConfig(),
        KnnPlanner,
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
            finalists; a row of NaN where there is no program.
        options: for a component, its settings, such as `explorer={"walkers": 128}`, or its configuration.

    Raises:
        UnknownSearcherError: on a name, component or setting that does not exist.
        UsageError: if `rng` is neither a generator nor a seed.
    """
    rng = _generator(rng)
    if name not in SEARCHERS:
        raise unknown("searcher", name, SEARCHERS, UnknownSearcherError)
    return Searcher(space, *_made(name, space, rng, featurize, options))


def _made(
    name: str, space: KnobSpace, rng: np.random.Generator, featurize: Featurize | None, options: Mapping[str, Any]
) -> tuple[Planner, np.random.Generator, dict[str, Any]]:
    """The planner of a searcher, its generator, and what it is made of."""
    recipe = SEARCHERS[name]
    parts = _configured(name, recipe, options)
    planner = recipe.build(space, rng, featurize, parts)
    settings = {part: dataclasses.asdict(config) for part, config in parts.items()}
    return planner, rng, {"name": name, "featurize": featurize is not None, **settings}


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
        if part == recipe.former:
            part, given = "planner", _renamed(given)
        if part not in parts:
            known = [*parts, *([recipe.former] if recipe.former else [])]
            raise unknown(f"option of {name}:", part, known, UnknownSearcherError)
        if isinstance(given, _EXPLORERS if part == "explorer" else type(parts[part])):
            parts[part] = given
            continue
        allowed = [f.name for f in dataclasses.fields(parts[part])]
        for setting in sorted(set(given) - set(allowed)):
            raise unknown(f"setting of {part}:", setting, allowed, UnknownSearcherError)
        parts[part] = dataclasses.replace(parts[part], **given)
    return parts


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `planner` from those of `sampler` (the same) or `picker`, whose `plan` was the size of a batch."""
    named = {name: value for name, value in given.items() if name != "plan"}
    return {**dict.fromkeys(("first", "least", "most"), given["plan"]), **named} if "plan" in given else named


class ChameleonSearcher(Searcher):
    """The `chameleon` searcher under its own name: `ChameleonSearcher(space, rng=np.random.default_rng(0))`."""

    def __init__(self, space: KnobSpace, *, rng: Seed, featurize: Featurize | None = None, **options: Any) -> None:
        super().__init__(space, *_made("chameleon", space, _generator(rng), featurize, options))
