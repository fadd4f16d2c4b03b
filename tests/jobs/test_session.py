"""The loop of tuning on made-up machines: lucky times are found out, budgets hold, a zoo's tasks are shared."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm.s_tir import meta_schedule as ms

from chameleon.jobs import session as session_module
from chameleon.jobs.config import ConfirmConfig, TuneConfig
from chameleon.jobs.confirm import confirm_best
from chameleon.jobs.measurer import Measurer
from chameleon.jobs.records import Records
from chameleon.jobs.session import Session, open_session, share_best, tune
from chameleon.kernels.lower import Task
from chameleon.search import KnobSpace, Status, Trial, option
from chameleon.target import detect_target
from tests.support import misbuild

pytestmark = pytest.mark.tvm

TARGET = "llvm"
TRUE_S = {digit: (digit + 3) * 1e-3 for digit in range(12)}  # configuration 0 is the best


class Traces:
    """One knob with twelve values; the module says which one was taken."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.space = KnobSpace([option("knob", range(12))])

    def replay(self, config: Any) -> tuple[Any, Any]:
        return self.schedule(config), config

    def post_process(self, schedule: Any, _digits: Any) -> Any:
        return schedule

    def schedule(self, config: Any) -> tvm.s_tir.Schedule:
        return tvm.s_tir.Schedule(misbuild.doubling(str(config[0])))


class Machine:
    """Builds and runs at the cost of made-up seconds.

    Args:
        seconds: the time of a configuration at its n-th measurement, None where it fails.
    """

    def __init__(self, folder: Path, seconds: Callable[[int, int], float | None], *, build_s=0.0, run_s=0.0) -> None:
        self.now_s = 0.0
        self.measured: list[int] = []
        self.started_s: list[float] = []
        self._folder, self._seconds, self._build_s, self._run_s = folder, seconds, build_s, run_s

    def build(self, inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        self.now_s += self._build_s * len(inputs)
        results = []
        for given in inputs:
            artifact = self._folder / str(given.mod.attrs["how"]) / "candidate.so"
            artifact.parent.mkdir(exist_ok=True)
            results.append(ms.builder.BuilderResult(str(artifact), None))
        return results

    def run(self, inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        results = []
        for given in inputs:
            self.started_s.append(self.now_s)
            self.now_s += self._run_s
            digit = int(Path(str(given.artifact_path)).parent.name)
            seconds = self._seconds(digit, self.measured.count(digit))
            self.measured.append(digit)
            failed = seconds is None
            results.append(ms.runner.RunnerResult(None if failed else [seconds], "run_error: no" if failed else None))
        return [ms.runner.RunnerFuture(lambda: True, lambda r=r: r) for r in results]


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Session, Machine]]:
    """Tune on a machine: `on(seconds, config)` gives the session and the machine after a whole run."""
    monkeypatch.setattr(session_module, "TraceSpace", Traces)
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()

    def run(
        seconds: Callable[[int, int], float | None],
        config: TuneConfig,
        *,
        model: str = "net",
        keys: tuple[str, ...] = ("k",),
        **costs: float,
    ) -> tuple[Session, Machine]:
        machine = Machine(artifacts, seconds, **costs)
        for clock in ("monotonic", "perf_counter"):
            monkeypatch.setattr(time, clock, lambda: machine.now_s)
        tasks = [
            Task(name=f"fused_conv2d{i}", key=key, mod=misbuild.doubling(), weight=1, flop=1e6)
            for i, key in enumerate(keys)
        ]
        measurer = Measurer(detect_target(), machine, machine)  # type: ignore[arg-type]
        with Records(tmp_path / "t.jsonl", TARGET) as records:
            session = open_session(tasks, detect_target(), records, config, model)
            with session.running():
                steps = (tune, share_best, confirm_best)
                while sum([step(session, measurer, records, model, lambda _: None) for step in steps]):
                    pass
            records.finish(model, elapsed_s=session.elapsed_s)
        assert not list(artifacts.iterdir())  # nothing that was built is left
        return session, machine

    return run


def config(**given: Any) -> TuneConfig:
    return TuneConfig(**{"searcher": "random", "time_budget_s": None, **given})


def steady(digit: int, _time: int) -> float:
    return TRUE_S[digit]


def lucky(digit: int, time: int) -> float:
    """Configuration 7 looks like the best when it is measured first."""
    return 1e-3 if (digit, time) == (7, 0) else TRUE_S[digit]


def test_a_task_without_a_design_space_leaves_the_others_to_be_tuned(on, monkeypatch):
    class Failing(Traces):
        def __init__(self, mod: tvm.IRModule, *given: Any, **options: Any) -> None:
            super().__init__(mod, *given, **options)
            spaces.append(self)
            if len(spaces) == 1:
                raise RuntimeError("ScheduleError: in 'reverse-compute-at'\nand a whole program")

    spaces: list[Any] = []
    monkeypatch.setattr(session_module, "TraceSpace", Failing)
    session, _ = on(steady, config(trials=12), keys=("k", "l"))
    assert [t.task.name for t in session.tasks] == ["fused_conv2d1"]
    assert session.tasks[0].best.config == (0,)
    assert session.untunable == {"fused_conv2d0": "ScheduleError: in 'reverse-compute-at'"}


def test_the_best_is_not_the_luckiest(on):
    session, machine = on(lucky, config(trials=12))
    (task,) = session.tasks
    assert task.best.config == (0,)
    assert task.now_s == TRUE_S[0]
    assert machine.measured[:12].count(7) == 1
    assert sorted(set(machine.measured[12:])) == [0, 1, 7]
    assert len(task.best_s) == 12  # no further trial


def test_contenders_take_turns_and_the_median_decides(on):
    noise = {0: [1.0, 1.0, 9.0, 1.0], 1: [1.0, 0.9, 1.3, 1.3]}
    session, machine = on(lambda d, n: TRUE_S[d] * noise.get(d, [1.0] * 4)[n], config(trials=12))
    assert machine.measured[12:] == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert session.tasks[0].best.config == (0,)


def test_a_schedule_that_fails_the_second_time_is_not_the_best(on):
    session, _ = on(lambda d, n: None if d == 0 and n else TRUE_S[d], config(trials=12))
    assert session.tasks[0].best.config == (1,)


def test_resuming_confirms_again_only_if_the_best_changed(on):
    order = on(steady, config(trials=6))[1].measured[:6]
    best = min(order)
    _, machine = on(steady, config(trials=6))
    assert machine.measured == []
    session, machine = on(steady, config(trials=12))
    again = machine.measured[6:]
    assert bool(again) == (best != 0)
    assert session.tasks[0].best.config == (0,)


def test_confirming_can_be_turned_off(on):
    session, machine = on(lucky, config(trials=12, confirm=ConfirmConfig(contenders=1)))
    assert len(machine.measured) == 12
    assert session.tasks[0].best.config == (7,)


@pytest.mark.parametrize("budget_s", [3.0, 10.0, 11.0, 24.5, 40.0, 53.0, 100.0])
def test_nothing_starts_after_the_deadline(on, budget_s):
    session, machine = on(steady, config(time_budget_s=budget_s), keys=("a", "b", "c"), build_s=0.5, run_s=1.0)
    assert machine.started_s
    assert max(machine.started_s) < budget_s
    assert session.elapsed_s <= budget_s + 1.5
    if 20 < budget_s < 53:
        assert session.elapsed_s > 0.8 * budget_s
    if budget_s > 52.5:  # a fifth of it is enough for one task: 3 * (0.5 + 3 * 1) s
        assert any(not t.unconfirmed for t in session.tasks)
    _, machine = on(steady, config(time_budget_s=budget_s), keys=("a", "b", "c"), build_s=0.5, run_s=1.0)
    assert not machine.started_s  # the budget is used up for good


def test_a_batch_is_cut_when_the_time_is_over_in_its_midst(on):
    """The first batch cannot know that a trial takes 5 s."""
    session, machine = on(steady, config(time_budget_s=12.0), run_s=5.0)
    assert machine.started_s == [0.0, 5.0, 10.0]
    assert session.trials == 3


def test_a_zoo_goes_on_with_a_task_whose_owner_was_interrupted(on, tmp_path):
    with Records(tmp_path / "t.jsonl", TARGET) as records:
        records.add_task("k", "conv", Traces().space)
        for digit in (5, 6):
            records.append("k", Trial((digit,), Status.OK, TRUE_S[digit]), model="first", elapsed_s=1.0)
    session, machine = on(steady, config(trials=6), model="second")
    assert session.trials == 6
    assert not {5, 6} & set(machine.measured[:6])  # they are history
    assert len(session.tasks[0].best_s) == 8


@pytest.mark.parametrize(("finished", "trials", "made"), [(True, 6, 0), (False, 2, 0), (False, 3, 3)])
def test_a_task_is_done_if_its_owner_finished_or_the_share_is_spent(on, tmp_path, finished, trials, made):
    with Records(tmp_path / "t.jsonl", TARGET) as records:
        records.add_task("k", "conv", Traces().space)
        for digit in (5, 6):
            records.append("k", Trial((digit,), Status.OK, TRUE_S[digit]), model="first", elapsed_s=1.0)
        if finished:
            records.finish("first", elapsed_s=1.0)
    session, _ = on(steady, config(trials=trials), model="second")
    assert session.trials == made


def test_a_model_goes_on_with_its_own_task_after_another_has_used_it(on):
    on(steady, config(trials=3), model="first")
    on(steady, config(trials=20), model="second")
    session, _ = on(steady, config(trials=5), model="first")
    assert session.trials == 5
