"""The cost model, the history and the whole loop on landscapes with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon.search import KnobSpace, Status, Trial, make_searcher, option
from chameleon.search.annealing import Annealer, AnnealingConfig
from chameleon.search.cost_model import CostModel, CostModelConfig
from chameleon.search.genetic import Genetic, GeneticConfig
from chameleon.search.history import History, Prior
from chameleon.search.learner import Learner
from chameleon.search.moves import Moves
from tests.search.synthetic import Cost, measure, tiled_matmul

GRID = KnobSpace([option(n, list(range(8))) for n in "abc"])


def told(space: KnobSpace, configs: np.ndarray, cost: Cost) -> History:
    history = History(space)
    history.add(measure(configs, cost))
    return history


def test_beliefs_that_are_right_teach_the_cost_model() -> None:
    """A few trials, and a sample of another landscape with the same order: the prediction ranks like the sample."""
    space, cost = tiled_matmul()
    rng = np.random.default_rng(0)
    few, believed, test = (space.sample(n, rng) for n in (12, 300, 300))
    history, learner = told(space, np.unique(few, axis=0), cost), Learner(space, CostModelConfig(), 0)

    def agreement() -> float:
        mean, truth = learner.predict(history, test)[0], -cost(test)
        return float(np.corrcoef(np.argsort(np.argsort(mean)), np.argsort(np.argsort(truth)))[0, 1])

    alone = agreement()
    history.prior = Prior(believed, (cost(believed).min() / cost(believed)) ** 0.9)
    assert agreement() > max(alone, 0.7)


def test_the_cost_model_ranks_what_it_has_not_seen() -> None:
    space, cost = tiled_matmul()
    rng = np.random.default_rng(0)
    train, test = space.sample(300, rng), space.sample(300, rng)
    model = CostModel(CostModelConfig())
    model.fit(space.features(train), -np.log(cost(train)), 1)
    mean, spread = model.predict(space.features(test))
    order, truth = np.argsort(np.argsort(mean)), np.argsort(np.argsort(-cost(test)))
    assert np.corrcoef(order, truth)[0, 1] > 0.75
    assert (spread > 0).any()
    again = CostModel(CostModelConfig())
    again.fit(space.features(train), -np.log(cost(train)), 1)
    assert np.array_equal(again.predict(space.features(test))[0], mean)


def test_throughput_is_relative_to_the_best_and_failures_are_zero() -> None:
    history = History(GRID)
    history.add([Trial((0, 0, 0), Status.OK, 2.0), Trial((0, 0, 1), Status.TIMEOUT), Trial((0, 0, 2), Status.OK, 4.0)])
    assert history.throughput().tolist() == [1.0, 0.0, 0.5]
    history.add([Trial((0, 0, 3), Status.OK, 1.0), Trial((0, 0, 4), Status.INVALID)])
    assert history.throughput().tolist() == [0.5, 0.0, 0.25, 1.0, 0.0]
    assert history.measured == 4


@pytest.mark.parametrize("status", [Status.INVALID, Status.RUN_ERROR])
def test_the_learner_expects_little_where_others_failed(status: Status) -> None:
    rng = np.random.default_rng(0)
    configs = GRID.rows(0, GRID.size)[rng.permutation(GRID.size)[:150]]
    history = History(GRID)
    history.add(
        [Trial(tuple(c), status) if c[0] >= 5 else Trial(tuple(c), Status.OK, 1.0 + 0.01 * c[1]) for c in configs]
    )
    learner = Learner(GRID, CostModelConfig(), seed=0)
    mean, _ = learner.predict(history, GRID.rows(0, GRID.size))
    fails = GRID.rows(0, GRID.size)[:, 0] >= 5
    assert mean[fails].max() < 0.5 < mean[~fails].min()


@pytest.mark.parametrize("newest", ["ok", "failed"])
def test_a_learner_that_followed_the_history_predicts_like_a_new_one(newest: str) -> None:
    """Also once the newest trials all succeeded, or all failed: what was learnt of older ones is forgotten."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(GRID.rows(0, GRID.size))[:120]
    status = [Status.RUN_ERROR if row[0] < 4 else Status.OK for row in rows[:60]]
    status += [Status.OK if newest == "ok" else Status.RUN_ERROR] * 60
    trials = [
        Trial(tuple(row), s, 1.0 + row.sum() if s is Status.OK else None) for row, s in zip(rows, status, strict=True)
    ]
    history, config = History(GRID), CostModelConfig(newest=50)
    followed = Learner(GRID, config, 0)
    for part in (trials[:40], trials[40:60], trials[60:]):
        history.add(part)
        followed.predict(history, rows)
    fresh = Learner(GRID, config, 0)
    for one, other in zip(followed.predict(history, rows), fresh.predict(history, rows), strict=True):
        np.testing.assert_array_equal(one, other)


def test_many_trials_are_thinned_to_the_best_and_the_newest() -> None:
    rng = np.random.default_rng(0)
    history = told(GRID, rng.permutation(GRID.rows(0, GRID.size)), lambda c: 1.0 + c.sum(axis=1))
    rows = Learner(GRID, CostModelConfig(newest=100), 0)._rows(history)
    assert set(range(GRID.size - 50, GRID.size)) <= set(rows.tolist())
    assert set(np.argsort(-history.throughput(), kind="stable")[:50].tolist()) <= set(rows.tolist())
    assert len(rows) <= 100


def test_the_annealer_finds_the_best_scores_and_its_chains_persist() -> None:
    def score(configs: np.ndarray) -> np.ndarray:
        return -np.abs(configs - 6).sum(axis=1).astype(float)

    rng = np.random.default_rng(0)
    annealer = Annealer(GRID, AnnealingConfig(chains=16, steps=80, keep=10))
    found, scores = annealer.explore(score, GRID.sample(16, rng), set(), rng)
    assert tuple(found[0]) == (6, 6, 6)
    assert scores.tolist() == sorted(scores, reverse=True)
    chains = annealer.state()["chains"]
    assert score(chains).mean() > -3  # they have cooled down near the top
    again, _ = annealer.explore(score, GRID.sample(16, rng), {found[0].tobytes()}, rng)
    assert tuple(found[0]) not in {tuple(r) for r in again.tolist()}


def test_children_mix_the_genes_of_the_fit() -> None:
    rng = np.random.default_rng(0)
    good = np.array([[1, 2, 3], [4, 5, 6]])
    bad = GRID.rows(0, GRID.size)[::40]
    history = told(
        GRID, np.vstack([bad, good]), lambda c: np.where((c[:, None] == good).all(axis=2).any(axis=1), 1e-3, 1e3)
    )
    children = Genetic(GeneticConfig(population=20, mutation=0.0)).generation(history, Moves(GRID), rng)
    assert {tuple(c) for c in children.tolist()} <= {(a, b, c) for a in (1, 4) for b in (2, 5) for c in (3, 6)}
    assert len(children) > 2


def best_after(name: str, trials: int, seed: int, space: KnobSpace, cost: Cost) -> float:
    searcher, left = make_searcher(name, space, np.random.default_rng(seed)), trials
    while left and len(configs := searcher.ask_planned(left)):
        searcher.tell(measure(configs, cost))
        left -= len(configs)
    assert searcher.best is not None
    assert searcher.best.seconds is not None
    return searcher.best.seconds


@pytest.mark.slow
def test_chameleon_is_far_ahead_of_random_on_a_large_tiling_space() -> None:
    space, cost = tiled_matmul()
    assert space.size > 10**9
    ours = [best_after("chameleon", 80, seed, space, cost) for seed in (0, 1)]
    random = [best_after("random", 256, seed, space, cost) for seed in range(4)]
    assert max(ours) < min(random)
    assert np.mean(ours) < 0.7 * np.mean(random)


@pytest.mark.parametrize(("wanted", "largest"), [(8, 8), (200, 16)])
def test_plans_are_no_larger_than_the_host_can_use_at_once(wanted: int, largest: int) -> None:
    """The plan after 130 trials: the most where the host asks for many, the least where it asks for few."""
    rng = np.random.default_rng(0)
    searcher = make_searcher("release", GRID, rng, explorer={"walkers": 32, "steps": 12, "rollouts": 1})
    rows = GRID.rows(0, GRID.size)[rng.permutation(GRID.size)[:130]]
    searcher.tell(measure(rows, lambda c: 1.0 + np.abs(c - 3).sum(axis=1)))
    asked = len(searcher.ask_planned(wanted))
    assert 8 <= asked <= largest
    assert asked + len(searcher.state()["queue"]) <= largest


@pytest.mark.slow
def test_clustering_by_as_many_knobs_as_there_are_is_clustering_by_all() -> None:
    space, cost = tiled_matmul()
    asked = []
    for largest in (None, space.n_knobs, 1):
        searcher = make_searcher("chameleon", space, np.random.default_rng(0), sampler={"largest": largest})
        for _ in range(4):
            asked.append(searcher.ask(16))
            searcher.tell(measure(asked[-1], cost))
    everything, all_named, one = (np.vstack(asked[i : i + 4]) for i in (0, 4, 8))
    np.testing.assert_array_equal(everything, all_named)
    assert everything.shape != one.shape or (everything != one).any()


@pytest.mark.slow
def test_a_recipe_takes_either_explorer() -> None:
    space, cost = tiled_matmul()
    annealed = make_searcher("release", space, np.random.default_rng(0), explorer=AnnealingConfig(steps=125, keep=256))
    named = make_searcher("annealing+adaptive", space, np.random.default_rng(0))
    for _ in range(4):
        rows = annealed.ask(16)
        np.testing.assert_array_equal(rows, named.ask(16))
        annealed.tell(measure(rows, cost))
        named.tell(measure(rows, cost))
