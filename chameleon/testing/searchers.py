"""What every searcher promises, whatever it does inside.

A check takes `make(space, rng)`, which makes a fresh searcher. The checks are of four parts, since a searcher of your
own need not have all:

- `core`: `ask`, `tell`, `best` and `exhausted`;
- `random`: another seed gives another search;
- `state`: `state` and `restore`;
- `beliefs`: `believe`.
"""

from __future__ import annotations

import functools
import importlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chameleon.errors import UsageError, described, unknown
from chameleon.search.space import Digits, KnobSpace, option, split
from chameleon.search.trial import Status, Trial
from chameleon.testing.landscapes import SPACES, bowl, everything, measure
from chameleon.testing.report import ContractError, expect, expect_refusal

Make = Callable[[KnobSpace, np.random.Generator], Any]
"""Makes a fresh searcher of a space, whose only source of randomness is the generator."""

PARTS = ("core", "random", "state", "beliefs")


@dataclass(frozen=True)
class Check:
    """One promise, which is checked by calling this with `make`; its `str` is its name."""

    name: str
    part: str
    run: Callable[[Make], None] = field(repr=False)

    def __call__(self, make: Make) -> None:
        self.run(make)

    def __str__(self) -> str:
        return self.name


def searcher_checks(parts: Iterable[str] = PARTS) -> list[Check]:
    """The checks of these parts, to be run one by one, for instance by `pytest.mark.parametrize`.

    Raises:
        UsageError: on a part that does not exist.
    """
    chosen = set(parts)
    for part in chosen - set(PARTS):
        raise unknown("part", part, PARTS, UsageError)
    return [check for check in _CHECKS if check.part in chosen]


def check_searcher(make: Make, parts: Iterable[str] = PARTS) -> None:
    """Runs all checks of these parts.

    Raises:
        ContractError: with a line for each check that failed.
    """
    failed = []
    for check in searcher_checks(parts):
        try:
            check(make)
        except Exception as error:  # a searcher that breaks may raise anything
            failed.append(f"{check}: {error if isinstance(error, ContractError) else described(error)}")
    if failed:
        raise ContractError("\n".join(failed))


_CHECKS: list[Check] = []


def _check(part: str, *variants: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a check, or one check for each of the values of its last argument."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for variant in variants:
            text = variant.value if isinstance(variant, Status) else variant
            run = functools.partial(_with_last, function, variant)
            _CHECKS.append(Check(f"{function.__name__}[{text}]", part, run))
        if not variants:
            _CHECKS.append(Check(function.__name__, part, function))
        return function

    return add


def _with_last(function: Callable[..., None], variant: Any, make: Make) -> None:
    function(make, variant)


def _made(make: Make, space: KnobSpace, seed: int = 0) -> Any:
    return make(space, np.random.default_rng(seed))


def _plain() -> tuple[KnobSpace, Callable[[Digits], Any]]:
    space = SPACES["plain"]()
    return space, bowl(space, np.array([3, 1, 1]))


def _until_the_end(searcher: Any, n: int) -> Iterator[Digits]:
    """Asks for `n` at a time until there are none; what is told in between is up to the caller.

    It ends, since what is handed out twice is a breach.
    """
    seen: set[tuple[int, ...]] = set()
    while len(configs := searcher.ask(n)):
        expect(len(configs) <= n, f"ask({n}) gives at most {n} configurations, got {len(configs)}")
        count = len(seen) + len(configs)
        seen |= set(_tuples(configs))
        expect(len(seen) == count, "no configuration is handed out twice")
        yield configs


def _tuples(configs: Digits) -> list[tuple[int, ...]]:
    return [tuple(c) for c in np.asarray(configs).tolist()]


@_check("core", *SPACES)
def asks_for_every_configuration_of_the_space_exactly_once(make: Make, kind: str) -> None:
    space = SPACES[kind]()
    searcher, cost, seen = _made(make, space), bowl(space, np.ones(space.n_knobs, dtype=np.int64)), set()
    for configs in _until_the_end(searcher, 9):
        seen |= set(_tuples(configs))
        searcher.tell(measure(configs, cost))
    expect(seen == everything(space), "every valid configuration is handed out, and no other")
    expect(searcher.exhausted, "at the end of the space `exhausted` is True")
    expect(len(searcher.ask(1)) == 0, "after the end there is nothing more")


@_check("core")
def takes_a_space_of_one(make: Make) -> None:
    searcher = _made(make, KnobSpace([split("s", 1, 4), option("o", ["only"])]))
    expect(_tuples(searcher.ask(8)) == [(0, 0)], "the only configuration is handed out")
    expect(not searcher.exhausted, "`exhausted` is said with an answer that holds none")
    expect(searcher.ask(8).shape == (0, 2), "an empty answer has the shape [0, n_knobs]")
    expect(searcher.exhausted, "after the only configuration the space is exhausted")


@_check("core")
def knows_the_best_that_it_was_told(make: Make) -> None:
    space, cost = _plain()
    searcher, fastest = _made(make, space), np.inf
    expect(searcher.best is None, "before any trial `best` is None")
    for _ in range(4):
        configs = searcher.ask(8)
        searcher.tell(measure(configs, cost))
        fastest = min(fastest, cost(configs).min())
        best = searcher.best
        expect(best is not None and best.seconds == fastest, f"`best` is the fastest trial, {fastest} s, got {best}")


@_check("core")
def takes_partial_tells_in_any_order(make: Make) -> None:
    space, cost = _plain()
    searcher, rng = _made(make, space), np.random.default_rng(1)
    waiting: list[Trial] = []
    asked: list[tuple[int, ...]] = []
    for _ in range(12):
        configs = searcher.ask(5)
        asked += _tuples(configs)
        waiting += measure(configs, cost)
        rng.shuffle(waiting)  # type: ignore[arg-type]
        searcher.tell(waiting[:3])
        waiting = waiting[3:]
    searcher.tell(waiting)
    expect(len(asked) == len(set(asked)), "no configuration is handed out twice")


@_check("core")
def takes_foreign_trials_and_never_asks_for_them(make: Make) -> None:
    space, cost = _plain()
    searcher, history = _made(make, space), space.rows(0, space.size)[::2]
    first = searcher.ask(2)  # the rest of a plan may contain foreign configurations
    foreign = history[~(history[:, None] == first[None]).all(axis=2).any(axis=1)]
    searcher.tell(measure(foreign, cost))
    asked = set(_tuples(first))
    for configs in _until_the_end(searcher, 16):
        asked |= set(_tuples(configs))
        searcher.tell(measure(configs, cost))
    expect(asked == everything(space) - set(_tuples(foreign)), "what was told is not asked for, all else is")


@_check("core")
def refuses_a_second_tell_and_takes_nothing_of_it(make: Make) -> None:
    space, cost = _plain()
    searcher = _made(make, space)
    trials = measure(searcher.ask(4), cost)
    searcher.tell(trials[:1])
    expect_refusal(lambda: searcher.tell([*trials[1:], trials[0]]), "a second tell is refused")
    try:
        searcher.tell(trials[1:])
    except ValueError as error:
        raise ContractError("of a tell that is refused nothing is taken") from error


@_check("core", (0, 0), (99, 0, 0), (-1, 0, 0))
def refuses_a_configuration_of_another_space(make: Make, config: tuple[int, ...]) -> None:
    searcher = _made(make, SPACES["plain"]())
    expect_refusal(lambda: searcher.tell([Trial(config, Status.TIMEOUT)]), f"a tell of {config} is refused")


@_check("core")
def refuses_to_be_asked_for_nothing(make: Make) -> None:
    expect_refusal(lambda: _made(make, SPACES["plain"]()).ask(0), "ask(0) is refused")


def _trace(make: Make, seed: int) -> list[tuple[int, ...]]:
    space, cost = _plain()
    searcher, rows = _made(make, space, seed), []
    for _ in range(6):
        configs = searcher.ask(10)
        rows += _tuples(configs)
        searcher.tell(measure(configs, cost))
    return rows


@_check("core")
def gives_the_same_sequence_for_the_same_seed(make: Make) -> None:
    expect(_trace(make, 5) == _trace(make, 5), "the same seed and outcomes give the same search")


@_check("random")
def gives_another_sequence_for_another_seed(make: Make) -> None:
    expect(_trace(make, 5) != _trace(make, 6), "another seed gives another search")


@_check("core")
def leaves_global_random_state_alone(make: Make) -> None:
    torch = importlib.import_module("torch")

    def everything_global() -> list[object]:
        numpy_state = str(np.random.get_state())  # noqa: NPY002
        return [torch.get_rng_state().tolist(), numpy_state, random.getstate(), torch.get_num_threads()]

    before = everything_global()
    _trace(make, 5)
    expect(everything_global() == before, "global random state and PyTorch's threads are left alone")


@_check("core")
def takes_a_constant_landscape(make: Make) -> None:
    searcher = _made(make, SPACES["plain"]())
    for _ in range(6):
        searcher.tell(measure(searcher.ask(10), lambda c: np.full(len(c), 1e-3)))
    expect(searcher.best is not None, "one of equal trials is the best")


@_check("core", Status.BUILD_ERROR, Status.RUN_ERROR, Status.TIMEOUT, Status.INVALID)
def goes_on_when_everything_fails(make: Make, status: Status) -> None:
    space = SPACES["sketched"]()
    searcher, count = _made(make, space), 0
    for configs in _until_the_end(searcher, 16):
        count += len(configs)
        searcher.tell([Trial(c, status) for c in _tuples(configs)])
    expect(searcher.best is None, "a failed trial is not the best")
    expect(count == len(everything(space)), "the search goes on to the end of the space")


@_check("core")
def takes_a_space_too_large_to_list(make: Make) -> None:
    space = KnobSpace([split(f"s{i}", 1024, 4) for i in range(8)])
    searcher, cost = _made(make, space), bowl(space, np.ones(8, dtype=np.int64))
    for _ in range(3):
        configs = searcher.ask(12)
        expect(space.is_valid(configs).all(), "only valid configurations are handed out")
        searcher.tell(measure(configs, cost))


@_check("state", False, True)
def continues_identically_from_the_middle_of_a_plan(make: Make, through_json: bool) -> None:
    space, cost = _plain()
    searcher = _made(make, space, 7)
    for _ in range(5):
        configs = searcher.ask(7)
        searcher.tell(measure(configs, cost)[:-1])  # one is lost each time
    other = _made(make, space, 8)
    other.restore(_through_json(searcher.state()) if through_json else searcher.state())
    _expect_the_same(searcher, other, (searcher.ask(7) for _ in range(5)), 7, cost)
    expect(other.best == searcher.best, "a restored searcher knows the same best")


def _through_json(state: Any) -> Any:
    return json.loads(json.dumps(state, default=lambda a: a.tolist()))


def _expect_the_same(
    searcher: Any, other: Any, answers: Iterable[Digits], n: int, cost: Callable[[Digits], Any]
) -> Sequence[tuple[int, ...]]:
    """Expects `other` to give these answers of `searcher` as well, and tells both the outcomes."""
    asked: list[tuple[int, ...]] = []
    for configs in answers:
        expect(np.array_equal(other.ask(n), configs), "a restored searcher goes on in the same way")
        trials = measure(configs, cost)
        searcher.tell(trials)
        other.tell(trials)
        asked += _tuples(configs)
    return asked


@_check("state")
def refuses_the_state_of_another_space(make: Make) -> None:
    state = _made(make, SPACES["sketched"]()).state()
    searcher = _made(make, SPACES["plain"]())
    expect_refusal(lambda: searcher.restore(state), "the state of another space is refused")


@_check("beliefs")
def restores_beliefs_and_asks_for_what_it_believes(make: Make) -> None:
    space, cost = _plain()
    rows = space.rows(0, space.size)
    searcher, other, asked = _made(make, space, 7), _made(make, space, 8), []
    searcher.believe(rows, cost(rows).min() / cost(rows))
    for _ in range(4):
        configs = searcher.ask(7)
        asked += _tuples(configs)
        searcher.tell(measure(configs, cost))
    other.restore(_through_json(searcher.state()))
    asked += _expect_the_same(searcher, other, _until_the_end(searcher, 9), 9, cost)
    expect(set(asked) == everything(space), "what is only believed is asked for all the same")
