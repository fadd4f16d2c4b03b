"""What every searcher promises, by the checks of `chameleon.testing`; and how searchers are made by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from chameleon.search import (
    SEARCHERS,
    ChameleonSearcher,
    EarlyStopping,
    KnobSpace,
    Searcher,
    Status,
    Trial,
    UnknownSearcherError,
    make_searcher,
)
from chameleon.testing import Check, searcher_checks
from chameleon.testing.landscapes import listed, plain, sketched

SMALL: dict[str, dict[str, Any]] = {
    "agent": {
        "explorer": {"walkers": 12, "steps": 5, "rollouts": 1, "epochs": 1, "minibatches": 1, "hidden": 16},
        "picker": {"plan": 12},
        "model": {"trees": 8, "members": 2},
    },
    "annealing": {
        "explorer": {"chains": 16, "steps": 12},
        "picker": {"plan": 12},
        "model": {"trees": 8, "members": 2},
    },
    "annealing+adaptive": {"explorer": {"chains": 16, "steps": 12}, "model": {"trees": 8, "members": 2}},
    "chameleon": {
        "explorer": {"walkers": 12, "steps": 5, "rollouts": 1, "epochs": 1, "minibatches": 1, "hidden": 16},
        "model": {"trees": 8, "members": 2},
    },
    "genetic": {"genetic": {"population": 12}},
    "lfbo": {"lfbo": {"trees": 5, "neighbours": 8, "random": 16}},
    "release": {
        "explorer": {"walkers": 12, "steps": 5, "rollouts": 1, "epochs": 1, "minibatches": 1, "hidden": 16},
        "model": {"trees": 8, "members": 2},
    },
}


def make(name: str, space: KnobSpace, rng: np.random.Generator | int = 0) -> Searcher:
    return make_searcher(name, space, rng, **SMALL.get(name, {}))


CASES = [
    pytest.param(check, name, id=f"{check}-{name}")
    for check in searcher_checks()
    for name in SEARCHERS
    if (name, check.part) != ("grid", "random")
]


@pytest.mark.parametrize(("check", "name"), CASES)
def test_contract(check: Check, name: str) -> None:
    check(lambda space, rng: make(name, space, rng))


def with_a_state_of_another_space(searcher: Searcher) -> None:
    searcher.restore(make("random", sketched(), np.random.default_rng(0)).state())


def told_twice(searcher: Searcher) -> None:
    trials = [Trial(tuple(c), Status.TIMEOUT) for c in searcher.ask(4).tolist()]
    searcher.tell(trials)
    searcher.tell(trials[:1])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda searcher: searcher.ask(0), "at least 1"),
        (lambda searcher: searcher.tell([Trial((99, 0, 0), Status.TIMEOUT)]), "not one of this space"),
        (told_twice, "told before"),
        (with_a_state_of_another_space, "space"),
    ],
)
def test_refusals_say_why(action: Callable[[Searcher], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action(make("random", plain(), np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("configs", "throughput"),
    [([[0, 0]], [1.0]), ([[99, 0, 0]], [1.0]), ([[0, 0, 0]], [1.0, 1.0]), ([[0, 0, 0]], [2.0]), ([[-1, 0, 0]], [0.5])],
)
def test_beliefs_of_another_kind_are_refused(configs: list[list[int]], throughput: list[float]) -> None:
    with pytest.raises(ValueError, match="throughputs in"):
        make("chameleon", plain(), np.random.default_rng(0)).believe(np.array(configs), np.array(throughput))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    space, rng = listed(), np.random.default_rng(0)
    with pytest.raises(UnknownSearcherError, match="did you mean chameleon"):
        make_searcher("chamelion", space, rng)
    with pytest.raises(UnknownSearcherError, match="unknown option of chameleon: 'planer'; did you mean planner"):
        make_searcher("chameleon", space, rng, planer={})
    with pytest.raises(UnknownSearcherError, match="unknown setting of explorer: 'walker'; did you mean walkers"):
        make_searcher("chameleon", space, rng, explorer={"walker": 3})
    with pytest.raises(UnknownSearcherError, match="unknown option of random: 'sampler'; known: none"):
        make_searcher("random", space, rng, sampler={})


def test_the_class_is_the_named_searcher() -> None:
    one = ChameleonSearcher(listed(), rng=np.random.default_rng(0))
    two = make_searcher("chameleon", listed(), np.random.default_rng(0))
    assert np.array_equal(one.ask(8), two.ask(8))


def test_early_stopping_counts_measured_trials_since_the_last_gain() -> None:
    stop = EarlyStopping(patience=3, min_trials=5)
    ok = [Trial((i,), Status.OK, s) for i, s in enumerate([4.0, 5.0, 5.0, 5.0])]
    assert not stop.update(ok)  # patience is over, but too few trials
    assert not stop.update([Trial((9,), Status.INVALID)] * 5)  # refusals are free
    assert not stop.update([Trial((10,), Status.OK, 3.0)])
    assert not stop.update([Trial((11,), Status.OK, 3.0), Trial((12,), Status.RUN_ERROR)])
    assert stop.update([Trial((13,), Status.TIMEOUT)])
