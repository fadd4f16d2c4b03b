"""Warm start: translation by brute force, and what right, shuffled and hostile teachers do to a search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon.search import Kin, KnobSpace, Status, Trial, make_searcher, option, split, warm_start
from chameleon.search.kin import MOST_KIN, Translator, beliefs, distance, kin_among, starting_points
from tests.search.synthetic import measure, sketched


def matmul(y: int, x: int, k: int) -> KnobSpace:
    return KnobSpace([split("y", y, 3), split("x", x, 3), split("k", k, 2), option("unroll", [0, 16, 64, 512])])


def cost(space: KnobSpace, configs: np.ndarray) -> np.ndarray:
    """Seconds; the best tiles are 8x16 inside 64x64, whatever the extents, and the best reduction step is 8."""
    out = []
    for c in configs:
        v = space.values(c)
        tiles = [v["y"][-1], v["x"][-1], v["y"][-1] * v["y"][-2], v["x"][-1] * v["x"][-2], v["k"][-1]]
        far = sum(abs(math.log2(t / w)) for t, w in zip(tiles, (8, 16, 64, 64, 8), strict=True))
        out.append(1e-3 * 1.3 ** (far + abs(math.log2((1 + v["unroll"]) / 65))))
    return np.array(out)


OTHER, SPACE = matmul(256, 512, 256), matmul(512, 128, 384)
TRIALS = [
    Trial(tuple(c), Status.OK, float(s))
    for c in [np.unique(OTHER.sample(64, np.random.default_rng(7)), axis=0)]
    for c, s in zip(c.tolist(), cost(OTHER, c), strict=True)
]
KIN = Kin.of(OTHER, TRIALS)


def best_after(n: int, seed: int, kin: list[Kin]) -> float:
    """Fraction of the optimum after `n` trials, asked for 8 at a time."""
    searcher = make_searcher("chameleon", SPACE, seed)
    if kin:
        warm_start(searcher, kin)
    while n > 0:
        asked = searcher.ask_planned(min(n, 8))
        searcher.tell(measure(asked, lambda c: cost(SPACE, c)))
        n -= len(asked)
    assert searcher.best is not None
    return 1e-3 / searcher.best.cost


def test_what_is_told_of_kin_is_sorted_relative_and_without_failures() -> None:
    kin = Kin.of(OTHER, [*TRIALS, Trial((0, 0, 0, 0), Status.RUN_ERROR)])
    assert kin == KIN
    assert Kin.of(OTHER, TRIALS[::-1]).throughput == KIN.throughput
    assert kin.throughput[0] == 1.0
    assert list(kin.throughput) == sorted(kin.throughput, reverse=True)
    assert len(kin.configs) == len(TRIALS)
    assert Kin.of(OTHER, []).configs == ()


@given(st.integers(0, 10**9))
def test_the_nearest_configuration_is_that_of_a_brute_force_search(seed: int) -> None:
    row = OTHER.sample(1, np.random.default_rng(seed))[0]
    theirs = OTHER.values(row)

    def distance(knob: str, value: tuple[int, ...]) -> float:
        logs, wanted = ([math.log2(f) for f in v[1:]] for v in (value, theirs[knob]))
        inner = [sum(logs[i:]) - sum(wanted[i:]) for i in range(len(logs))]
        return sum(abs(a - b) for a, b in zip(logs, wanted, strict=True)) + sum(abs(d) for d in inner)

    nearest = Translator(SPACE).nearest(theirs)
    assert nearest is not None
    for i, knob in enumerate(SPACE.knobs[:3]):
        each = [distance(knob.name, v) for v in knob.values]
        assert each[int(nearest[i])] == pytest.approx(min(each))
    assert SPACE.knobs[3].values[nearest[3]] == theirs["unroll"]


def test_a_space_translates_itself_into_itself() -> None:
    for space in (SPACE, sketched()):
        rows = space.sample(200, np.random.default_rng(0))
        translator = Translator(space)
        assert np.array_equal([translator.nearest(space.values(r)) for r in rows], rows)


def test_values_that_are_not_there_give_the_nearest_number_or_the_first() -> None:
    space = KnobSpace([option("n", [1, 4, 64]), option("layout", ["a", "b"]), option("fixed", [[1], [2]])])
    nearest = Translator(space).nearest
    assert nearest({"n": 50, "layout": "b", "fixed": [2]}).tolist() == [2, 1, 1]
    assert nearest({"n": 3, "layout": "z", "other": 5}).tolist() == [1, 0, 0]
    assert nearest({"n": "many"}).tolist() == [0, 0, 0]
    assert nearest({"other": 5}) is None
    assert Translator(SPACE).nearest({"y": (2, 2)}).tolist() == [0, 0, 0, 0]  # another number of levels


def test_distance_counts_doublings_and_spaces_with_other_knobs_are_no_kin() -> None:
    assert distance(SPACE, SPACE) == 0
    assert distance(OTHER, SPACE) == distance(SPACE, OTHER) == pytest.approx(1 + 2 + math.log2(384 / 256))
    assert distance(SPACE, KnobSpace([*SPACE.knobs, option("vector", [1, 4])])) == 0  # 4 of 5 knobs are the same
    assert distance(SPACE, KnobSpace(SPACE.knobs[:3])) == math.inf  # 3 of 4
    assert distance(SPACE, KnobSpace([*SPACE.knobs[:3], split("unroll", 8, 2)])) == math.inf


def test_the_nearest_kin_with_successes_teach() -> None:
    def trials(space: KnobSpace) -> list[Trial]:
        return measure(space.rows(0, 3), lambda c: cost(space, c))

    spaces = [matmul(512 * 2**i, 128, 384) for i in (3, 1, 5, 4, 2, 6)]
    others = [(space, trials(space)) for space in spaces]
    found = kin_among(SPACE, [*others, (SPACE, []), (KnobSpace(SPACE.knobs[:2]), [Trial((0, 0), Status.OK, 1.0)])])
    assert [k.distance for k in found] == [1, 2, 3, 4]
    assert len(found) == MOST_KIN
    assert kin_among(SPACE, []) == []


def test_starting_points_come_in_rounds_nearest_kin_first_and_are_valid() -> None:
    far = Kin(KIN.configs[::-1], KIN.throughput, distance=3.0)
    free = KnobSpace(SPACE.knobs, valid=lambda rows: rows[:, 3] != 1)
    nearest = Translator(free).nearest
    expected = []
    for one, other in zip(KIN.configs, far.configs, strict=True):
        for row in (nearest(one), nearest(other)):
            if row[3] != 1 and row.tolist() not in expected:
                expected.append(row.tolist())
    for most in (1, 6, 20, 1000):
        assert starting_points(free, [far, KIN], most).tolist() == expected[:most]
    assert starting_points(free, [], 5).shape == (0, 4)


def test_beliefs_are_bounded_and_spread_over_good_and_bad() -> None:
    rows, throughput = beliefs(SPACE, [KIN, KIN], 20)
    assert len(rows) == len(throughput) == 20
    assert throughput.max() == 1.0
    assert throughput.min() == KIN.throughput[-1]
    assert len(beliefs(SPACE, [KIN], 10**6)[0]) == len(KIN.configs)
    assert beliefs(SPACE, [], 5)[0].shape == (0, 4)


def test_the_search_begins_with_what_was_fastest_elsewhere_and_asks_nothing_twice() -> None:
    searcher = make_searcher("chameleon", SPACE, 0)
    starts = starting_points(SPACE, [KIN], 4)
    assert warm_start(searcher, [KIN], starts=4) == len(starts)
    asked = searcher.ask(40)
    assert np.array_equal(asked[: len(starts)], starts)
    assert len(np.unique(asked, axis=0)) == len(asked)
    assert searcher.begin_with(starts) == 0


def test_beginning_goes_before_the_plan_and_belongs_to_the_state() -> None:
    one, two = (make_searcher("random", SPACE, 0) for _ in range(2))
    planned = one.ask_planned(1)
    starts = starting_points(SPACE, [KIN], 4)
    assert one.begin_with(starts) == len(starts)
    two.restore(one.state())
    for searcher in (one, two):
        assert np.array_equal(searcher.ask(len(starts)), starts)
    assert np.array_equal(one.ask(30), two.ask(30))
    assert not (starts == planned).all(axis=1).any()
    with pytest.raises(ValueError, match="valid configurations"):
        make_searcher("random", KnobSpace(SPACE.knobs, valid=lambda r: r[:, 0] > 0), 0).begin_with(
            np.zeros((1, 4), dtype=np.int64)
        )


@pytest.mark.slow
def test_kin_saves_trials_and_a_shuffled_teacher_costs_few() -> None:
    """Means over seeds: with kin 8 trials do more than 24 without, and noise costs 8 at most."""
    shuffled = Kin(
        tuple(KIN.configs[i] for i in np.random.default_rng(3).permutation(len(KIN.configs))), KIN.throughput
    )
    alone, taught, misled = (
        np.mean([best_after(n, seed, kin) for seed in range(4)]) for n, kin in ((24, []), (8, [KIN]), (32, [shuffled]))
    )
    assert taught > alone
    assert misled > 0.95 * alone
