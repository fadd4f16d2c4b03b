"""Spaces of which constraints leave little; numpy numbers, seeds, scores and row predicates handed to the engine."""

from __future__ import annotations

import json
from itertools import pairwise, permutations

import numpy as np
import pytest

from chameleon.errors import UsageError
from chameleon.search import (
    SEARCHERS,
    Digits,
    EarlyStopping,
    KnobSpace,
    Status,
    Trial,
    make_searcher,
    option,
    split,
)
from chameleon.search.history import History

SMALL = {
    "explorer": {"walkers": 12, "steps": 5, "rollouts": 1, "epochs": 1, "minibatches": 1, "hidden": 16},
    "model": {"trees": 8, "members": 2},
}


def ordered(n: int, levels: int) -> KnobSpace:
    """Configurations with x0 < x1 < ...: of 20 levels and 10 knobs one in 55 million."""
    return KnobSpace([option(f"x{i}", range(levels)) for i in range(n)], valid=lambda c: (np.diff(c) > 0).all(axis=1))


def all_different(n: int) -> KnobSpace:
    """Permutations: no change of a single knob leads from one to another."""
    return KnobSpace(
        [option(f"x{i}", range(n)) for i in range(n)],
        valid=lambda c: (np.sort(c, axis=1) == np.arange(n)).all(axis=1),
    )


def small_product(n: int) -> KnobSpace:
    """Powers of two whose product is at most 16, of up to 2^15 each."""
    return KnobSpace([option(f"x{i}", 2 ** np.arange(16)) for i in range(n)], valid=lambda c: c.sum(axis=1) <= 4)


@pytest.mark.parametrize("space", [ordered(8, 20), ordered(10, 20), all_different(16), small_product(12)])
@pytest.mark.parametrize("name", ["annealing", "chameleon", "droplet", "genetic", "grid", "knn", "lfbo", "random"])
def test_searches_where_hardly_any_draw_is_valid(name: str, space: KnobSpace) -> None:
    searcher = make_searcher(name, space, 0, **(SMALL if name == "chameleon" else {}))
    seen: set[tuple[int, ...]] = set()
    for _ in range(3):
        rows = searcher.ask(16)
        assert len(rows) == 16
        assert space.is_valid(rows).all()
        assert not searcher.exhausted
        seen |= {tuple(r) for r in rows.tolist()}
        searcher.tell([Trial(tuple(r), Status.OK, 1.0 + float(np.sum(r))) for r in rows])
    assert len(seen) == 48


@pytest.mark.slow
@pytest.mark.parametrize("name", ["genetic", "random"])
def test_exhausted_is_said_only_when_it_is_certain(name: str) -> None:
    """All 24 permutations of a space that can be listed, and all 4 of one that cannot."""
    for space, every in ((all_different(4), set(permutations(range(4)))), (_four_of_many(), None)):
        searcher, seen = make_searcher(name, space, 0), set()
        while len(rows := searcher.ask(5)):
            seen |= {tuple(r) for r in rows.tolist()}
            searcher.tell([Trial(tuple(r), Status.OK, 1.0) for r in rows])
        assert seen == every or (every is None and len(seen) == 4)
        assert searcher.exhausted == (every is not None)


def _four_of_many() -> KnobSpace:
    return KnobSpace(
        [option(f"x{i}", range(100)) for i in range(5)], valid=lambda c: c[:, :-1].sum(1) + c[:, -1] // 4 < 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_as_many_are_handed_out_as_were_asked_for(name: str) -> None:
    searcher = make_searcher(name, KnobSpace([split("a", 64, 3), split("b", 64, 3), option("o", [1, 2, 3])]), 0)
    for n in (16, 1, 40):
        rows = searcher.ask(np.int64(n))
        assert len(rows) == n == len(np.unique(rows, axis=0))
        searcher.tell([Trial(tuple(r), Status.OK, 1.0 + float(np.sum(r))) for r in rows])
    with pytest.raises(ValueError, match=r"at least 1 configuration, got n=2\.5"):
        searcher.ask(2.5)  # type: ignore[arg-type]


ROW_PREDICATES = {
    "all": lambda row: all(a < b for a, b in pairwise(row)),
    "compare": lambda row: row[0] < row[1] < row[2],
    "sum": lambda row: sum(np.diff(row) > 0) == 2,
}


@pytest.mark.parametrize("kind", ROW_PREDICATES)
def test_a_predicate_for_one_row_is_taken(kind: str) -> None:
    """Also when the first call has as many rows as knobs, or one row."""
    knobs = [option(f"x{i}", range(4)) for i in range(3)]
    rows = np.array(list(np.ndindex(4, 4, 4)))
    expected = (np.diff(rows) > 0).all(axis=1)
    for first in (1, 2, 3, 64):
        space = KnobSpace(knobs, valid=ROW_PREDICATES[kind])
        np.testing.assert_array_equal(space.is_valid(rows[:first]), expected[:first])
        np.testing.assert_array_equal(space.is_valid(rows), expected)


def test_another_predicate_is_refused_or_its_error_shown() -> None:
    knobs = [option(f"x{i}", range(4)) for i in range(3)]
    with pytest.raises(
        ValueError, match=r"expected `valid` to return .* one bool for a row of 3, got an array of shape"
    ):
        KnobSpace(knobs, valid=lambda c: c.T > 1).is_valid(np.zeros((5, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="got None"):
        KnobSpace(knobs, valid=lambda c: None).is_valid(np.zeros((5, 3), dtype=np.int64))
    with pytest.raises(ZeroDivisionError):
        KnobSpace(knobs, valid=lambda c: 1 // 0).is_valid(np.zeros((5, 3), dtype=np.int64))


def test_numbers_of_numpy_are_numbers() -> None:
    one, other = option("x", np.array([1, 2, 4])), option("x", [1, 2, 4])
    assert one == other
    assert all(type(v) is int for v in one.values)
    np.testing.assert_array_equal(one.features, other.features)
    trial = Trial(np.array([1, 2]), "ok", np.float32(0.5))  # type: ignore[arg-type]
    assert trial == Trial((1, 2), Status.OK, 0.5)
    assert type(trial.seconds) is float
    assert Trial((1,), Status.OK, np.array([0.5])).seconds == 0.5  # type: ignore[arg-type]


def test_a_trial_with_numbers_of_numpy_can_be_written() -> None:
    timings = {"build": np.float32(0.5), "run": np.array([0.25])}
    trial = Trial(np.array([1, 2]), Status.OK, np.float32(0.5), timings=timings)  # type: ignore[arg-type]
    line = json.dumps(trial.to_json())
    assert Trial.from_json(json.loads(line)) == trial
    assert json.loads(line)["timings"] == {"build": 0.5, "run": 0.25}


HUGE = 10**400


def test_numbers_too_large_for_a_float_are_refused_or_capped() -> None:
    for seconds, score in ((HUGE, None), (None, HUGE), (None, -HUGE)):
        with pytest.raises(ValueError, match=r"expected a number of at most 1\.8e308 as .* of a trial, got"):
            Trial((0,), Status.OK, seconds, score=score)
    with pytest.raises(ValueError, match="not one of this space"):
        make_searcher("random", ordered(3, 5), 0).tell([Trial((0, 1, HUGE), Status.TIMEOUT)])
    knob = option("x", [1, float("inf"), -float("inf"), 1e308])
    assert knob.features[:, 1].tolist() == [1, 1024, -1024, np.float32(np.log2(1e308))]
    assert np.isfinite(option("x", [1, HUGE]).features).all()


def test_the_widest_span_of_scores_is_still_a_number() -> None:
    history = History(ordered(1, 4))
    history.add([Trial((i,), Status.OK, score=s) for i, s in enumerate((1.7e308, -1.7e308, 0.0))])
    assert history.throughput().tolist() == [1.0, 0.0, 0.5]


def test_a_digit_that_is_not_whole_is_none() -> None:
    space = ordered(3, 5)
    rows = np.array([[0, 1, 2], [0, 1, 2.5]])
    assert space.is_valid(rows).tolist() == [True, False]
    with pytest.raises(ValueError, match="digits of this space"):
        make_searcher("random", space, 0).believe(rows, np.array([1.0, 1.0]))


@pytest.mark.parametrize("config", [(0.5,), (1.9,), "ab", 3, (None,)])
def test_what_is_no_configuration_is_refused(config: object) -> None:
    with pytest.raises(ValueError, match="expected a configuration as a row of integer digits"):
        Trial(config, Status.OK, 1.0)  # type: ignore[arg-type]


def test_a_seed_is_taken_and_anything_else_refused() -> None:
    space = ordered(3, 5)
    one, two = make_searcher("random", space, 7), make_searcher("random", space, np.random.default_rng(7))
    np.testing.assert_array_equal(one.ask(5), two.ask(5))
    for wrong in (None, "seed", 1.5, -1):
        with pytest.raises(UsageError, match=r"default_rng|at least 0"):
            make_searcher("random", space, wrong)  # type: ignore[arg-type]


def hill(rows: Digits) -> np.ndarray:
    """Highest, at 0, where all digits are 9: every other score is below zero."""
    return -np.square(rows - 9).sum(axis=1).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["annealing", "chameleon", "genetic"])
def test_a_score_is_made_large(name: str) -> None:
    """Better than random search does, with failures on the way; and a restored search goes on alike."""
    space = KnobSpace([option(f"x{i}", range(12)) for i in range(4)])
    best = {}
    for searcher_name in (name, "random"):
        searcher = make_searcher(searcher_name, space, 1)
        other = make_searcher(searcher_name, space, 2)
        for i in range(14):
            rows = searcher.ask(8)
            trials = [Trial(tuple(r), Status.OK, score=s) for r, s in zip(rows, hill(rows), strict=True)]
            trials[0] = Trial(trials[0].config, Status.RUN_ERROR) if i % 4 == 3 else trials[0]
            searcher.tell(trials)
        assert searcher.best is not None
        other.restore(searcher.state())
        assert other.best == searcher.best
        best[searcher_name] = searcher.best.score
    assert best[name] > best["random"]


def test_scores_and_seconds_are_not_mixed() -> None:
    searcher = make_searcher("random", ordered(3, 5), 0)
    searcher.tell([Trial((0, 1, 2), Status.RUN_ERROR), Trial((0, 1, 3), Status.OK, score=-2.0)])
    with pytest.raises(ValueError, match="seconds or trials with scores, got both"):
        searcher.tell([Trial((0, 1, 4), Status.OK, 1.0)])
    with pytest.raises(ValueError, match="finite score in place of them"):
        Trial((0,), Status.OK, 1.0, score=1.0)
    with pytest.raises(ValueError, match="finite score"):
        Trial((0,), Status.OK, score=float("nan"))
    line = Trial((0,), Status.OK, score=0.0).to_json()
    assert line == {"config": [0], "status": "ok", "score": 0.0}
    assert Trial.from_json(line).score == 0.0


def test_early_stopping_knows_the_best_of_before() -> None:
    """A trial that is better than its predecessors, but not than what was known, is no gain."""
    trials = [Trial((i,), Status.OK, s) for i, s in enumerate([5.0, 4.0, 3.0])]
    assert not EarlyStopping(patience=3).update(trials)
    assert EarlyStopping(patience=3, best=Trial((9,), Status.OK, 2.0)).update(trials)
    assert not EarlyStopping(patience=3, best=Trial((9,), Status.OK, 3.5)).update(trials)


def test_early_stopping_follows_a_score() -> None:
    stop = EarlyStopping(patience=2)
    assert not stop.update([Trial((0,), Status.OK, score=-3.0), Trial((1,), Status.OK, score=-4.0)])
    assert not stop.update([Trial((2,), Status.OK, score=1.0)])
    assert stop.update([Trial((3,), Status.OK, score=0.0), Trial((4,), Status.OK, score=1.0)])
