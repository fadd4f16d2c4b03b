"""The strategies of other tuners: LFBO, droplet and k nearest neighbours, each against an oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.search import KnobSpace, Searcher, Status, Trial, make_searcher, option, split
from chameleon.search.knn import nearest_mean
from chameleon.search.lfbo import diverse, utility
from chameleon.search.moves import Moves
from chameleon.testing.landscapes import Cost, everything
from tests.search.synthetic import bowl, constrained, measure, sketched

GRID = KnobSpace([option(n, range(9)) for n in "abcd"])
CENTRE = np.array([5, 2, 6, 1])


def searched(searcher: Searcher, cost: Cost, trials: int, at_once: int = 8) -> list[Trial]:
    """The trials of a search, in order."""
    found: list[Trial] = []
    while len(found) < trials and len(rows := searcher.ask_planned(min(at_once, trials - len(found)))):
        found += measure(rows, cost)
        searcher.tell(found[-len(rows) :])
    return found


# LFBO


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.floats(0.01, 1.0))
@settings(derandomize=True, deadline=None)
def test_the_utility_is_the_improvement_on_the_quantile(trials: list[tuple[float, bool]], share: float) -> None:
    """By its definition in plain Python; the quantile lies between two values of the sorted list."""
    trials = [*trials, (0.5, True)]
    ranked = sorted(y for y, ok in trials if ok)
    place = (1 - share) * (len(ranked) - 1)
    low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
    threshold = low + (place - math.floor(place)) * (high - low)
    found = utility(np.array([y for y, _ in trials]), np.array([ok for _, ok in trials]), share)
    for (y, ok), u in zip(trials, found, strict=True):
        if ok and y > threshold + 1e-9:
            assert u > 0
        if not ok or y < threshold - 1e-9:
            assert u == 0
    good = found > 0
    assert found[good].mean() == pytest.approx(1)
    gains = np.array([max(y - threshold, 1e-5) for y, _ in trials])
    np.testing.assert_allclose(found[good] * gains[good].mean(), gains[good], rtol=1e-5, atol=1e-9)


def test_diverse_picks_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for penalty in (0.0, 0.3, 1.0, 5.0):
        chance, leaves = rng.random(12), rng.integers(3, size=(12, 7))
        picked: list[int] = []
        for _ in range(5):
            scores = {
                i: chance[i]
                - penalty * (np.mean([np.mean(leaves[i] == leaves[j]) for j in picked]) if picked else 0.0)
                for i in range(12)
                if i not in picked
            }
            picked.append(max(scores, key=lambda i: scores[i]))
        assert diverse(chance, leaves, 5, penalty).tolist() == picked
    assert diverse(np.array([0.1, 0.3]), np.zeros((2, 4), dtype=np.int64), 8, 1.0).tolist() == [1, 0]


# Droplet


@pytest.mark.parametrize("seed", range(4))
def test_a_droplet_runs_down_a_separable_convex_landscape(seed: int) -> None:
    """To the optimum, of 6561, in less than the steps down and the neighbours that it meets on the way."""
    options = {"droplet": {"starts": 1, "gain": 0.0}}
    trials = searched(make_searcher("droplet", GRID, seed, **options), bowl(GRID, CENTRE), 150)
    assert tuple(CENTRE) in {t.config for t in trials}


def test_every_plan_is_around_the_best_of_the_descent() -> None:
    searcher = make_searcher("droplet", GRID, 3, droplet={"starts": 1, "gain": 0.0, "reach": 1})
    cost, best = bowl(GRID, CENTRE), searched(searcher, bowl(GRID, CENTRE), 1)[0]
    while best.config != tuple(CENTRE):
        trials = measure(searcher.ask_planned(8), cost)
        searcher.tell(trials)
        assert all(np.abs(np.subtract(t.config, best.config)).sum() == 1 for t in trials)
        best = min([best, *trials], key=lambda t: t.cost)


def test_where_the_neighbours_do_not_fill_a_batch_it_looks_further() -> None:
    """Beside the centre of a line all four that are one or two moves away are one plan."""
    line = KnobSpace([option("x", range(100))])
    searcher = make_searcher("droplet", line, 0, droplet={"starts": 1, "reach": 2})
    start = searched(searcher, lambda c: np.ones(len(c)), 1)[0].config[0]
    assert 2 <= start <= 97
    assert sorted(searcher.ask_planned(8)[:, 0] - start) == [-2, -1, 1, 2]
    assert abs(int(searcher.ask_planned(1)[0, 0]) - start) > 2  # nothing is left in reach: somewhere else


def test_a_droplet_that_is_stuck_starts_again_and_finds_the_other_valley() -> None:
    """Two valleys on a line; the better one cannot be reached by small moves from the other."""
    line = KnobSpace([option("x", range(200))])

    def cost(configs: np.ndarray) -> np.ndarray:
        x = configs[:, 0]
        return np.minimum(2.0 + np.abs(x - 40), 1.0 + 4 * np.abs(x - 190))

    for seed in range(5):
        trials = searched(make_searcher("droplet", line, seed, droplet={"starts": 1}), cost, 200)
        costs = [t.cost for t in trials]
        assert min(costs) == 1.0
        again = make_searcher("droplet", line, seed, droplet={"starts": 1})
        assert [t.config for t in searched(again, cost, 200)] == [t.config for t in trials]


@pytest.mark.parametrize(("gain", "moves"), [(0.0, True), (0.05, True), (0.2, False)])
def test_only_a_significant_gain_moves_a_droplet(gain: float, moves: bool) -> None:
    """Each step to the right is 10 % better in throughput."""
    line = KnobSpace([option("x", range(50))])
    searcher = make_searcher("droplet", line, 1, droplet={"starts": 1, "gain": gain, "reach": 1})
    start = searched(searcher, lambda c: 1.1 ** -c[:, 0].astype(float), 1)[0].config[0]
    assert 0 < start < 48
    searched(searcher, lambda c: 1.1 ** -c[:, 0].astype(float), 2)
    assert (int(searcher.ask_planned(1)[0, 0]) == start + 2) == moves


# Nearest neighbours


@given(st.integers(0, 1000), st.integers(1, 6))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_candidates_are_ranked_as_by_brute_force(seed: int, nearest: int) -> None:
    rng = np.random.default_rng(seed)
    candidates, configs = rng.integers(3, size=(7, 4)), rng.integers(3, size=(rng.integers(1, 20), 4))
    throughput = rng.random(len(configs))
    for row, found in zip(candidates, nearest_mean(candidates, configs, throughput, nearest), strict=True):
        by_distance = sorted(range(len(configs)), key=lambda i: ((row != configs[i]).sum(), i))
        assert found == pytest.approx(np.mean([throughput[i] for i in by_distance[:nearest]]))


def test_the_walk_moves_by_metropolis_rule_and_weighs_its_neighbourhoods() -> None:
    """At temperature 0 the walk stands at the best of all trials; what led to nothing weighs less."""
    searcher = make_searcher("knn", GRID, 5, knn={"temperature": 0.0, "batch": 1, "first": 1})
    cost = bowl(GRID, CENTRE)
    trials = searched(searcher, cost, 60)
    searcher.ask_planned(1)  # a plan takes in what was told before
    state = searcher.state()["planner"]
    assert trials[state["place"]].cost == min(t.cost for t in trials)
    assert sum(state["weights"]) == pytest.approx(3)
    assert len(set(state["weights"])) > 1


def test_a_walk_that_is_stuck_starts_again() -> None:
    searcher = make_searcher("knn", GRID, 5, knn={"patience": 3, "batch": 1, "first": 2, "temperature": 0.0})
    first = searched(searcher, lambda c: np.ones(len(c)), 2)
    worse = searched(searcher, lambda c: np.full(len(c), 9.0), 4)
    assert {t.cost for t in worse} == {9.0}
    assert len(searcher.ask_planned(8)) == 2
    assert searcher.state()["planner"]["place"] == -1
    assert searcher.best == first[0]


# All of them


@pytest.mark.parametrize("name", ["lfbo", "droplet", "knn"])
@pytest.mark.parametrize("kind", ["seconds", "score"])
def test_each_is_better_than_random_search(name: str, kind: str) -> None:
    """With failures in a corner, whether seconds or scores are told."""
    space = KnobSpace([option(n, range(12)) for n in "abcd"])
    cost = bowl(space, np.array([9, 2, 6, 1]))
    found: dict[str, list[float]] = {}
    for searcher_name in (name, "random"):
        for seed in range(3):
            options = {"lfbo": {"trees": 10}} if searcher_name == "lfbo" else {}
            searcher, best = make_searcher(searcher_name, space, seed, **options), math.inf
            for _ in range(10):
                rows = searcher.ask(8)
                searcher.tell([told(row, float(c), kind) for row, c in zip(rows, cost(rows), strict=True)])
                best = min(best, cost(rows[rows[:, 0] < 11]).min(initial=math.inf))
            found.setdefault(searcher_name, []).append(best)
    assert max(found[name]) <= min(found["random"])
    assert np.mean(found[name]) < np.mean(found["random"])


def told(row: np.ndarray, cost: float, kind: str) -> Trial:
    if row[0] == 11:
        return Trial(tuple(row), Status.RUN_ERROR)
    return Trial(tuple(row), Status.OK, **({"seconds": cost} if kind == "seconds" else {"score": -cost}))


@pytest.mark.parametrize("name", ["lfbo", "droplet", "knn"])
@pytest.mark.parametrize("make", [sketched, constrained])
def test_refusals_and_failures_are_taken_on_the_way(name: str, make: Any) -> None:
    space = make()
    cost = bowl(space, np.ones(space.n_knobs, dtype=np.int64))
    searcher, seen = make_searcher(name, space, 0), set()
    statuses = {0: Status.INVALID, 1: Status.BUILD_ERROR, 2: Status.TIMEOUT}
    while len(rows := searcher.ask(7)):
        for row in rows:
            seen.add(tuple(row.tolist()))
            status = statuses.get(int(row.sum()) % 5)
            seconds = float(cost(row[None])[0])
            searcher.tell([Trial(tuple(row), status) if status else Trial(tuple(row), Status.OK, seconds)])
    assert seen == everything(space)


# Their moves


def test_a_nudge_is_one_small_move_of_one_active_knob() -> None:
    for space in (sketched(), KnobSpace([split("s", 12, 2), option("one", [1]), option("o", [1, 2, 3])])):
        rng = np.random.default_rng(0)
        configs = space.sample(400, rng)
        moved = Moves(space).nudge(configs, rng)
        assert space.is_valid(moved).all()
        changed = moved != configs
        same_sketch = (moved[:, 0] == configs[:, 0]) if space.names[0] == "sketch" else np.ones(400, dtype=bool)
        assert changed.any()
        assert (changed[same_sketch].sum(axis=1) <= 1).all()
        for row, knob in zip(*np.nonzero(changed & same_sketch[:, None]), strict=True):
            assert moved[row, knob] in space.knobs[knob].neighbours[configs[row, knob]]


def test_around_at_a_distance_makes_the_same_move_again() -> None:
    moves, rng = Moves(GRID), np.random.default_rng(0)
    near = moves.around(np.array([[4, 4, 4, 8]]), rng, distance=3) - np.array([4, 4, 4, 8])
    expected = [[s if i == knob else 0 for i in range(4)] for knob in range(3) for s in (-3, 3)] + [[0, 0, 0, -3]]
    assert sorted(near.tolist()) == sorted(expected)
