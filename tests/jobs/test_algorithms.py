"""Which algorithms a task of a run may have: asked for, on record, and in the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm.target import Target

from chameleon.jobs.config import TuneConfig
from chameleon.jobs.records import Records, RecordsError
from chameleon.jobs.run_folder import JobSpec
from chameleon.jobs.session import Session, open_session
from chameleon.jobs.ship import compile_tuned
from chameleon.jobs.tune import tune_model
from chameleon.kernels.alternatives import ALGORITHMS, EXACT, REGISTERS, WINOGRAD, algorithm_of
from chameleon.kernels.lower import Task, extract_tasks, lower
from chameleon.models.load import load_model
from chameleon.search import Status, Trial
from tests.support.networks import write_residual

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 2})


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Task]:
    path = write_residual(tmp_path_factory.mktemp("model") / "residual.onnx")
    return [t for t in extract_tasks(lower(load_model(str(path)), CPU), CPU) if "conv2d" in t.name]


def opened(tasks: Sequence[Task], folder: Path, *, exact: bool = False) -> Session:
    with Records(folder / "trials.jsonl", str(CPU)) as records:
        return open_session(tasks, CPU, records, TuneConfig(searcher="random", exact=exact), "residual")


def algorithms_in(session: Session) -> list[list[str | None]]:
    """For each task the algorithms of its sketches, each once."""
    found = []
    for tuner in session.tasks:
        rows = np.zeros((len(tuner.traces.forms), tuner.traces.space.n_knobs), dtype=np.int64)
        rows[:, 0] = range(len(rows))
        found.append(list(dict.fromkeys(algorithm_of(tuner.traces.workload(row)) for row in rows)))
    return found


def task_lines(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("kind") == "task"]


def test_a_convolution_may_have_all_algorithms_and_the_records_name_them(tasks, tmp_path):
    session = opened(tasks, tmp_path)
    assert algorithms_in(session) == [[None, *WINOGRAD]] * len(tasks)
    for line, tuner in zip(task_lines(tmp_path), session.tasks, strict=True):
        assert list(line["algorithms"]) == list(ALGORITHMS)
        for number, name in enumerate(ALGORITHMS, start=1):
            assert line["algorithms"][name] == [i for i, f in enumerate(tuner.traces.forms) if f == number]


def test_exact_leaves_only_the_operator_as_it_is_written(tasks, tmp_path):
    assert algorithms_in(opened(tasks, tmp_path, exact=True)) == [[None]] * len(tasks)
    assert all(tuple(line["algorithms"]) == EXACT for line in task_lines(tmp_path))


def test_records_decide_for_a_run_that_goes_on(tasks, tmp_path):
    opened(tasks, tmp_path, exact=True)
    assert algorithms_in(opened(tasks, tmp_path)) == [[None]] * len(tasks)


def test_exact_refuses_records_with_other_algorithms(tasks, tmp_path):
    opened(tasks, tmp_path)
    with pytest.raises(RecordsError, match="winograd2, winograd4, which --exact rules out; give another --out"):
        opened(tasks, tmp_path, exact=True)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_members_of_a_group_share_the_algorithm(name, tasks, tmp_path):
    session = opened(tasks, tmp_path)
    group = next(g for g in session.groups if g.followers)
    (line,) = (line for line in task_lines(tmp_path) if line["task"] == group.leader.task.key)
    sketches = line["algorithms"][name]
    rows = group.leader.traces.space.sample(500, np.random.default_rng(0))
    config = next(tuple(int(d) for d in row) for row in rows if row[0] in sketches)
    group.leader.tell([Trial(config, Status.OK, 1e-3)])
    assert group.leader.algorithm == name
    for follower in group.followers:
        ((same, schedule),) = follower.offer(group.due(follower))
        assert same == config
        assert algorithm_of(schedule.mod) == (None if name == REGISTERS else name)


@pytest.mark.slow
def test_the_algorithm_that_wins_is_reported_compiled_and_compared(tmp_path):
    model = write_residual(tmp_path / "residual.onnx", channels=16)
    spec = JobSpec(str(model), out=tmp_path / "run")
    report, folder = tune_model(
        spec, TuneConfig(searcher="random", trials=40, time_budget_s=None), lambda _: None, print
    )
    known = {line["name"]: line["algorithms"] for line in task_lines(folder) if "algorithms" in line}
    assert known
    assert {t.algorithm for t in report.tasks} <= {None, *ALGORITHMS}
    assert report.comparison is not None
    shipped = compile_tuned(JobSpec(str(model), out=folder), tmp_path / "network.so", print)
    assert shipped.verdict.agrees
