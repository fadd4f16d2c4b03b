"""Schedules are compared in the network itself: what makes it faster is kept, and nothing is compared twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

from chameleon.jobs import exchange as exchange_module
from chameleon.jobs.config import ConfirmConfig, TuneConfig
from chameleon.jobs.exchange import CLOSE_FACTOR, exchange_best, is_faster
from chameleon.jobs.ledger import Confirmation, Exchange
from chameleon.jobs.measured import Measured
from chameleon.jobs.records import Records
from chameleon.jobs.run_folder import JobSpec, Opened, open_job
from chameleon.jobs.session import Session, open_session
from chameleon.search import Status, Trial
from tests.jobs.test_ship import spoil
from tests.support.networks import write_network

pytestmark = pytest.mark.tvm
TARGET = '{"kind": "llvm", "num-cores": 2}'
ROUNDS = st.lists(st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)), min_size=1, max_size=12)


@given(ROUNDS)
def test_at_most_one_of_two_is_faster(rounds):
    one, other = zip(*rounds, strict=True)
    assert not (is_faster(one, other) and is_faster(other, one))
    assert not is_faster(one, one)
    assert is_faster([s / 2 for s in one], one)
    if is_faster(one, other):
        assert np.median(one) < np.median(other)


def measured(*events: Confirmation | Exchange) -> Measured:
    """Four schedules; alone the first is the best, and the last has no chance."""
    trials = [Trial((digit,), Status.OK, seconds) for digit, seconds in enumerate((1.0, 1.05, 1.1, 2.0))]
    return Measured("k", [*trials, *events], 3)


def exchange(winner: int, loser: int, model: str = "tiny") -> Exchange:
    return Exchange((winner,), (loser,), ((1.0,), (2.0,)), model)


def test_the_network_decides_before_times_alone():
    task = measured()
    assert [t.config for t in task.rivals(CLOSE_FACTOR)] == [(1,), (2,)]
    assert task.chosen_by == "trial"
    task.exchange(exchange(1, 0))
    assert task.best.config == (1,)
    assert task.chosen_by == "network"
    assert [t.config for t in task.rivals(CLOSE_FACTOR)] == [(2,)]
    task.exchange(exchange(1, 2))
    assert task.best.config == (1,)
    assert task.rivals(CLOSE_FACTOR) == []
    task.drop((1,))  # it computes wrong values
    assert task.best.config == (0,)


def test_a_new_best_is_compared_with_the_one_that_won():
    task = measured(exchange(1, 0), exchange(1, 2))
    task.note(Trial((9,), Status.OK, 0.99))
    assert task.best.config == (9,)
    assert [t.config for t in task.rivals(CLOSE_FACTOR)] == [(1,)]


def test_cold_caches_decide_and_the_time_stays_that_of_hot_ones():
    again = Confirmation({(0,): (1.0,), (1,): (1.1,), (2,): (1.2,)}, {(0,): (3.0,), (1,): (2.0, 9.0, 2.0), (2,): ()})
    task = measured(again)
    assert task.best.config == (1,)
    assert (task.now_s, task.cold_s) == (1.1, 2.0)
    assert task.chosen_by == "confirmation"
    assert (2,) not in task.slowness()  # it failed


@pytest.fixture
def job(tmp_path: Path) -> Opened:
    network = write_network(tmp_path / "tiny.onnx", channels=4)
    found = open_job(JobSpec(str(network), TARGET, tmp_path / "run"), lambda _: None)
    return dataclasses.replace(found, tasks=found.tasks[:3])  # the others keep their default schedules


def opened(job: Opened, records: Records, *, exchange_s: float = 1e6) -> Session:
    """A session whose tasks have two schedules each, which seem as fast; the clock says that hours went by."""
    config = TuneConfig(searcher="random", time_budget_s=None, confirm=ConfirmConfig(exchange_s=exchange_s))
    session = open_session(job.tasks, job.target, records, config, "tiny")
    session.before_s = 1e6
    for tuner in session.tasks if not any(t.best_s for t in session.tasks) else ():
        trials = [Trial(config, Status.OK, 1e-3 * (1 + i / 100)) for i, (config, _) in enumerate(tuner.propose(2))]
        for trial in trials:
            records.append(tuner.key, trial, model="tiny", elapsed_s=1.0)
        tuner.tell(trials)
    return session


def run(job: Opened, session: Session, records: Records) -> int:
    return exchange_best(job, session, None, records, "tiny", lambda _: None)  # type: ignore[arg-type]


def lines(job: Opened, kind: str) -> list[dict]:
    text = (job.out / "trials.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line.get("kind") == kind]


def test_each_pair_is_compared_once_and_the_winner_is_kept(job: Opened, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exchange_module, "MIN_SHARE", 0.0)
    with Records(job.out / "trials.jsonl", str(job.target)) as records:
        session = opened(job, records)
        pairs = {t.key: {tuple(x.config) for x in t.contenders()} for t in session.tasks}
        made = run(job, session, records)
        best = {t.key: t.best.config for t in session.tasks}
        assert run(job, session, records) == 0
    found = lines(job, "exchange")
    assert made == len(found) == sum(len(p) == 2 for p in pairs.values()) > 0
    for line in found:
        sides = [tuple(line[side]["config"]) for side in ("winner", "loser")]
        assert set(sides) == pairs[line["task"]]
        assert sides[0] == best[line["task"]]
        assert len(line["winner"]["network_s"]) == len(line["loser"]["network_s"]) > 1
    with Records(job.out / "trials.jsonl", str(job.target)) as records:  # a run that goes on
        session = opened(job, records)
        assert {t.key: t.best.config for t in session.tasks} == best
        assert {t.chosen_by for t in session.tasks if len(pairs[t.key]) == 2} == {"network"}
        assert run(job, session, records) == 0
        other = open_session(job.tasks, job.target, records, session.config, "another network")
        assert all(t.rivals(CLOSE_FACTOR) for t in other.tasks if len(pairs[t.key]) == 2)


def test_a_rival_that_computes_wrong_values_is_marked(job: Opened, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exchange_module, "MIN_SHARE", 0.0)
    with Records(job.out / "trials.jsonl", str(job.target)) as records:
        session = opened(job, records)
        tuner = next(t for t in session.tasks if "conv2d" in t.task.name and t.rivals(CLOSE_FACTOR))
        rival = tuner.rivals(CLOSE_FACTOR)[0].config
        spoil(tuner, rival)
        run(job, session, records)
        assert tuner.best.config != rival
    assert [(line["task"], tuple(line["config"])) for line in lines(job, "wrong")] == [(tuner.key, rival)]


@pytest.mark.parametrize("exchange_s", [0.0, 0.01])
def test_nothing_is_compiled_without_time_for_it(job: Opened, monkeypatch: pytest.MonkeyPatch, exchange_s: float):
    monkeypatch.setattr(exchange_module, "compile_model", None)
    with Records(job.out / "trials.jsonl", str(job.target)) as records:
        assert run(job, opened(job, records, exchange_s=exchange_s), records) == 0
