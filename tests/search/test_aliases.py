"""Several configurations that are one schedule: the search is the one over schedules, each of which is there once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.search import SEARCHERS, Digits, KnobSpace, Searcher, make_searcher, option, split
from chameleon.testing.landscapes import SPACES, everything
from tests.search.synthetic import bowl, measure
from tests.search.test_contract import SMALL, make

KNOBS = [split("s", 12, 2), option("o", [0, 4, 16]), option("place", range(4)), option("p", ["a", "b"])]
SPACE = KnobSpace(KNOBS)
COST = bowl(SPACE, np.array([3, 1, 1, 0]))


def canonical(configs: Digits) -> Digits:
    """A place deeper than the tile goes is the deepest that it has, as in TVM."""
    inner = np.array([f[1] for f in KNOBS[0].values])[configs[:, 0]]
    deepest = np.searchsorted([1, 3, 6], inner, side="right")
    return np.column_stack([configs[:, :2], np.minimum(configs[:, 2], deepest), configs[:, 3]])


def is_alias(configs: Digits) -> np.ndarray:
    return (canonical(configs) != configs).any(axis=1)


QUOTIENT = KnobSpace(KNOBS, valid=lambda configs: ~is_alias(configs))
ALIASES = SPACE.rows(0, SPACE.size)[is_alias(SPACE.rows(0, SPACE.size))]


def told(searcher: Searcher, configs: Digits) -> None:
    """Measures the schedules of configurations, each under its own digits, as a host does."""
    aliases = is_alias(configs)
    searcher.tell_aliases(configs[aliases])
    known = {tuple(line[0]) for line in searcher.state()["trials"]}
    fresh = {tuple(row) for row in canonical(configs).tolist()} - known
    searcher.tell(measure(np.array(sorted(fresh)).reshape(-1, 4), COST))


@pytest.mark.parametrize("name", SEARCHERS)
@given(st.data())
@settings(derandomize=True, deadline=None, max_examples=3)
def test_aliases_that_are_told_change_no_plan(name: str, data: st.DataObject) -> None:
    """Two searches of the schedules alone; one is told of aliases on the way, some of them again and again."""
    plain, other = (make_searcher(name, QUOTIENT, 3, **SMALL.get(name, {})) for _ in range(2))
    for _ in range(5):
        rows = plain.ask(8)
        np.testing.assert_array_equal(other.ask(8), rows)
        plain.tell(measure(rows, COST))
        other.tell(measure(rows, COST))
        some = data.draw(st.lists(st.integers(0, len(ALIASES) - 1), max_size=20))
        other.tell_aliases(ALIASES[some])
    assert other.state()["trials"] == plain.state()["trials"]
    assert other.best == plain.best


@pytest.mark.parametrize("name", ["random", "grid"])
def test_a_space_with_known_aliases_is_searched_like_its_quotient(name: str) -> None:
    """Where no walk leads over configurations, the plans are the same whether aliases are told or forbidden."""
    quotient, space = make(name, QUOTIENT, 5), make(name, SPACE, 5)
    space.tell_aliases(ALIASES)
    while len(rows := quotient.ask(7)):
        np.testing.assert_array_equal(space.ask(7), rows)
        for searcher in (quotient, space):
            searcher.tell(measure(rows, COST))
    assert len(space.ask(1)) == 0
    assert space.exhausted


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_schedule_is_measured_once_whatever_its_names(name: str) -> None:
    searcher, asked = make(name, SPACE, 1), set()
    while len(rows := searcher.ask(9)):
        assert not asked & {tuple(row) for row in rows.tolist()}
        asked |= {tuple(row) for row in rows.tolist()}
        told(searcher, rows)
    measured = [tuple(line[0]) for line in searcher.state()["trials"]]
    assert len(measured) == len(set(measured))
    assert set(measured) == everything(QUOTIENT)
    assert searcher.exhausted


def test_aliases_are_restored_and_no_longer_planned() -> None:
    searcher, other = make("chameleon", SPACE, 7), make("chameleon", SPACE, 8)
    for _ in range(4):
        told(searcher, searcher.ask(6))
    waiting = np.array(searcher.state()["queue"])
    assert len(waiting)
    searcher.tell_aliases(waiting[:1])
    assert searcher.state()["queue"] == waiting[1:].tolist()
    other.restore(json.loads(json.dumps(searcher.state(), default=lambda a: a.tolist())))
    for _ in range(3):
        rows = searcher.ask(6)
        np.testing.assert_array_equal(other.ask(6), rows)
        for each in (searcher, other):
            told(each, rows)


@pytest.mark.parametrize("configs", [[[0, 0]], [[99, 0, 0]], [[-1, 0, 0]], [[0.5, 0, 0]]])
def test_aliases_of_another_space_are_refused(configs: list[list[float]]) -> None:
    searcher = make("random", SPACES["plain"]())
    with pytest.raises(ValueError, match=r"digits of this space|reshape"):
        searcher.tell_aliases(np.array(configs))
