"""The checks of `chameleon.testing` find what they are for: each breach of a promise fails the check for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from chameleon.errors import UsageError
from chameleon.search import Digits, KnobSpace, Searcher, Trial, make_searcher, option
from chameleon.testing import (
    PARTS,
    SPACES,
    ContractError,
    check_host,
    check_searcher,
    check_space,
    searcher_checks,
)

CHECKS = {str(check): check for check in searcher_checks()}


class Wrapped:
    """A searcher that keeps the contract, for a breach to be made in it."""

    def __init__(self, space: KnobSpace, rng: np.random.Generator) -> None:
        self.space = space
        self.inner: Searcher = make_searcher("random", space, rng)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def best(self) -> Trial | None:
        return self.inner.best

    def ask(self, n: int) -> Digits:
        return self.inner.ask(n)

    def tell(self, trials: Sequence[Trial]) -> None:
        self.inner.tell(trials)


class Repeats(Wrapped):
    def ask(self, n: int) -> Digits:
        found = self.inner.ask(n)
        return np.vstack([found[:-1], found[:1]]) if len(found) else found


class LeavesOut(Wrapped):
    def ask(self, n: int) -> Digits:
        found = self.inner.ask(n)
        return found[(found != 0).any(axis=1)]


class GivesTooMany(Wrapped):
    def ask(self, n: int) -> Digits:
        return self.inner.ask(n + 1)


class NeverEnds(Wrapped):
    def ask(self, n: int) -> Digits:
        found = self.inner.ask(n)
        return found if len(found) else self.space.rows(0, n)


class TakesAnything(Wrapped):
    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            try:
                self.inner.tell([trial])
            except ValueError:
                continue


class TakesHalfOfARefusal(Wrapped):
    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self.inner.tell([trial])


class ForgetsTheBest(Wrapped):
    @property
    def best(self) -> Trial | None:
        return None


class IgnoresTheSeed(Wrapped):
    def __init__(self, space: KnobSpace, rng: np.random.Generator) -> None:
        super().__init__(space, np.random.default_rng(0))


class DrawsItsOwnSeed(Wrapped):
    def __init__(self, space: KnobSpace, rng: np.random.Generator) -> None:
        super().__init__(space, np.random.default_rng())


class UsesGlobalState(Wrapped):
    def ask(self, n: int) -> Digits:
        random.random()
        return self.inner.ask(n)


class Crashes(Wrapped):
    def tell(self, trials: Sequence[Trial]) -> None:
        self.inner.tell(trials)
        if self.inner.best is None:
            raise ZeroDivisionError("nothing worked")


class RestoresNothing(Wrapped):
    def restore(self, state: Any) -> None:
        pass


class BelievesThatItKnows(Wrapped):
    """Asks for nothing that it was to believe."""

    def believe(self, configs: Digits, throughput: Any) -> None:
        self.inner._known.update(KnobSpace.keys(configs))


BREACHES: list[tuple[Callable[..., Any], str]] = [
    (Repeats, "asks_for_every_configuration_of_the_space_exactly_once[plain]"),
    (LeavesOut, "asks_for_every_configuration_of_the_space_exactly_once[sketched]"),
    (LeavesOut, "takes_a_space_of_one"),
    (GivesTooMany, "asks_for_every_configuration_of_the_space_exactly_once[listed]"),
    (NeverEnds, "goes_on_when_everything_fails[timeout]"),
    (TakesAnything, "refuses_a_second_tell_and_takes_nothing_of_it"),
    (TakesAnything, "refuses_a_configuration_of_another_space[(-1, 0, 0)]"),
    (TakesHalfOfARefusal, "refuses_a_second_tell_and_takes_nothing_of_it"),
    (ForgetsTheBest, "knows_the_best_that_it_was_told"),
    (ForgetsTheBest, "takes_a_constant_landscape"),
    (IgnoresTheSeed, "gives_another_sequence_for_another_seed"),
    (DrawsItsOwnSeed, "gives_the_same_sequence_for_the_same_seed"),
    (UsesGlobalState, "leaves_global_random_state_alone"),
    (Crashes, "goes_on_when_everything_fails[run_error]"),
    (RestoresNothing, "continues_identically_from_the_middle_of_a_plan[True]"),
    (RestoresNothing, "refuses_the_state_of_another_space"),
    (BelievesThatItKnows, "restores_beliefs_and_asks_for_what_it_believes"),
]


@pytest.mark.parametrize(("breach", "name"), BREACHES)
def test_a_breach_is_found(breach: Callable[..., Any], name: str) -> None:
    CHECKS[name](Wrapped)
    with pytest.raises((ContractError, ZeroDivisionError)):
        CHECKS[name](breach)


def test_one_call_runs_all_checks_and_names_those_that_failed() -> None:
    check_searcher(Wrapped)
    with pytest.raises(ContractError) as failed:
        check_searcher(Crashes)
    assert str(failed.value).splitlines() == [
        f"goes_on_when_everything_fails[{status}]: ZeroDivisionError: nothing worked"
        for status in ("build_error", "run_error", "timeout", "invalid")
    ]


def test_parts() -> None:
    names = [str(check) for part in PARTS for check in searcher_checks([part])]
    assert sorted(names) == sorted(CHECKS)  # none in two parts, no name twice
    assert len(names) == 26
    check_searcher(IgnoresTheSeed, ["core"])
    with pytest.raises(UsageError, match="did you mean core"):
        searcher_checks(["cores"])


@pytest.mark.parametrize("kind", SPACES)
def test_spaces_keep_their_contract(kind: str) -> None:
    check_space(SPACES[kind](), np.random.default_rng(0))


def test_a_space_without_anything_valid_is_found() -> None:
    space = KnobSpace([option("x", [1, 2, 3])], valid=lambda configs: configs[:, 0] > 5)
    with pytest.raises(ContractError, match="configurations are valid"):
        check_space(space, np.random.default_rng(0))


def test_moves_out_of_a_space_are_found() -> None:
    space = KnobSpace([option("x", [1, 2, 3])])
    space.knobs[0].moves[2, 1] = 3
    with pytest.raises(ContractError, match="moves stay inside"):
        check_space(space, np.random.default_rng(0))


def host(name: str, seed: int, trials: int) -> list[tuple[int, ...]]:
    searcher = make_searcher(name, SPACES["plain"](), seed)
    return [tuple(c) for c in searcher.ask(trials).tolist()]


def test_a_host() -> None:
    check_host(host, ["random", "genetic"])


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (lambda name, seed, trials: host(name, seed, trials + 1), "24 trials are made, got 25"),
        (lambda name, seed, trials: [*host(name, seed, trials - 1), (0, 0, 0)] * 2, "24 trials are made, got 48"),
        (lambda name, seed, trials: host(name, seed, 1) * trials, "nothing is measured twice"),
        (lambda name, seed, trials: host(name, int(np.random.default_rng().integers(9**9)), trials), "the same seed"),
        (lambda name, seed, trials: host(name if name == "random" else "grid", seed, trials), "is refused"),
    ],
)
def test_a_breach_of_a_host_is_found(broken: Callable[[str, int, int], Any], promise: str) -> None:
    with pytest.raises(ContractError, match=promise):
        check_host(broken, ["random"])
