"""Nothing wrong ships: a schedule that computes wrong values is found, named, left out, and the next best is used."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.s_tir import Schedule
from tvm.target import Target
from tvm.tirx import PrimFunc

from chameleon.errors import ChameleonError
from chameleon.jobs import compile as compile_module
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.records import Records
from chameleon.jobs.run_folder import JobSpec, Opened, open_job
from chameleon.jobs.session import open_session
from chameleon.jobs.ship import WrongOutputsError, first_wrong, ship
from chameleon.jobs.task_tuner import TaskTuner
from chameleon.models.load import load_model
from chameleon.search import Status, Trial
from tests.support.networks import write_network

pytestmark = pytest.mark.tvm
TARGET = '{"kind": "llvm", "num-cores": 2}'


@pytest.fixture
def job(tmp_path: Path) -> Opened:
    network = write_network(tmp_path / "tiny.onnx", channels=4)
    return open_job(JobSpec(str(network), TARGET, tmp_path / "run"), lambda _: None)


@pytest.fixture
def tuners(job: Opened) -> list[TaskTuner]:
    """The tasks, each with a fast and a slow schedule on record, as if they had been measured."""
    with Records(job.out / "trials.jsonl", str(job.target)) as records:
        session = open_session(job.tasks, job.target, records, TuneConfig(searcher="random"), "tiny")
        for tuner in session.tasks:
            proposed = tuner.propose(2)
            trials = [Trial(config, Status.OK, 1e-3 * (i + 1)) for i, (config, _) in enumerate(proposed)]
            for trial in trials:
                records.append(tuner.task.key, trial, model="tiny", elapsed_s=1.0)
            tuner.tell(trials)
    return session.tasks


def spoil(tuner: TaskTuner, config: tuple[int, ...]) -> None:
    """Make a configuration's schedule wrong: it keeps the sums in integers of eight bits."""
    right = tuner.traces.schedule

    def schedule(asked: tuple[int, ...]) -> Schedule:
        found = right(asked)
        if asked == config:
            keep_bytes(found)
        return found

    tuner.traces.schedule = schedule  # type: ignore[method-assign]


def keep_bytes(schedule: Schedule) -> None:
    block = schedule.get_child_blocks(schedule.get_sblock("root"))[-1]
    schedule.cache_write(block, 0, "global")
    schedule.unsafe_set_dtype(block, 0, "int8")


def convolution(tuners: list[TaskTuner], number: int = 0) -> TaskTuner:
    return [t for t in tuners if "conv2d" in t.task.name][number]


def test_a_wrong_schedule_is_named_and_the_next_best_is_used(
    job: Opened, tuners: list[TaskTuner], tmp_path: Path
) -> None:
    guilty = convolution(tuners)
    assert guilty.best is not None
    wrong = guilty.best
    spoil(guilty, wrong.config)
    said: list[str] = []
    marked: list[tuple[str, Trial]] = []
    shipped = ship(
        job, tuners, tmp_path / "net.so", said.append, mark=lambda tuner, trial: marked.append((tuner.task.key, trial))
    )
    assert marked == [(guilty.task.key, wrong)]
    assert shipped.verdict.agrees
    assert shipped.verdict.reference == "ONNX Runtime"
    assert guilty.best.seconds == pytest.approx(2e-3)
    assert any(guilty.task.name in text and "wrong values" in text for text in said)
    assert (tmp_path / "net.so").exists()
    assert shipped.compiled.untuned == ()


def test_two_wrong_schedules_of_a_task_leave_it_the_default(
    job: Opened, tuners: list[TaskTuner], tmp_path: Path
) -> None:
    guilty = convolution(tuners, 1)
    for trial in list(guilty._succeeded):
        spoil(guilty, trial.config)
    shipped = ship(job, [guilty], tmp_path / "net.so", lambda _: None)
    assert guilty.best is None
    assert guilty.task.name in shipped.compiled.untuned
    assert shipped.verdict.agrees


def test_a_marked_schedule_is_not_used_again(job: Opened, tuners: list[TaskTuner]) -> None:
    key, best = tuners[0].task.key, tuners[0].best
    assert best is not None
    with Records(job.out / "trials.jsonl", str(job.target)) as records:
        records.mark_wrong(key, best.config)
    with Records(job.out / "trials.jsonl", str(job.target)) as records:
        again = open_session(job.tasks, job.target, records, TuneConfig(searcher="random"), "tiny").tasks[0]
    assert again.best is not None
    assert again.best.config != best.config
    assert again.failures["wrong_values"] == 1


def test_a_wrong_default_schedule_is_named_and_nothing_is_written(
    job: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = compile_module.schedule_defaults
    name = next(t.name for t in job.tasks if "matmul" in t.name)

    def wrong(mod: tvm.IRModule, target: Target, **options: bool) -> tvm.IRModule:
        functions = dict(right(mod, target, **options).functions_items())
        for var, func in functions.items():
            if isinstance(func, PrimFunc) and var.name_hint == name:
                functions[var] = wrong_kernel(func)
        return tvm.IRModule(functions, attrs=mod.attrs)

    monkeypatch.setattr(compile_module, "schedule_defaults", wrong)
    place = tmp_path / "net.so"
    place.write_text("an earlier library")
    with pytest.raises(WrongOutputsError, match=name):
        ship(job, [], place, lambda _: None)
    assert place.read_text() == "an earlier library"
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def wrong_kernel(func: PrimFunc) -> PrimFunc:
    """The kernel with its sums in integers of eight bits."""
    schedule = Schedule(func)
    keep_bytes(schedule)
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)


def test_a_network_that_is_imported_wrongly_is_refused(job: Opened, tuners: list[TaskTuner], tmp_path: Path) -> None:
    other = load_model(str(write_network(tmp_path / "other.onnx", channels=4, seed=1)))
    wrong = dataclasses.replace(job, model=dataclasses.replace(job.model, source=other.source))
    with pytest.raises(WrongOutputsError, match="importer"):
        ship(wrong, tuners, tmp_path / "net.so", lambda _: None)
    assert not (tmp_path / "net.so").exists()


@pytest.mark.parametrize("guilty", range(9))
def test_bisection_finds_the_one_and_asks_few(guilty: int) -> None:
    asked: list[int] = []

    def wrong(n: int) -> bool:
        asked.append(n)
        return n > guilty

    assert first_wrong(9, wrong) == guilty
    assert len(asked) <= int(np.ceil(np.log2(9)))


def test_errors_for_people_are_chameleon_errors() -> None:
    assert issubclass(WrongOutputsError, ChameleonError)
