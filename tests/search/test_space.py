"""Properties of knobs and spaces."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.search import Digits, Knob, KnobSpace, location, option, split, split_of
from chameleon.search.moves import Moves, ranked, unique_rows
from tests.search.synthetic import constrained, listed, sketched

settings.register_profile("engine", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("engine")

knobs = st.one_of(
    st.builds(lambda e, p: split("k", e, p), st.integers(1, 48), st.integers(1, 4)),
    st.builds(lambda v: option("k", v), st.lists(st.integers(0, 600), min_size=1, max_size=6, unique=True)),
    st.builds(lambda n: option("k", [chr(97 + i) for i in range(n)]), st.integers(1, 5)),
    st.builds(lambda n: location("k", list(range(n))), st.integers(1, 5)),
)


def named(knob: Knob, name: str) -> Knob:
    return Knob(name, knob.kind, knob.values, knob.features, knob.moves)


@st.composite
def spaces(draw: st.DrawFn) -> KnobSpace:
    drawn = [named(k, f"k{i}") for i, k in enumerate(draw(st.lists(knobs, min_size=1, max_size=5)))]
    if not draw(st.booleans()):
        return KnobSpace(drawn)
    sketch = option("sketch", list(range(draw(st.integers(1, 3)))))
    uses = [draw(st.lists(st.integers(1, len(drawn)), unique=True)) for _ in range(sketch.cardinality)]
    return KnobSpace([sketch, *drawn], sketches=uses)


@given(spaces(), st.integers(0, 2**32))
def test_index_and_digits_are_inverse(space: KnobSpace, seed: int) -> None:
    for config in space.sample(8, np.random.default_rng(seed)):
        index = space.index(config)
        assert 0 <= index < math.prod(int(c) for c in space.cardinalities)
        assert space.digits(index).tolist() == config.tolist()


def test_indices_may_exceed_64_bits() -> None:
    space = KnobSpace([split(f"s{i}", 4096, 4) for i in range(10)])
    last = (space.cardinalities - 1).tolist()
    assert space.index(last) == space.size - 1 > 2**80
    assert space.digits(space.size - 1).tolist() == last
    assert space.rows(space.size - 2, space.size)[-1].tolist() == last
    with pytest.raises(IndexError, match="outside"):
        space.digits(space.size)


@given(spaces(), st.integers(0, 2**32))
def test_samples_are_canonical_and_canonical_is_idempotent(space: KnobSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    configs = space.sample(20, rng)
    assert space.is_valid(configs).all()
    assert np.array_equal(space.canonical(configs), configs)
    rows = rng.integers(space.cardinalities, size=(20, space.n_knobs))
    assert np.array_equal(space.canonical(space.canonical(rows)), space.canonical(rows))
    assert not space.is_valid(rows + space.cardinalities).any()
    assert not space.is_valid(-1 - rows).any()


@given(spaces())
@settings(max_examples=15)
def test_enumeration_is_complete_against_brute_force(space: KnobSpace) -> None:
    if math.prod(int(c) for c in space.cardinalities) > 4000:
        return
    every = np.array(list(itertools.product(*(range(int(c)) for c in space.cardinalities))))
    wanted = {tuple(r) for r in space.canonical(every).tolist()}
    got = [tuple(r.tolist()) for r in space.enumerate()]
    assert len(got) == len(set(got)) == space.size
    assert set(got) == wanted
    middle = space.size // 2
    assert np.array_equal(np.vstack([space.rows(0, middle), space.rows(middle, space.size)]), np.array(got))


@pytest.mark.parametrize(("extent", "parts"), [(1, 3), (7, 2), (12, 3), (36, 4), (60, 2)])
def test_factorisations_are_complete_against_brute_force(extent: int, parts: int) -> None:
    brute = {f for f in itertools.product(range(1, extent + 1), repeat=parts) if math.prod(f) == extent}
    assert set(split("s", extent, parts).values) == brute
    assert set(split("s", extent, parts, max_innermost=4).values) == {f for f in brute if f[-1] <= 4}


@given(knobs)
def test_neighbours_are_symmetric_and_reach_everything(knob: Knob) -> None:
    for i, near in enumerate(knob.neighbours):
        assert i not in near
        assert all(i in knob.neighbours[j] for j in near)
    reached, frontier = {0}, [0]
    while frontier:
        fresh = set(knob.neighbours[frontier.pop()]) - reached
        reached |= fresh
        frontier += fresh
    assert reached == set(range(knob.cardinality))


def test_a_split_moves_one_prime_factor() -> None:
    knob = split("s", 12, 2)
    near = {knob.values[j] for j in knob.neighbours[knob.values.index((6, 2))]}
    assert near == {(12, 1), (3, 4), (2, 6)}


def test_a_list_of_factorisations_with_gaps_is_walked_along_the_list() -> None:
    knob = split_of("s", [(1, 64), (8, 8), (64, 1)])
    assert knob.neighbours == ((1,), (0, 2), (1,))


@given(spaces(), st.integers(0, 2**32))
def test_features_are_finite_exactly_where_active(space: KnobSpace, seed: int) -> None:
    configs = space.sample(16, np.random.default_rng(seed))
    features = space.features(configs)
    widths = [k.features.shape[1] for k in space.knobs]
    assert np.array_equal(np.isfinite(features), np.repeat(space.mask(configs), widths, axis=1))


@pytest.mark.parametrize("space", [sketched(), listed()])
def test_sampling_is_uniform_within_a_sketch(space: KnobSpace) -> None:
    n = 200 * space.size
    counts = Counter(map(tuple, space.sample(n, np.random.default_rng(0)).tolist()))
    assert len(counts) == space.size
    sketches: dict[int, list[int]] = {}
    for config, count in counts.items():
        sketches.setdefault(config[0] if space.listed is None else 0, []).append(count)
    for found in sketches.values():
        expected = sum(found) / len(found)
        chi2 = sum((c - expected) ** 2 / expected for c in found)
        assert chi2 < len(found) + 5 * math.sqrt(2 * len(found))  # mean and deviation of chi-square


def test_a_small_sketch_is_sampled_as_well() -> None:
    knobs = [option("sketch", range(2)), *(option(f"k{i}", range(10)) for i in range(9)), option("own", range(5))]
    space = KnobSpace(knobs, sketches=[range(1, 10), [10]])
    share = (space.sample(10_000, np.random.default_rng(0))[:, 0] == 1).mean()
    expected = (1 + math.log(5)) / (2 + math.log(5) + 9 * math.log(10))
    assert share == pytest.approx(expected, abs=0.02)


def test_only_listed_configurations_are_valid() -> None:
    space = listed()
    assert space.listed is not None
    full = KnobSpace(space.knobs)
    rows = full.rows(0, full.size)
    wanted = {tuple(r) for r in space.listed.tolist()}
    assert space.is_valid(rows).tolist() == [tuple(r) in wanted for r in rows.tolist()]
    wide = KnobSpace([option(f"o{i}", list(range(100))) for i in range(12)], listed=np.eye(12, dtype=np.int64))
    assert wide.is_valid(np.eye(12, dtype=np.int64)).all()
    assert not wide.is_valid(np.ones((1, 12), dtype=np.int64)).any()


def test_fingerprints_tell_spaces_apart() -> None:
    assert listed().fingerprint() == KnobSpace(listed().knobs).fingerprint()
    assert sketched().fingerprint() != KnobSpace(sketched().knobs).fingerprint()


@pytest.mark.parametrize(
    "make",
    [
        lambda: KnobSpace([]),
        lambda: KnobSpace([option("a", [1]), option("a", [2])]),
        lambda: KnobSpace([option("a", [])]),
        lambda: KnobSpace([option("a", [1, 2])], sketches=[()]),
        lambda: split("s", 0, 2),
    ],
)
def test_senseless_spaces_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        make()


@given(spaces(), st.integers(0, 2**32))
def test_moves_stay_in_the_space(space: KnobSpace, seed: int) -> None:
    rng, moves = np.random.default_rng(seed), Moves(space)
    configs = space.sample(16, rng)
    actions = rng.integers(moves.n_actions, size=configs.shape)
    assert space.is_valid(moves.step(configs, actions, rng)).all()
    assert space.is_valid(moves.mutate(configs, rng)).all()
    assert np.array_equal(moves.step(configs, np.zeros_like(actions), rng), configs)


def brute_neighbours(space: KnobSpace, config: Digits) -> set[tuple[int, ...]]:
    out = set()
    for i, knob in enumerate(space.knobs):
        for j in knob.neighbours[config[i]]:
            moved = config.copy()
            moved[i] = j
            if space.is_valid(moved[None])[0]:
                out.add(tuple(moved.tolist()))
    return out


@pytest.mark.parametrize("space", [listed(), constrained()])
def test_around_finds_all_valid_neighbours(space: KnobSpace) -> None:
    rng = np.random.default_rng(0)
    for config in space.sample(30, rng):
        if space.is_valid(config[None])[0]:
            got = {tuple(r) for r in Moves(space).around(config[None], rng).tolist()}
            assert got == brute_neighbours(space, config)


def test_mutation_changes_one_knob() -> None:
    space = KnobSpace([split("s", 24, 2), option("o", [1, 2, 3]), option("fixed", ["x"])])
    rng = np.random.default_rng(0)
    configs = space.sample(500, rng)
    changed = Moves(space).mutate(configs, rng) != configs
    assert (changed.sum(axis=1) == 1).all()
    assert changed[:, :2].any(axis=0).all()


def test_unique_and_ranked_rows() -> None:
    rows = np.array([[1, 1], [0, 2], [1, 1], [3, 0]])
    assert unique_rows(rows).tolist() == [[1, 1], [0, 2], [3, 0]]
    assert unique_rows(rows, set(KnobSpace.keys(rows[1:2]))).tolist() == [[1, 1], [3, 0]]
    configs, scores = ranked(rows, np.array([0.2, 0.9, 0.5, 0.4]), set())
    assert configs.tolist() == [[0, 2], [1, 1], [3, 0]]
    assert scores.tolist() == [0.9, 0.5, 0.4]


def test_features_of_some_knobs_are_columns_of_all() -> None:
    space = KnobSpace([split("s", 12, 2), option("o", [0, 4, 16]), option("p", ["a", "b", "c", "d"])])
    rows = space.rows(0, space.size)
    parts = [space.features(rows, [i]) for i in range(space.n_knobs)]
    np.testing.assert_array_equal(np.hstack(parts), space.features(rows))
    np.testing.assert_array_equal(space.features(rows, [0, 2]), np.hstack([parts[0], parts[2]]))
