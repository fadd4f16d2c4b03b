"""A saved state is taken whole or not at all, and only by a searcher that was made in the same way."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from chameleon.search import SEARCHERS, ChameleonSearcher, Searcher, StateError, make_searcher
from chameleon.testing.landscapes import SPACES
from tests.search.synthetic import bowl, measure
from tests.search.test_contract import SMALL, make

SPACE = SPACES["plain"]()
COST = bowl(SPACE, np.array([3, 1, 1]))


def run(searcher: Searcher, rounds: int) -> list[list[int]]:
    """What a searcher asks in some rounds, each with an answer that is lost."""
    asked = []
    for _ in range(rounds):
        rows = searcher.ask(7)
        asked += rows.tolist()
        searcher.tell(measure(rows, COST)[:-1])
    return asked


def plain(state: Any) -> Any:
    return json.loads(json.dumps(state, default=lambda a: a.tolist()))


def damaged(state: dict[str, Any]) -> list[Any]:
    """States that lack something or hold something else."""
    found: list[Any] = [None, 3, {}, [state]]
    for path in _paths(state):
        for value in (None, "junk", [[99] * 3]):
            other = copy.deepcopy(state)
            where = other
            for key in path[:-1]:
                where = where[key]
            where[path[-1]] = value
            found.append(other)
        del where[path[-1]]
        found.append(other)
    return found


def _paths(state: dict[str, Any], prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a state has anything, to the first entry of each list."""
    found = []
    for key in state if isinstance(state, dict) else range(min(len(state), 1)):
        found.append((*prefix, key))
        if isinstance(state[key], (dict, list)):
            found += _paths(state[key], (*prefix, key))
    return found


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_state_that_is_refused_changes_nothing(name: str) -> None:
    options = copy.deepcopy(SMALL.get(name, {}))
    if "walkers" in options.get("explorer", {}):
        options["explorer"]["hidden"] = 3
    giver, taker, untouched = (make_searcher(name, SPACE, seed, **options) for seed in (7, 8, 8))
    giver.believe(SPACE.rows(0, 3), np.array([1.0, 0.5, 0.2]))
    run(giver, 4)
    run(taker, 3)
    run(untouched, 3)
    before, refused = plain(taker.state()), 0
    for state in damaged(plain(giver.state())):
        try:
            taker.restore(state)
        except StateError:
            refused += 1
            assert plain(taker.state()) == before
        else:
            taker.restore(before)
    assert refused > 25
    assert run(taker, 3) == run(untouched, 3)


def test_a_state_of_another_version_is_refused() -> None:
    state = make("random", SPACE).state()
    for version in (1, 3, None):
        with pytest.raises(StateError, match=f"the state's version is {version}, this searcher's is 2"):
            make("random", SPACE).restore({**state, "version": version})


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_state_of_another_searcher_is_refused(name: str) -> None:
    state = make(name, SPACE).state()
    for other in SEARCHERS:
        if other != name:
            with pytest.raises(StateError, match=rf"the state's searcher is \{{'name': '{name}'".replace("+", r"\+")):
                make(other, SPACE).restore(state)


def test_a_state_of_other_options_is_refused_with_what_differs() -> None:
    state = plain(make("chameleon", SPACE).state())
    other = {**SMALL["chameleon"], "explorer": {**SMALL["chameleon"]["explorer"], "hidden": 8}}
    with pytest.raises(StateError, match=r"is \{'explorer': \{'hidden': 16\}\}, this .* \{'hidden': 8"):
        make_searcher("chameleon", SPACE, 0, **other).restore(state)
    with pytest.raises(StateError, match="featurize"):
        make_searcher("chameleon", SPACE, 0, featurize=lambda c: np.zeros((len(c), 1)), **SMALL["chameleon"]).restore(
            state
        )


def test_the_class_takes_the_state_of_the_named_searcher() -> None:
    named, other = make("chameleon", SPACE, 7), ChameleonSearcher(SPACE, rng=8, **SMALL["chameleon"])
    run(named, 4)
    other.restore(plain(named.state()))
    assert run(other, 3) == run(named, 3)


def test_a_state_shares_nothing_with_its_searcher() -> None:
    one, two = make("chameleon", SPACE, 7), make("chameleon", SPACE, 7)
    run(one, 4)
    run(two, 4)
    state = one.state()
    for path in _paths(state):
        where = state
        for key in path[:-1]:
            where = where[key] if isinstance(where, (dict, list)) else where
        if isinstance(where, dict) and isinstance(where.get(path[-1]), np.ndarray):
            where[path[-1]][...] = 0
    state["searcher"]["explorer"].clear()
    assert run(one, 3) == run(two, 3)
    assert plain(one.state()) == plain(two.state())
