"""Trials of another environment are history: they teach, and the best of them are measured again first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chameleon.jobs.environment import Environment
from chameleon.jobs.records import Records
from chameleon.jobs.teachers import taught_by
from chameleon.search import Status, Trial
from tests.support.recorded_run import SPACE, TARGET, TRIALS, fill

HERE, THERE = Environment("0.27.0", "abacus", "avx2", 2), Environment("0.26.0", "abacus", "avx2", 2)
NAMES = {"k1": "conv", "k2": "dense"}


def write(path: Path, environment: Environment | None, model: str = "net") -> None:
    with Records(path, TARGET, environment=environment) as records:
        fill(records, NAMES, model)
        records.finish(model, elapsed_s=20.0)


def test_every_field_of_an_environment_makes_another_one() -> None:
    one = Environment("0.27.0", "abacus", "avx2", 2, "opt-level=3")
    others = [
        Environment("0.26.0", "abacus", "avx2", 2, "opt-level=3"),
        Environment("0.27.0", "slide rule", "avx2", 2),
    ]
    others += [Environment("0.27.0", "abacus", threads=2), Environment("0.27.0", "abacus", "avx2", 4, "opt-level=3")]
    assert len({e.id for e in (one, *others)}) == 5
    assert Environment("0.27.0", "abacus", "avx2", 2, "opt-level=3").id == one.id


def test_each_environment_has_its_own_trials_times_and_end(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, THERE)
    with Records(path, TARGET, environment=HERE) as records:
        assert records.add_task("k1", "conv", SPACE).events == []
        assert (records.elapsed_s, records.finished, records.wrong) == ({}, set(), {})
        assert [len(task.trials) for task in records.elsewhere("k1", SPACE.fingerprint())] == [5]
        records.append("k1", Trial((0, 0), Status.OK, 5e-5), model="net", elapsed_s=1.0)
        records.mark_wrong("k1", (3, 1))
    with Records(path, TARGET, environment=THERE) as records:
        assert [t for t in records.tasks["k1"].trials if t.seconds] == [
            t for k, t in TRIALS if k == "k1" and t.seconds
        ]
        assert (records.elapsed_s, records.finished, records.wrong) == ({"net": 20.0}, {"net"}, {})
        assert records.forget_failures() == 3
    with Records(path, TARGET, read_only=True) as records:  # the last trial's
        assert (records.environment, records.tasks["k1"].trials[0].seconds) == (HERE.id, 5e-5)
        assert len(records.within(THERE.id).tasks["k2"].trials) == 1
    with Records(path, TARGET, read_only=True, environment=THERE.id) as records:
        assert records.tasks["k1"].trials[0].seconds == 8e-4
    introduced = [line for line in map(json.loads, path.read_text().splitlines()) if line.get("kind") == "environment"]
    assert [line["tvm"] for line in introduced] == ["0.26.0", "0.27.0"]


def test_what_an_earlier_version_wrote_counts_where_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, None)
    assert "environment" not in path.read_text()
    with Records(path, TARGET, environment=HERE) as records:
        assert len(records.add_task("k1", "conv", SPACE).trials) == 5
        records.append("k1", Trial((5, 0), Status.OK, 1e-5), model="net", elapsed_s=21.0)
    with Records(path, TARGET, environment=HERE) as records:
        assert len(records.tasks["k1"].trials) == 6
    with Records(path, TARGET, environment=HERE.id, read_only=True) as records:
        assert len(records.tasks["k1"].trials) == 6


def test_another_environment_teaches_its_own_tasks_too(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, THERE)
    with Records(path, TARGET, environment=HERE) as records:
        assert sorted(len(trials) for _, trials in taught_by(records, ["k1", "k2"])) == [1, 3]
    with Records(path, TARGET, environment=THERE) as records:
        assert taught_by(records, ["k1", "k2"]) == []


@pytest.mark.tvm
def test_the_best_of_another_environment_are_measured_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were best there; here another one is, and it is what counts."""
    from tests.support.made_up import Machine, config, made_up_task, tune_tasks

    task, path = made_up_task("k1"), tmp_path / "t.jsonl"
    there = Machine(tmp_path, lambda _key, digit, _n: 1e-3 * (1 + abs(digit - 9)), build_s=0.1, run_s=0.1)
    tune_tasks([task], there, config(trials=12), path, monkeypatch, environment=THERE)
    here = Machine(tmp_path, lambda _key, digit, _n: 1e-3 * (1 + abs(digit - 2)), build_s=0.1, run_s=0.1)
    session = tune_tasks([task], here, config(trials=12), path, monkeypatch, environment=HERE)
    first = [digit for _, digit in here.measured][:3]
    assert sorted(first) == [8, 9, 10]
    assert first[0] == 9
    (tuner,) = session.tasks
    assert tuner.best is not None
    assert tuner.best.config == (2,)
    assert len(tuner.best_s) == 12


@pytest.mark.tvm
def test_two_runs_on_one_store_hear_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one runs, another writes half of the space into the store: the first does not measure that half again."""
    from tests.support.made_up import TARGET as LLVM
    from tests.support.made_up import Machine, Traces, config, made_up_task, tune_tasks

    task, path, beside = made_up_task("k1"), tmp_path / "t.jsonl", []

    def seconds(_key: str, digit: int, _n: int) -> float:
        if not beside:
            with Records(path, LLVM, environment=HERE) as other:
                other.add_task("k1", "fused_conv2d", Traces().space)
                beside.extend(d for d in range(12) if d % 2 and d != digit)
                for d in beside:
                    other.append("k1", Trial((d,), Status.OK, 1e-3 * (1 + d)), model="other", elapsed_s=1.0)
        return 1e-3 * (1 + digit)

    machine = Machine(tmp_path, seconds, build_s=0.1, run_s=0.1)
    session = tune_tasks([task], machine, config(batch=2, first_batch=2), path, monkeypatch, environment=HERE)
    measured = [digit for _, digit in machine.measured]
    again = set(measured) & set(beside)
    assert len(again) <= 1  # what was in the batch already
    assert set(measured) | set(beside) == set(range(12))
    (tuner,) = session.tasks
    assert tuner.borrowed >= len(beside) - 1
    with Records(path, LLVM, read_only=True) as records:
        assert sorted(t.config[0] for t in records.tasks["k1"].trials) == list(range(12))
