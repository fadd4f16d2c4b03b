"""The second look at the finalists, with features that a host computes of their programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chameleon.search import KnobSpace, Status, Trial, make_searcher, option
from chameleon.search.cost_model import CostModelConfig
from chameleon.search.history import History, Prior
from chameleon.search.learner import Learner
from chameleon.search.planners import ModelPlanner, PlannerConfig, View
from chameleon.search.program_features import ProgramFeatures, distinct
from chameleon.search.space import Digits
from chameleon.testing.landscapes import measure
from tests.search.test_contract import SMALL
from tests.search.test_planner import All
from tests.search.test_state import plain

GRID = KnobSpace([option(n, range(8)) for n in "abc"])
ROWS = GRID.rows(0, GRID.size)
HIDDEN = np.random.default_rng(7).random(GRID.size)  # speeds that no knob tells
CONFIG = CostModelConfig(trees=20, members=3)
PARTS = SMALL["chameleon"]


def truth(configs: Digits) -> np.ndarray:
    """Features that reveal the speed, `[n, 1]`."""
    return np.array([[HIDDEN[GRID.index(c)]] for c in configs])


def seconds(configs: Digits) -> np.ndarray:
    return 1.0 / (0.1 + truth(configs)[:, 0])


def history_of(rows: Digits) -> History:
    history = History(GRID)
    history.add(measure(rows, seconds))
    return history


def test_it_sees_what_knobs_do_not_tell_and_asks_for_each_configuration_once() -> None:
    asked: list[int] = []

    def featurize(configs: Digits) -> np.ndarray:
        asked.append(len(configs))
        return truth(configs)

    shuffled = np.random.default_rng(0).permutation(ROWS)
    history, learner = history_of(shuffled[:200]), Learner(GRID, CostModelConfig(), 0, featurize)
    expected = truth(shuffled[200:])[:, 0]
    first, _ = learner.predict(history, shuffled[200:])
    assert not asked
    second, _ = learner.predict(history, shuffled[200:], rich=True)
    assert sum(asked) == GRID.size
    learner.predict(history, shuffled, rich=True)
    assert sum(asked) == GRID.size
    assert np.corrcoef(second, expected)[0, 1] > 0.95 > np.corrcoef(first, expected)[0, 1]


@pytest.mark.parametrize("select", ["clusters", "top"])
def test_features_that_reveal_the_truth_give_better_picks(select: Any) -> None:
    found = {}
    for featurize in (None, truth):
        rng = np.random.default_rng(1)
        history = history_of(rng.permutation(ROWS)[:120])
        planner = ModelPlanner(
            GRID, Learner(GRID, CONFIG, 0, featurize), All(), PlannerConfig(select=select, finalists=4, around=0)
        )
        view = View(GRID, history, set(KnobSpace.keys(history.configs)), rng, 16)
        found[featurize] = float(truth(planner.plan(view)).mean())
    assert found[truth] > found[None] + 0.15


def test_features_without_a_meaning_leave_the_score_as_it_is() -> None:
    """Both looks are on one scale: with a constant, the second look is the first one."""
    history = history_of(np.random.default_rng(0).permutation(ROWS)[:80])
    history.add([Trial(tuple(row), Status.RUN_ERROR) for row in ROWS[:3] if row.tobytes() not in history])
    learner = Learner(GRID, CONFIG, 0, lambda configs: np.ones((len(configs), 3)))
    for success in (False, True):
        first = learner.predict(history, ROWS, success)
        for one, other in zip(first, learner.predict(history, ROWS, success, rich=True), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_second_score_has_spread_and_the_chance_of_success() -> None:
    rng = np.random.default_rng(0)
    history = History(GRID)
    for row in rng.permutation(ROWS)[:200]:
        ok = row[0] < 5
        history.add([Trial(tuple(row), Status.OK if ok else Status.RUN_ERROR, 1.0 + 0.1 * row[1] if ok else None)])
    learner = Learner(GRID, CONFIG, 0, lambda configs: configs[:, 1:2].astype(float))
    mean, spread = learner.predict(history, ROWS, rich=True)
    assert mean[ROWS[:, 0] >= 5].max() < 0.5 < mean[ROWS[:, 0] < 5].min()
    assert spread.max() > 0
    assert mean.max() <= 1.1


def test_no_candidate_but_a_finalist_is_looked_at_or_picked() -> None:
    asked: list[np.ndarray] = []

    def featurize(configs: Digits) -> np.ndarray:
        asked.append(configs)
        return truth(configs)

    rng = np.random.default_rng(1)
    history = history_of(rng.permutation(ROWS)[:64])
    config = PlannerConfig(finalists=2, synthesis=False)
    planner = ModelPlanner(GRID, Learner(GRID, CONFIG, 0, featurize), All(), config)
    plan = planner.plan(View(GRID, history, set(KnobSpace.keys(history.configs)), rng, 16))
    looked = {key for configs in asked for key in KnobSpace.keys(configs)}
    assert len(looked) <= 64 + 2 * 16
    assert set(KnobSpace.keys(plan)) <= looked
    assert len(plan) == 16


def test_configurations_without_a_program_are_planned_around() -> None:
    def featurize(configs: Digits) -> np.ndarray:
        return np.where(configs[:, :1] < 2, np.nan, truth(configs))

    searcher = make_searcher("chameleon", GRID, 0, featurize=featurize, **PARTS)
    for _ in range(5):
        rows = searcher.ask(16)
        searcher.tell(
            [
                Trial(tuple(r), Status.INVALID) if r[0] < 2 else Trial(tuple(r), Status.OK, float(seconds(r[None])[0]))
                for r in rows
            ]
        )
    assert searcher.best is not None

    everything = make_searcher("chameleon", GRID, 0, featurize=lambda c: np.full((len(c), 2), np.nan), **PARTS)
    for _ in range(4):
        everything.tell(measure(everything.ask(16), seconds))


def test_what_was_measured_elsewhere_or_refused_has_no_program_here() -> None:
    asked: set[bytes] = set()

    def featurize(configs: Digits) -> np.ndarray:
        asked.update(KnobSpace.keys(configs))
        return truth(configs)

    history = history_of(ROWS[:50])
    history.add([Trial(tuple(row), Status.INVALID) for row in ROWS[50:60]])
    history.prior = Prior.checked(GRID, ROWS[60:80], np.linspace(0, 1, 20))
    Learner(GRID, CONFIG, 0, featurize).predict(history, ROWS[100:110], rich=True)
    assert asked == set(KnobSpace.keys(np.vstack([ROWS[:50], ROWS[100:110]])))


@pytest.mark.parametrize(
    "given", [np.zeros(64), np.zeros((63, 2)), np.zeros((64, 2, 1)), np.zeros((2, 64))], ids=lambda x: str(x.shape)
)
def test_another_shape_is_refused(given: np.ndarray) -> None:
    history = history_of(ROWS[:64])
    with pytest.raises(ValueError, match=r"expected `featurize` to return .* \(64, (f|2|64)\) for 64 .* got \("):
        Learner(GRID, CONFIG, 0, lambda configs: given).predict(history, ROWS, rich=True)


def test_another_width_than_before_is_refused() -> None:
    programs = ProgramFeatures(lambda configs: np.zeros((len(configs), len(configs))))
    programs.of(ROWS[:3], np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 2 configurations, got \(2, 2\)"):
        programs.of(ROWS[3:5], np.ones(2, dtype=bool))


def test_columns_that_order_the_rows_alike_are_one() -> None:
    x = np.array([3.0, 1.0, 2.0, 2.0, np.nan])
    one, other = np.full(5, 4.0), np.array([0.0, 1.0, 1.0, 0.0, 0.0])
    features = np.stack([one, x, 2 * x, x**3, other, -x, other], axis=1).astype(np.float32)
    assert distinct(features).tolist() == [1, 4, 5]
    assert distinct(np.zeros((4, 0), dtype=np.float32)).tolist() == []
    assert distinct(np.full((4, 3), np.nan, dtype=np.float32)).tolist() == []


def test_a_restored_searcher_goes_on_identically() -> None:
    def make(seed: int) -> Any:
        return make_searcher("chameleon", GRID, seed, featurize=truth, **PARTS)

    one, other = make(3), make(4)
    for _ in range(3):
        one.tell(measure(one.ask(16), seconds))
    one.believe(ROWS[:5], np.linspace(0, 1, 5))
    other.restore(plain(one.state()))
    for _ in range(3):
        rows = one.ask(16)
        np.testing.assert_array_equal(rows, other.ask(16))
        for searcher in (one, other):
            searcher.tell(measure(rows, seconds))
