"""The one planner: each setting changes one thing, and with any of them it keeps its promises."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from chameleon.search import SEARCHERS, KnobSpace, Searcher, Status, Trial, UnknownSearcherError, make_searcher, option
from chameleon.search.annealing import AnnealingConfig
from chameleon.search.cost_model import CostModelConfig
from chameleon.search.history import History
from chameleon.search.learner import Learner
from chameleon.search.planners import AUTOTVM, ModelPlanner, PlannerConfig, View
from chameleon.search.space import Digits
from chameleon.testing.landscapes import everything
from tests.search.synthetic import bowl, measure, sketched
from tests.search.test_contract import SMALL

GRID = KnobSpace([option(n, range(8)) for n in "abc"])
COST = bowl(GRID, np.array([5, 2, 6]))
PARTS = SMALL["chameleon"]


class All:
    """An explorer that looks at the whole space."""

    elite, starts = 0, 1

    def explore(
        self, score: Any, starts: Digits, known: set[bytes], rng: np.random.Generator
    ) -> tuple[Digits, np.ndarray]:
        rows = GRID.rows(0, GRID.size)
        rows = rows[[key not in known for key in KnobSpace.keys(rows)]]
        scores = score(rows)
        order = np.argsort(-scores, kind="stable")
        return rows[order], scores[order]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


def planned(config: PlannerConfig, wanted: int = 16, trials: int = 40) -> tuple[Digits, Learner, History]:
    """A plan after some trials, by a planner whose candidates are the whole space."""
    rng = np.random.default_rng(0)
    history, learner = History(GRID), Learner(GRID, CostModelConfig(trees=10, members=2), 0)
    history.add(measure(rng.permutation(GRID.rows(0, GRID.size))[:trials], COST))
    view = View(GRID, history, set(KnobSpace.keys(history.configs)), rng, wanted)
    return ModelPlanner(GRID, learner, All(), config).plan(view), learner, history


@pytest.mark.parametrize("optimism", [0.0, 1.5])
def test_the_top_are_those_with_the_highest_scores(optimism: float) -> None:
    config = PlannerConfig(select="top", optimism=optimism, synthesis=False, least=10)
    plan, learner, history = planned(config)
    rows = GRID.rows(0, GRID.size)
    mean, spread = learner.predict(history, rows)
    scores = {tuple(row): s for row, s in zip(rows.tolist(), mean + optimism * spread, strict=True)}
    known = {tuple(row) for row in history.configs.tolist()}
    best = sorted((s for row, s in scores.items() if row not in known), reverse=True)[:10]
    assert [scores[tuple(row)] for row in plan.tolist()] == pytest.approx(best)


@pytest.mark.parametrize(("trials", "wanted"), [(16, 99), (40, 99), (80, 99), (80, 12), (80, 1), (400, 99)])
def test_the_size_of_a_batch_by_its_definition(trials: int, wanted: int) -> None:
    """The largest multiple of the least batch that is allowed, or the least batch."""
    allowed = [n for n in (5, 10, 15, 20, 25, 30) if n <= min(trials / 4, wanted)]
    for select in ("top", "clusters"):
        config = PlannerConfig(select=select, least=5, most=32, growth=4)
        assert len(planned(config, wanted, trials)[0]) == max([5, *allowed])


def test_the_default_batches() -> None:
    """8 until there are 64 trials, then 16: what the knee of the loss always gave before it was taken out."""
    for trials, wanted, size in ((16, 16, 8), (63, 16, 8), (64, 16, 16), (64, 15, 8), (400, 64, 16)):
        assert len(planned(PlannerConfig(), wanted, trials)[0]) == size


def test_clusters_are_represented_by_their_best_and_spread_wider_than_the_top() -> None:
    clustered, learner, history = planned(PlannerConfig(synthesis=False, least=8))
    top, _, _ = planned(PlannerConfig(synthesis=False, least=8, select="top"))
    spans = [np.ptp(plan, axis=0).sum() for plan in (clustered, top)]
    assert spans[0] > spans[1]
    scores = learner.predict(history, clustered)[0] + 1.5 * learner.predict(history, clustered)[1]
    assert scores.tolist() == sorted(scores, reverse=True)


def test_synthesis_only_replaces_by_what_scores_higher() -> None:
    for select in ("clusters", "top"):
        config = PlannerConfig(select=select, optimism=0.0)
        made, learner, history = planned(config)
        plain = planned(dataclasses.replace(config, synthesis=False))[0]
        before, after = (learner.predict(history, plan)[0] for plan in (plain, made))
        assert (after >= before).all()
        assert (after[(made != plain).any(axis=1)] > before[(made != plain).any(axis=1)]).all()


def test_without_the_success_model_failures_count_only_as_zeros() -> None:
    rows = np.random.default_rng(0).permutation(GRID.rows(0, GRID.size))
    history, learner = History(GRID), Learner(GRID, CostModelConfig(), 0)
    history.add(measure(rows[:80], lambda c: np.where(c[:, 0] > 4, np.inf, COST(c))))
    scaled, plain = learner.predict(history, rows)[0], learner.predict(history, rows, success=False)[0]
    fails = rows[:, 0] > 4
    assert (scaled[plain > 0] <= plain[plain > 0]).all()
    assert scaled[fails].mean() < plain[fails].mean()


SWITCHES = list(itertools.product(("clusters", "top"), (0.0, 0.3), (False, True), (False, True), (0, 3)))


@pytest.mark.parametrize(("select", "epsilon", "synthesis", "success", "around"), SWITCHES)
def test_any_settings_ask_for_everything_once(
    select: str, epsilon: float, synthesis: bool, success: bool, around: int
) -> None:
    space = sketched()
    settings = {
        "select": select,
        "epsilon": epsilon,
        "synthesis": synthesis,
        "success": success,
        "around": around,
        "first": 4,
        "least": 3,
        "most": 9,
    }
    options = {"explorer": {"walkers": 6, "steps": 3, "rollouts": 1, "hidden": 4}, "model": {"trees": 3, "members": 2}}
    searcher, seen = make_searcher("chameleon", space, 0, planner=settings, **options), []
    cost = bowl(space, np.ones(space.n_knobs, dtype=np.int64))
    while len(rows := searcher.ask(7)):
        seen += [tuple(row) for row in rows.tolist()]
        searcher.tell(measure(rows, lambda c: np.where(c.sum(axis=1) % 5 == 0, np.inf, cost(c))))
    assert len(seen) == len(set(seen))
    assert set(seen) == everything(space)


def asked(searcher: Searcher) -> list[list[int]]:
    found = []
    for _ in range(5):
        rows = searcher.ask(12)
        found += rows.tolist()
        searcher.tell(measure(rows, COST))
    return found


def test_recipes_differ_only_in_their_settings() -> None:
    explorer = {"chains": 16, "steps": 12}
    model = {"trees": 8, "members": 2}
    small = dataclasses.replace(AUTOTVM, first=12, least=12, most=12)
    named = make_searcher("annealing", GRID, 3, explorer=explorer, picker={"plan": 12}, model=model)
    built = make_searcher("chameleon", GRID, 3, explorer=AnnealingConfig(**explorer), planner=small, model=model)
    assert asked(named) == asked(built)
    release = make_searcher("release", GRID, 3, **PARTS)
    plain = make_searcher("chameleon", GRID, 3, planner={"synthesis": False}, **PARTS)
    assert asked(release) == asked(plain)


def test_the_former_names_of_options_are_taken() -> None:
    one = make_searcher("chameleon", GRID, 3, sampler={"first": 8, "optimism": 0.5}, **PARTS)
    two = make_searcher("chameleon", GRID, 3, planner={"first": 8, "optimism": 0.5}, **PARTS)
    assert asked(one) == asked(two)
    small = {"explorer": PARTS["explorer"], "model": PARTS["model"]}
    one = make_searcher("agent", GRID, 3, picker={"plan": 20, "epsilon": 0.5}, **small)
    two = make_searcher("agent", GRID, 3, planner={"first": 20, "least": 20, "most": 20, "epsilon": 0.5}, **small)
    assert asked(one) == asked(two)
    for name, former in (("chameleon", "picker"), ("agent", "sampler"), ("genetic", "planner")):
        with pytest.raises(UnknownSearcherError, match=f"unknown option of {name}: '{former}'"):
            make_searcher(name, GRID, 0, **{former: {}})
    with pytest.raises(UnknownSearcherError, match="unknown setting of planner: 'epsilom'; did you mean epsilon"):
        make_searcher("agent", GRID, 0, picker={"epsilom": 0.1})


def test_the_default_is_chameleon_and_every_recipe_says_what_it_is() -> None:
    assert SEARCHERS["chameleon"].options["planner"] == PlannerConfig()
    for recipe in SEARCHERS.values():
        assert recipe.about


@pytest.mark.parametrize("worked", [0, 1, 3, 16, 30])
def test_walkers_start_at_the_best_and_never_at_a_failure(worked: int) -> None:
    rng = np.random.default_rng(1)
    rows = rng.permutation(GRID.rows(0, GRID.size))[:40]
    history = History(GRID)
    history.add(measure(rows[:worked], COST))
    history.add([Trial(tuple(row.tolist()), Status.RUN_ERROR) for row in rows[worked:]])
    starts = View(GRID, history, set(KnobSpace.keys(rows)), rng, 16).starts(32, 8)
    best = rows[:worked][np.argsort(COST(rows[:worked]), kind="stable")[:16]]
    assert len(starts) == 40
    if worked:
        assert np.array_equal(starts[:32], best[np.arange(32) % len(best)])
