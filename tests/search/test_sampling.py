"""The picker's parts against brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.search import KnobSpace, option, sampling
from tests.search.synthetic import listed


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=9), st.floats(1.1, 4.0))
@settings(deadline=None, derandomize=True)
def test_the_knee_is_the_first_step_that_does_not_pay(losses: list[float], ratio: float) -> None:
    steps = [i for i in range(1, len(losses)) if not losses[i] < losses[i - 1] / ratio]
    assert sampling.knee(losses, ratio) == (steps[0] if steps else len(losses) - 1)


def test_as_many_clusters_as_there_are_groups() -> None:
    """Twelve tight groups: from 4 to 8 to 12 clusters the loss falls steeply, from 12 to 16 it has nowhere to go."""
    rng = np.random.default_rng(0)
    centres = np.array([[10 * (i % 4), 10 * (i // 4)] for i in range(12)], dtype=float)
    points = np.repeat(centres, 10, axis=0) + rng.normal(size=(120, 2)) * 1e-3
    labels = sampling.clusters(points, [6, 12, 24, 48], 2.5, seed=0)
    assert len(set(labels.tolist())) in (12, 24)
    few = sampling.clusters(points, [12], 2.5, seed=1)
    for group in range(12):
        assert len(set(few[10 * group : 10 * group + 10].tolist())) == 1


def test_no_more_clusters_than_distinct_points() -> None:
    points = np.repeat(np.arange(3.0)[:, None], 5, axis=0)
    assert len(set(sampling.clusters(points, [8, 16], 2.5, seed=0).tolist())) == 3


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), min_size=1, max_size=30))
@settings(deadline=None, derandomize=True)
def test_snapping_takes_the_best_member_of_each_cluster(members: list[tuple[int, int]]) -> None:
    labels, scores = np.array([m[0] for m in members]), np.array([float(m[1]) for m in members])
    chosen = sampling.snap(labels, scores)
    brute = {c: max(s for label, s in members if label == c) for c in {m[0] for m in members}}
    assert {int(labels[i]): scores[i] for i in chosen} == brute
    assert scores[chosen].tolist() == sorted(brute.values(), reverse=True)


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=20))
@settings(deadline=None, derandomize=True)
def test_the_mode_of_every_knob(rows: list[list[int]]) -> None:
    brute = [
        min(Counter(column).items(), key=lambda item: (-item[1], item[0]))[0] for column in zip(*rows, strict=True)
    ]
    assert sampling.mode(np.array(rows)).tolist() == brute


def test_synthesis_replaces_bad_picks_by_what_most_candidates_share() -> None:
    space = KnobSpace([option(n, list(range(5))) for n in "abc"])
    group = np.array([[1, 2, 3], [1, 2, 0], [1, 4, 3], [0, 2, 3]])[1:]  # the mode 1 2 3 is not among them
    picks = np.array([[0, 0, 0], [4, 4, 4]])
    bad = np.array([True, False])
    assert sampling.synthesise(picks, [group, group], bad, space, set()).tolist() == [[1, 2, 3], [4, 4, 4]]
    known = set(KnobSpace.keys(np.array([[1, 2, 3]])))
    assert sampling.synthesise(picks, [group, group], bad, space, known).tolist() == picks.tolist()
    both = sampling.synthesise(picks, [group, group], np.array([True, True]), space, set())
    assert both.tolist() == [[1, 2, 3], [4, 4, 4]]  # one configuration is not made twice


def test_synthesis_makes_only_configurations_that_exist() -> None:
    space = listed()
    assert space.listed is not None
    rng = np.random.default_rng(0)
    for _ in range(50):
        group = space.listed[rng.integers(len(space.listed), size=6)]
        made = sampling.synthesise(group[:1], [group], np.array([True]), space, set())
        assert space.is_valid(made).all()


def test_normalised_columns_and_distances() -> None:
    features = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0], [5.0, 5.0, 4.0]], dtype=np.float32)
    points = sampling.normalised(features)
    assert np.allclose(points[:, 0], [-(1.5**0.5), 0, 1.5**0.5])
    assert (points[:, 1] == 0).all()
    assert points[:, 2].tolist() == [0.0, -1.0, 1.0]
    distance = sampling.distances(np.array([[0.0], [2.0], [7.0]]), np.array([0, 0, 1]))
    assert distance.tolist() == [1.0, 1.0, 0.0]


def test_epsilon_greedy_takes_the_top_and_some_random_ones() -> None:
    rng = np.random.default_rng(0)
    ranked, other = np.arange(100)[:, None], np.arange(1000, 1100)[:, None]
    assert sampling.epsilon_greedy(ranked, 10, 0.0, other, rng).ravel().tolist() == list(range(10))
    assert sampling.epsilon_greedy(ranked, 10, 1.0, other, rng).ravel().tolist() == list(range(1000, 1010))
    share = np.mean([(sampling.epsilon_greedy(ranked, 50, 0.2, other, rng) >= 1000).mean() for _ in range(100)])
    assert share == pytest.approx(0.2, abs=0.03)
    assert len(sampling.epsilon_greedy(ranked[:3], 10, 0.0, other, rng)) == 10  # topped up
