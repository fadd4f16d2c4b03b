"""What every searcher promises, whatever it does inside."""

from __future__ import annotations

import json
import random
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
    option,
    split,
)
from tests.search.synthetic import bowl, constrained, listed, measure, sketched

NAMES = list(SEARCHERS)
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
    "release": {
        "explorer": {"walkers": 12, "steps": 5, "rollouts": 1, "epochs": 1, "minibatches": 1, "hidden": 16},
        "model": {"trees": 8, "members": 2},
    },
}
SPACES = {
    "plain": lambda: KnobSpace([split("s", 12, 2), option("o", [0, 4, 16]), option("p", ["a", "b", "c", "d"])]),
    "sketched": sketched,
    "listed": listed,
    "constrained": constrained,
}


def make(name: str, space: KnobSpace, seed: int = 0) -> Searcher:
    return make_searcher(name, space, np.random.default_rng(seed), **SMALL.get(name, {}))


def everything(space: KnobSpace) -> set[tuple[int, ...]]:
    rows = space.rows(0, space.size)
    return {tuple(r) for r in rows[space.is_valid(rows)].tolist()}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("kind", SPACES)
def test_asks_for_every_configuration_of_the_space_exactly_once(name: str, kind: str) -> None:
    space = SPACES[kind]()
    searcher, cost, seen = make(name, space), bowl(space, np.ones(space.n_knobs, dtype=np.int64)), []
    while len(configs := searcher.ask(9)):
        assert len(configs) <= 9
        seen += [tuple(c) for c in configs.tolist()]
        searcher.tell(measure(configs, cost))
    assert len(seen) == len(set(seen))
    assert set(seen) == everything(space)
    assert searcher.exhausted
    assert len(searcher.ask(1)) == 0


def test_a_space_of_one(name: str) -> None:
    searcher = make(name, KnobSpace([split("s", 1, 4), option("o", ["only"])]))
    assert searcher.ask(8).tolist() == [[0, 0]]
    assert not searcher.exhausted
    assert searcher.ask(8).shape == (0, 2)
    assert searcher.exhausted


def test_best_is_the_fastest_told(name: str) -> None:
    space = SPACES["plain"]()
    searcher, cost, fastest = make(name, space), bowl(space, np.array([3, 1, 1])), np.inf
    assert searcher.best is None
    for _ in range(4):
        configs = searcher.ask(8)
        searcher.tell(measure(configs, cost))
        fastest = min(fastest, cost(configs).min())
        assert searcher.best is not None
        assert searcher.best.seconds == fastest


def test_partial_and_out_of_order_tells(name: str) -> None:
    space = SPACES["plain"]()
    searcher, cost, waiting, asked = make(name, space), bowl(space, np.array([3, 1, 1])), [], []
    rng = np.random.default_rng(1)
    for _ in range(12):
        configs = searcher.ask(5)
        asked += [tuple(c) for c in configs.tolist()]
        waiting += measure(configs, cost)
        rng.shuffle(waiting)  # type: ignore[arg-type]
        searcher.tell(waiting[:3])
        waiting = waiting[3:]
    searcher.tell(waiting)
    assert len(asked) == len(set(asked))


def test_foreign_trials_are_taken_and_never_asked(name: str) -> None:
    space = SPACES["plain"]()
    searcher, cost = make(name, space), bowl(space, np.array([3, 1, 1]))
    history = space.rows(0, space.size)[::2]
    first = searcher.ask(2)  # the rest of the plan may contain foreign configurations
    keep = ~(history[:, None] == first[None]).all(axis=2).any(axis=1)
    searcher.tell(measure(history[keep], cost))
    asked = {tuple(c) for c in first.tolist()}
    while len(configs := searcher.ask(16)):
        asked |= {tuple(c) for c in configs.tolist()}
        searcher.tell(measure(configs, cost))
    assert asked == everything(space) - {tuple(c) for c in history[keep].tolist()}


def test_telling_twice_raises_and_takes_nothing(name: str) -> None:
    space = SPACES["plain"]()
    searcher, cost = make(name, space), bowl(space, np.array([3, 1, 1]))
    trials = measure(searcher.ask(4), cost)
    searcher.tell(trials[:1])
    before = json.dumps(searcher.state()["trials"])
    with pytest.raises(ValueError, match="told before"):
        searcher.tell([*trials[1:], trials[0]])
    assert json.dumps(searcher.state()["trials"]) == before
    searcher.tell(trials[1:])


@pytest.mark.parametrize("config", [(0, 0), (99, 0, 0), (-1, 0, 0)])
def test_a_configuration_of_another_space_is_refused(name: str, config: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not one of this space"):
        make(name, SPACES["plain"]()).tell([Trial(config, Status.TIMEOUT)])


def test_asking_for_nothing_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make(name, SPACES["plain"]()).ask(0)


def trace(name: str, seed: int, rounds: int = 6) -> list[list[int]]:
    space = SPACES["plain"]()
    searcher, cost, rows = make(name, space, seed), bowl(space, np.array([3, 1, 1])), []
    for _ in range(rounds):
        configs = searcher.ask(10)
        rows += configs.tolist()
        searcher.tell(measure(configs, cost))
    return rows


def test_the_same_seed_gives_the_same_sequence_and_another_seed_another(name: str) -> None:
    first = trace(name, 5)
    assert trace(name, 5) == first
    if name != "grid":
        assert trace(name, 6) != first


def test_global_random_state_is_left_alone(name: str) -> None:
    import torch

    def everything_global() -> list[object]:
        numpy_state = str(np.random.get_state())  # noqa: NPY002
        return [torch.get_rng_state().tolist(), numpy_state, random.getstate(), torch.get_num_threads()]

    before = everything_global()
    trace(name, 5)
    assert everything_global() == before


def test_a_constant_landscape(name: str) -> None:
    space = SPACES["plain"]()
    searcher = make(name, space)
    for _ in range(6):
        searcher.tell(measure(searcher.ask(10), lambda c: np.full(len(c), 1e-3)))
    assert searcher.best is not None


@pytest.mark.parametrize("status", [Status.BUILD_ERROR, Status.RUN_ERROR, Status.TIMEOUT, Status.INVALID])
def test_all_trials_failing(name: str, status: Status) -> None:
    space = SPACES["sketched"]()
    searcher, count = make(name, space), 0
    while len(configs := searcher.ask(16)):
        count += len(configs)
        searcher.tell([Trial(tuple(c), status) for c in configs.tolist()])
    assert searcher.best is None
    assert count == len(everything(space))


@pytest.mark.parametrize("through_json", [False, True])
def test_restoring_continues_identically_in_the_middle_of_a_plan(name: str, through_json: bool) -> None:
    space = SPACES["plain"]()
    cost = bowl(space, np.array([3, 1, 1]))
    searcher = make(name, space, 7)
    for _ in range(5):
        configs = searcher.ask(7)
        searcher.tell(measure(configs, cost)[:-1])  # one is lost each time
    state = searcher.state()
    if through_json:
        state = json.loads(json.dumps(state, default=lambda a: a.tolist()))
    other = make(name, space, 8)
    other.restore(state)
    for _ in range(5):
        configs = searcher.ask(7)
        assert np.array_equal(other.ask(7), configs)
        trials = measure(configs, cost)
        searcher.tell(trials)
        other.tell(trials)
    assert other.best == searcher.best


def test_beliefs_are_restored_and_what_is_believed_is_asked_for_all_the_same(name: str) -> None:
    space = SPACES["plain"]()
    cost, rows = bowl(space, np.array([3, 1, 1])), space.rows(0, space.size)
    searcher, other = make(name, space, 7), make(name, space, 8)
    searcher.believe(rows, cost(rows).min() / cost(rows))
    for _ in range(4):
        searcher.tell(measure(searcher.ask(7), cost))
    other.restore(json.loads(json.dumps(searcher.state(), default=lambda a: a.tolist())))
    asked = {tuple(t.config) for t in searcher._history.trials}
    while len(configs := searcher.ask(9)):
        assert np.array_equal(other.ask(9), configs)
        asked |= {tuple(c) for c in configs.tolist()}
        searcher.tell(measure(configs, cost))
        other.tell(measure(configs, cost))
    assert asked == everything(space)


@pytest.mark.parametrize(
    ("configs", "throughput"),
    [([[0, 0]], [1.0]), ([[99, 0, 0]], [1.0]), ([[0, 0, 0]], [1.0, 1.0]), ([[0, 0, 0]], [2.0]), ([[-1, 0, 0]], [0.5])],
)
def test_beliefs_of_another_kind_are_refused(configs: list[list[int]], throughput: list[float]) -> None:
    with pytest.raises(ValueError, match="throughputs in"):
        make("chameleon", SPACES["plain"]()).believe(np.array(configs), np.array(throughput))


def test_a_state_of_another_space_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="same space"):
        make(name, SPACES["plain"]()).restore(make(name, SPACES["sketched"]()).state())


def test_a_space_too_large_to_list(name: str) -> None:
    space = KnobSpace([split(f"s{i}", 1024, 4) for i in range(8)])
    assert space.size > 2**64
    searcher, cost = make(name, space), bowl(space, np.ones(8, dtype=np.int64))
    for _ in range(3):
        configs = searcher.ask(12)
        assert space.is_valid(configs).all()
        searcher.tell(measure(configs, cost))


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
