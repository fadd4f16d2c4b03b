"""The budget goes where the network's latency is expected to fall most."""

import math

import pytest

from chameleon.jobs.allocate import AllocationConfig, Progress, expected_gain_s, forecast_gain, next_task

CONFIG = AllocationConfig(alpha=0.5, window=4, headroom=1.0, max_barren=8)


def task(best_s, *, weight=1, flop=1e9, kind="conv", exhausted=False, trial_s=1.0):
    return Progress(kind, weight, flop, best_s, exhausted, trial_s)


def test_unmeasured_tasks_come_first_the_heaviest_before_the_others():
    tasks = [task([1.0]), task([], flop=1e6), task([], flop=1e9, weight=2)]
    assert next_task(tasks, CONFIG) == 2
    assert next_task(tasks[:2], CONFIG) == 1


def test_the_gain_is_the_formula_by_hand():
    """0.5 * (5 - 3) / 4 for the last 4 trials, 0.5 * min(3 / 6, 3 - 1) for the hope; weight 2."""
    falling = task([9.0, 5.0, 4.0, 4.0, 3.5, 3.0], weight=2)
    assert expected_gain_s(falling, best_throughput=1e9, config=CONFIG) == pytest.approx(2 * (0.5 * 0.5 + 0.5 * 0.5))


def test_a_task_as_fast_as_its_kin_gets_nothing_for_hope():
    level = task([2.0] * 10)
    assert expected_gain_s(level, best_throughput=0.5e9, config=CONFIG) == 0.0


def test_more_weight_or_more_slack_draws_the_next_batch():
    level = [1.0] * 10
    assert next_task([task(level), task(level, weight=3)], AllocationConfig()) == 1
    assert next_task([task([0.1] * 10), task([0.5] * 10)], AllocationConfig()) == 1


def test_of_equal_gains_the_cheaper_comes_first_and_a_dear_one_has_to_be_worth_it():
    level = [1.0] * 10
    assert next_task([task(level, trial_s=2.0), task(level, trial_s=0.5)]) == 1
    assert next_task([task(level, weight=5, trial_s=2.0), task(level, trial_s=0.5)]) == 0


def test_the_forecast_is_exact_where_each_doubling_gains_as_much():
    curve = [(2.0**i, 1.01 ** (10 - i)) for i in range(8)]  # now: 128 s
    assert forecast_gain(curve, left=128.0) == pytest.approx(0.01)
    assert forecast_gain(curve, left=3 * 128.0) == pytest.approx(0.02)
    assert forecast_gain(curve, left=math.inf) == pytest.approx(0.01)
    assert forecast_gain(curve, left=0.0) == 0.0


def test_there_is_no_forecast_without_a_past_and_no_gain_where_nothing_falls():
    assert forecast_gain([], 10.0) is None
    assert forecast_gain([(0.0, 2.0), (0.0, 1.0)], 10.0) is None  # nothing was spent
    assert forecast_gain([(6.0, 2.0), (10.0, 1.0)], 10.0) is None
    assert forecast_gain([(4.0, 1.0), (10.0, 1.0)], 10.0) == 0.0
    assert forecast_gain([(4.0, 1.0), (10.0, 1.2)], 10.0) == 0.0  # timed again, a lucky one loses


def test_exhausted_and_barren_tasks_are_left_alone():
    barren = task([math.inf] * 8)
    assert next_task([barren, task([1.0], exhausted=True)], CONFIG) is None
    assert next_task([barren, task([1.0])], CONFIG) == 1
    assert next_task([task([math.inf] * 7), task([1.0], exhausted=True)], CONFIG) == 0
    assert next_task([], CONFIG) is None


def test_greedy_allocation_reaches_a_lower_latency_than_equal_shares():
    """Tasks whose best time after n trials is c / n + floor, with very different c."""
    scales = [1.0, 0.02, 0.02, 0.5, 0.02]
    curve = lambda c, n: [c / (i + 1) + 0.01 for i in range(n)]  # noqa: E731
    counts = [1] * 5
    for _ in range(95):
        chosen = next_task([task(curve(c, n), flop=0.0) for c, n in zip(scales, counts, strict=True)])
        assert chosen is not None
        counts[chosen] += 1
    greedy = sum(curve(c, n)[-1] for c, n in zip(scales, counts, strict=True))
    assert greedy < 0.8 * sum(curve(c, 20)[-1] for c in scales)
