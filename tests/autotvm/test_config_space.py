"""Config spaces as knobs: nothing is lost or renumbered, and nothing large is listed."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.search import split
from chameleon.search.kin import Translator
from tests.autotvm.templates import KINDS, TOPI, create, kind_task, topi_task
from tuners.config_space import ConfigKnobs, plain, values_of

pytestmark = pytest.mark.autotvm

TASKS = {**{k: lambda k=k: kind_task(k) for k in KINDS}, **{k: lambda k=k: topi_task(k) for k in TOPI}}
FILTERED = ("multi_filter", "huge")


@pytest.fixture(params=TASKS)
def config_space(request):
    return TASKS[request.param]().config_space


def as_data(config) -> str:
    return json.dumps(config.to_json_dict(), default=list)  # AutoTVM itself cannot write an identity reorder


def without_outermost(knobs, digits):
    """The values of a configuration, without the outermost factor of its splits, which the loop's extent leaves."""
    kinds = {k.name: k.kind for k in knobs.space.knobs}
    return {n: v[1:] if kinds[n] == "split" else v for n, v in knobs.space.values(digits).items()}


@pytest.mark.parametrize("name", [n for n in TASKS if n not in FILTERED])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_numbers_and_configurations_are_autotvms(name, data):
    config_space = TASKS[name]().config_space
    knobs = ConfigKnobs(config_space)
    assert knobs.space.size == config_space.range_length
    index = data.draw(st.integers(0, config_space.range_length - 1))
    digits = knobs.digits(index)
    assert knobs.index(digits) == index
    assert digits.tolist() == (config_space.point2knob(index) or [0])
    config = knobs.config(digits)
    assert as_data(config) == as_data(config_space.get(index))
    found = knobs.find(config)
    assert found is not None
    assert found.tolist() == digits.tolist()
    nearest = Translator(knobs.space).nearest(values_of(config))
    assert nearest is None or without_outermost(knobs, nearest) == without_outermost(knobs, digits)


def test_a_number_outside_is_refused(config_space):
    knobs = ConfigKnobs(config_space)
    for index in (-1, config_space.range_length):
        with pytest.raises(IndexError, match="outside"):
            knobs.digits(index)


def test_features_and_moves_are_sound(config_space):
    space = ConfigKnobs(config_space).space
    for knob in space.knobs:
        assert knob.features.shape[0] == knob.cardinality
        assert np.isfinite(knob.features).all()
        assert ((knob.moves >= 0) & (knob.moves < knob.cardinality)).all()
        if knob.cardinality > 1:
            stay = knob.moves == np.arange(knob.cardinality)[:, None]
            assert not stay.all(axis=1).any(), f"{knob.name}: a value that no move leaves"


def test_every_value_can_be_reached_by_small_moves(config_space):
    for knob in ConfigKnobs(config_space).space.knobs:
        if len({plain_split(v) for v in knob.values}) < knob.cardinality:
            continue  # a candidate listed twice
        reached, edge = {0}, [0]
        while edge:
            edge = [j for i in edge for j in knob.neighbours[i] if j not in reached]
            reached.update(edge)
        assert len(reached) == knob.cardinality, knob.name


def plain_split(value):
    return value[1:] if isinstance(value, tuple) and len(value) > 1 else json.dumps(value)


def test_a_multi_filter_holds_where_autotvm_says_so():
    config_space = kind_task("multi_filter").config_space
    knobs = ConfigKnobs(config_space)
    rows = np.array([knobs.digits(i) for i in range(config_space.range_length)])
    expected = [config_space.is_index_valid(i) for i in range(config_space.range_length)]
    assert knobs.space.is_valid(rows).tolist() == expected
    assert 0 < sum(expected) < len(expected)
    assert len(config_space) != config_space.range_length


def test_a_multi_filter_over_billions_is_asked_and_not_listed():
    config_space = kind_task("huge").config_space
    knobs = ConfigKnobs(config_space)
    assert knobs.space.size == config_space.range_length > 2e9
    rows = knobs.space.sample(200, np.random.default_rng(0))
    valid = knobs.space.is_valid(rows)
    assert valid.tolist() == [knobs.config(r)["s0"].size[3] <= knobs.config(r)["s1"].size[3] for r in rows]
    assert config_space._shared_filter_cache is None


def test_a_split_without_tail_is_the_engines_own():
    for extent, parts in itertools.product((12, 64, 97), (2, 3, 4)):
        config_space = create("chameleon/knobs", "factors", extent).config_space
        (ours,) = [k for k in ConfigKnobs(config_space).space.knobs if k.name == {2: "y", 3: "x", 4: "k"}[parts]]
        expected = split("any", extent, parts)
        assert sorted(ours.values) == sorted(expected.values)
        assert {ours.values[i]: {ours.values[j] for j in n} for i, n in enumerate(ours.neighbours)} == {
            expected.values[i]: {expected.values[j] for j in n} for i, n in enumerate(expected.neighbours)
        }


def test_a_permutation_moves_by_swapping_neighbours():
    (knob,) = [k for k in ConfigKnobs(kind_task("reorder").config_space).space.knobs if k.name == "all"]
    for i, perm in enumerate(knob.values):
        near = {tuple(knob.values[j]) for j in knob.neighbours[i]}
        swaps = {(*perm[:p], perm[p + 1], perm[p], *perm[p + 2 :]) for p in range(len(perm) - 1)}
        assert near == swaps
        assert knob.features[i].tolist() == [perm.index(axis) for axis in range(len(perm))]


def test_a_configuration_of_another_space_is_not_found_but_has_a_nearest():
    small, large = create("chameleon/matmul", 32, 32), create("chameleon/matmul", 48, 48)
    ours, theirs = ConfigKnobs(small.config_space), ConfigKnobs(large.config_space)
    far = theirs.config([next(i for i, v in enumerate(k.values) if v[1] == 12) for k in theirs.space.knobs])
    assert ours.find(far) is None
    nearest = Translator(ours.space).nearest(values_of(far))
    assert nearest is not None
    assert [plain(e)[1] for e in ours.entities(nearest).values()] == [16, 16]
    assert Translator(ours.space).nearest(values_of(kind_task("option").config_space.get(0))) is None
