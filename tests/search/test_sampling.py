"""The picker's parts against brute force."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.search import KnobSpace, option, sampling
from tests.search.synthetic import listed


@given(st.integers(2, 16), st.integers(0, 2**31 - 1))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_planted_groups_are_found(k: int, seed: int) -> None:
    """Tight groups at the corners of a cube: with as many clusters as groups, each group is a cluster."""
    corners = np.array(list(itertools.product((0.0, 10.0), repeat=4)))[:k]
    rng = np.random.default_rng(seed)
    points = np.repeat(corners, 10, axis=0) + rng.normal(size=(10 * k, 4)) * 1e-3
    labels = sampling.clusters(points, k, seed).reshape(k, 10)
    split = (labels != labels[:, :1]).any(axis=1)
    assert split.sum() <= k // 4  # k-means++ now and then starts twice in one group
    if not split.any():
        assert len(set(labels[:, 0].tolist())) == k


def test_no_more_clusters_than_distinct_points() -> None:
    points = np.repeat(np.arange(3.0)[:, None], 5, axis=0)
    assert len(set(sampling.clusters(points, 8, seed=0).tolist())) == 3


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


def test_normalised_columns() -> None:
    features = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0], [5.0, 5.0, 4.0]], dtype=np.float32)
    points = sampling.normalised(features)
    assert np.allclose(points[:, 0], [-(1.5**0.5), 0, 1.5**0.5])
    assert (points[:, 1] == 0).all()
    assert points[:, 2].tolist() == [0.0, -1.0, 1.0]


def test_epsilon_greedy_takes_the_top_and_some_random_ones() -> None:
    rng = np.random.default_rng(0)
    ranked, other = np.arange(100)[:, None], np.arange(1000, 1100)[:, None]
    assert sampling.epsilon_greedy(ranked, 10, 0.0, other, rng).ravel().tolist() == list(range(10))
    assert sampling.epsilon_greedy(ranked, 10, 1.0, other, rng).ravel().tolist() == list(range(1000, 1010))
    share = np.mean([(sampling.epsilon_greedy(ranked, 50, 0.2, other, rng) >= 1000).mean() for _ in range(100)])
    assert share == pytest.approx(0.2, abs=0.03)
    assert len(sampling.epsilon_greedy(ranked[:3], 10, 0.0, other, rng)) == 10  # topped up
