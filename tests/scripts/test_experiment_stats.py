"""Counting and intervals against hand-made runs and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.common.experiment_stats import Run, bootstrap, geomean_of_means, mean_of_means
from scripts.papers.report import Comparison, per_task, summarise, table


def run(tuner: str, seconds: list[float | None], each_s: float = 1.0, seed: int = 0, gave_up: bool = False) -> Run:
    at_s = tuple(each_s * (i + 1) for i in range(len(seconds)))
    return Run("task", tuner, seed, tuple(seconds), at_s, 0.5, gave_up)


@given(st.lists(st.one_of(st.none(), st.floats(0.1, 10.0)), min_size=1, max_size=20), st.floats(0.1, 10.0))
def test_reached_against_brute_force(seconds: list[float | None], goal_s: float) -> None:
    expected = next((i for i, s in enumerate(seconds) if s is not None and s <= goal_s), None)
    assert run("t", seconds).reached(goal_s) == expected


def test_best_at_a_time() -> None:
    one = run("t", [None, 4.0, 5.0, 2.0], each_s=10.0)
    assert [one.best_at(t) for t in (0, 9, 10, 20, 39, 40, 1000)] == [math.inf, math.inf, math.inf, 4, 4, 2, 2]


def test_a_run_survives_json() -> None:
    one = run("t", [None, 4.0], gave_up=True)
    assert Run.from_json(one.to_json()) == one


def test_intervals_have_the_width_of_the_normal_approximation() -> None:
    """For a mean of many values the bootstrap's 95 % interval is +- 1.96 standard errors."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(3.0, 1.0, size=400), rng.normal(5.0, 1.0, size=400)]
    interval = bootstrap(groups, mean_of_means, rng)
    error = np.sqrt(sum(g.var() / len(g) for g in groups)) / 2
    assert interval.mean == pytest.approx(np.mean([g.mean() for g in groups]))
    assert interval.low == pytest.approx(interval.mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(interval.mean + 1.96 * error, abs=0.15 * error)


def test_equal_seeds_leave_no_doubt() -> None:
    interval = bootstrap([np.full(5, 2.0), np.full(5, 8.0)], geomean_of_means, np.random.default_rng(0))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((4.0, 4.0, 4.0))


def test_a_comparison_by_hand() -> None:
    runs = [
        run("xgb-64", [4.0, 2.0, 1.0, 1.0], each_s=1.0),
        run("xgb-64", [4.0, 1.0, 1.0, 1.0], each_s=1.0, seed=1),
        run("ours", [1.0, None, None, None], each_s=2.0),
        run("ours", [1.04, None, None, None], each_s=2.0, seed=1),
        run("stops", [2.0, 2.0], gave_up=True),
    ]
    found = Comparison(runs)
    assert found.best_s == {"task": 1.0}
    assert found.equal_s == {"task": 2.0}
    assert found.trials_to("task", "xgb-64", 0.95).tolist() == [3, 2]
    assert found.trials_to("task", "ours", 0.95).tolist() == [1, 1]
    assert found.seconds_to("task", "ours", 0.99).tolist() == [2, 8]  # the second never came there: all that it spent
    assert found.share("task", "ours", 0.99) == 0.5
    assert found.seconds_to("task", "stops", 0.99).tolist() == [8]  # gave up: the most that any run spent
    assert found.at_equal_time("task", "xgb-64").tolist() == [0.5, 1.0]
    rows = {row["tuner"]: row for row in summarise(found, np.random.default_rng(0))}
    assert rows["xgb-64"]["seconds_95%"]["mean"] == pytest.approx(2.5)
    text = table(list(rows.values()), {})
    assert "| 1.25 |" in text  # 2.5 s against 2 s
    assert ">= 5 (2-8), 50% of runs" in text
    assert len(per_task(found)) == 3
