"""The agent really learns: closed forms, a bandit with a known answer, and a landscape with a known optimum."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon.search import KnobSpace, option, split
from chameleon.search.agent import Agent, AgentConfig, Policy, Rollout, UniformPolicy, gae, one_thread
from chameleon.search.moves import Moves
from tests.search.synthetic import sketched, tiled_matmul


def test_advantages_with_lambda_one_are_discounted_returns_minus_values() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(8, 3)).astype(np.float32)
    got = gae(rewards, values, 0.9, 1.0)
    for t in range(7):
        returns = sum(0.9**i * rewards[t + i] for i in range(7 - t)) + 0.9 ** (7 - t) * values[7]
        assert np.allclose(got[t], returns - values[t], atol=1e-5)


def test_advantages_with_lambda_zero_are_one_step_errors() -> None:
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    assert np.allclose(gae(rewards, values, 0.8, 0.0), rewards + 0.8 * values[1:] - values[:-1], atol=1e-6)


def test_advantages_of_constant_rewards_have_a_closed_form() -> None:
    got = gae(np.ones((50, 1), np.float32), np.zeros((51, 1), np.float32), 0.9, 0.95)
    g = 0.9 * 0.95
    assert np.allclose(got[:, 0], (1 - g ** np.arange(50, 0, -1)) / (1 - g), atol=1e-4)


def test_the_policy_finds_the_best_arms_of_a_bandit() -> None:
    """Two knobs with three and four actions; the best are 2 and 3. Uniform play finds both in one of twelve pulls."""
    rng = np.random.default_rng(0)
    config = AgentConfig(discount=0.0, hidden=16, epochs=3)
    policy = Policy(1, np.array([3, 4]), config, rng)
    seen, active = np.ones((64, 1), np.float32), np.ones((64, 2), dtype=bool)
    with one_thread():
        for _ in range(40):
            (actions, log_probs), values = policy.act(seen, active, rng), policy.values(seen)
            rewards = ((actions[:, 0] == 2) * 0.5 + (actions[:, 1] == 3) * 0.5).astype(np.float32)[None]
            rollout = Rollout(
                seen[None], actions[None], log_probs[None], np.stack([values, values]), actions[None], active[None]
            )
            policy.update(rollout, rewards, rng)
        (actions, _), values = policy.act(seen, active, rng), policy.values(seen)
    assert (actions == [2, 3]).all(axis=1).mean() > 0.8
    assert abs(float(values.mean()) - 1.0) < 0.25  # the value net knows what is to be had


def test_impossible_actions_are_never_taken_and_inactive_knobs_stay() -> None:
    rng = np.random.default_rng(0)
    policy = Policy(1, np.array([1, 3]), AgentConfig(changes=9.0), rng)
    active = np.tile([[True, True], [True, False]], (200, 1))
    actions, log_probs = policy.act(np.ones((400, 1), np.float32), active, rng)
    assert (actions[:, 0] == 0).all()
    assert set(actions[::2, 1]) == {0, 1, 2}
    assert (actions[1::2, 1] == 0).all()
    assert np.allclose(log_probs[1::2], 0.0, atol=1e-6)  # nothing to choose


@pytest.mark.parametrize("changes", [0.5, 1.5])
def test_an_untrained_walker_changes_as_many_knobs_as_configured(changes: float) -> None:
    policy = Policy(3, np.array([3, 3, 13, 25, 3]), AgentConfig(changes=changes), np.random.default_rng(0))
    seen = np.random.default_rng(1).normal(size=(4000, 3)).astype(np.float32)
    actions, _ = policy.act(seen, np.ones((4000, 5), dtype=bool), np.random.default_rng(2))
    assert (actions > 0).sum(axis=1).mean() == pytest.approx(changes, rel=0.15)


@pytest.mark.parametrize("changes", [0.5, 1.5])
def test_the_uniform_policy_moves_like_the_untrained_one(changes: float) -> None:
    """Every action of every knob is taken as often, by chi-square of the uniform one's counts."""
    n_actions, rng = np.array([1, 3, 13, 25, 3]), np.random.default_rng(0)
    active = np.tile([[True] * 5, [True, True, False, True, True]], (10000, 1))
    actions, _ = UniformPolicy(n_actions, AgentConfig(changes=changes)).act(np.ones((20000, 1)), active, rng)
    assert (actions[1::2, 2] == 0).all()
    assert (actions[:, 0] == 0).all()
    for knob in (1, 2, 3, 4):
        n, rows = n_actions[knob], actions[active[:, knob], knob]
        expected = np.full(n, changes / 4 / (n - 1)) * len(rows)
        expected[0] = (1 - changes / 4) * len(rows)
        counts = np.bincount(rows, minlength=n)
        assert len(counts) == n
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert chi2 < (n - 1) + 5 * np.sqrt(2 * (n - 1))


def test_with_the_uniform_policy_nothing_is_learnt_and_a_learning_rate_of_zero_freezes_the_policy() -> None:
    space = KnobSpace([split("a", 64, 3), option("b", [1, 2, 3])])
    starts = space.sample(8, np.random.default_rng(0))
    for config, same in (({"policy": "uniform"}, True), ({"learning_rate": 0.0}, True), ({}, False)):
        agent = Agent(space, AgentConfig(walkers=8, steps=5, **config), np.random.default_rng(1))
        before = agent.state()["policy"].get("weights", [])
        first = agent.rollout(starts, np.random.default_rng(2)).visited
        agent.explore(lambda c: c.sum(axis=1) / 10, starts, set(), np.random.default_rng(3))
        after = agent.state()["policy"].get("weights", [])
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)) == same
        again = agent.rollout(starts, np.random.default_rng(2)).visited
        assert np.array_equal(first, again) or not same


def walk(space: KnobSpace, steps: int, seed: int, score) -> float:
    """The best score of 32 walkers that take uniform actions."""
    rng, moves = np.random.default_rng(seed), Moves(space)
    points, best = space.sample(32, rng), -np.inf
    for _ in range(steps):
        points = moves.step(points, rng.integers(moves.n_actions, size=points.shape), rng)
        best = max(best, score(points).max())
    return float(best)


@pytest.mark.slow
def test_the_agent_learns_a_known_optimum_much_faster_than_uniform_walking() -> None:
    """16 knobs of 9 values, best at all 7: uniform walkers linger in the middle, the agent heads for the corner."""
    space = KnobSpace([option(f"o{i}", list(range(9))) for i in range(16)])

    def score(configs: np.ndarray) -> np.ndarray:
        return 1.0 - np.abs(configs - 7).mean(axis=1) / 7

    config = AgentConfig(walkers=32, steps=24, rollouts=20, elite=0.0, epochs=3, least_gain=-1.0)
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        agent = Agent(space, config, rng)
        found = max(float(agent.explore(score, space.sample(32, rng), set(), rng)[1][0]) for _ in range(2))
        uniform = walk(space, 24 * 20 * 2 * 2, seed, score)  # twice as many visits
        assert found > 0.9
        assert found > uniform + 0.05


@pytest.mark.slow
def test_the_trained_agent_scores_higher_on_average_than_the_untrained_one() -> None:
    space, cost = tiled_matmul()
    rng = np.random.default_rng(0)
    agent = Agent(space, AgentConfig(walkers=32, steps=16, rollouts=1, epochs=3), rng)

    def score(configs: np.ndarray) -> np.ndarray:
        return -np.log(cost(configs) * 1e3) / 5

    def mean_score() -> float:
        starts = space.sample(256, np.random.default_rng(5))
        return float(score(agent.rollout(starts, np.random.default_rng(6)).visited[-1]).mean())

    before = mean_score()
    for _ in range(25):
        agent.explore(score, space.sample(32, rng), set(), rng)
    assert mean_score() > before + 0.15


def test_the_rollout_follows_the_actions_and_the_model_is_asked_once_for_each() -> None:
    space, calls = sketched(), []

    def score(configs: np.ndarray) -> np.ndarray:
        calls.append(len(configs))
        return configs.sum(axis=1).astype(float)

    rng = np.random.default_rng(0)
    config = AgentConfig(walkers=8, steps=5, rollouts=2, least_gain=-1.0)
    known = set(KnobSpace.keys(space.rows(0, 10)))
    found, scores = Agent(space, config, rng).explore(score, space.sample(8, rng), known, rng)
    assert calls == [8, 40, 40]
    assert space.is_valid(found).all()
    assert not known & set(KnobSpace.keys(found))
    assert len(set(KnobSpace.keys(found))) == len(found)
    assert scores.tolist() == sorted(found.sum(axis=1).tolist(), reverse=True)


def test_the_agent_stops_when_its_candidates_no_longer_improve() -> None:
    space, calls = KnobSpace([option(f"o{i}", list(range(9))) for i in range(6)]), []

    def constant(configs: np.ndarray) -> np.ndarray:
        calls.append(len(configs))
        return np.ones(len(configs))

    rng = np.random.default_rng(0)
    Agent(space, AgentConfig(walkers=8, steps=5, rollouts=9), rng).explore(constant, space.sample(8, rng), set(), rng)
    assert len(calls) == 3  # the starts and two rollouts


def test_walkers_start_at_the_elite_the_best_scored_and_random_ones() -> None:
    space = KnobSpace([option("o", list(range(1000)))])
    rng = np.random.default_rng(0)
    agent = Agent(space, AgentConfig(walkers=8, elite=0.5), rng)
    starts = np.arange(100)[:, None]
    chosen = agent._chosen(starts, np.arange(100.0))[:, 0]
    assert chosen.tolist() == [0, 1, 2, 3, 99, 98, 4, 5]
    few = agent._chosen(starts[:3], np.arange(3.0))[:, 0]
    assert len(few) == 8
    assert set(few) == {0, 1, 2}


def test_a_restored_agent_walks_and_learns_identically() -> None:
    space = KnobSpace([split("a", 64, 3), option("b", [1, 2, 3])])
    config = AgentConfig(walkers=8, steps=5)

    def score(configs: np.ndarray) -> np.ndarray:
        return configs.sum(axis=1) / 10

    one, two = (Agent(space, config, np.random.default_rng(seed)) for seed in (0, 7))
    one.explore(score, space.sample(8, np.random.default_rng(0)), set(), np.random.default_rng(1))
    two.restore(one.state())
    for seed in (2, 3):
        starts = space.sample(8, np.random.default_rng(seed))
        a = one.explore(score, starts, set(), np.random.default_rng(seed))
        b = two.explore(score, starts, set(), np.random.default_rng(seed))
        assert np.array_equal(a[0], b[0])
    assert all(
        np.array_equal(x, y)
        for x, y in zip(one.state()["policy"]["weights"], two.state()["policy"]["weights"], strict=True)
    )
