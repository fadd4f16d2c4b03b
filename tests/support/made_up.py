"""A made-up machine and made-up spaces: the loop of tuning without TVM's spaces, builders and runners."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm.s_tir import meta_schedule as ms

from chameleon.jobs import session as session_module
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.confirm import confirm_best
from chameleon.jobs.environment import Environment
from chameleon.jobs.measurer import Measurer
from chameleon.jobs.records import Records
from chameleon.jobs.session import Session, open_session, share_best, tune
from chameleon.kernels.lower import Task
from chameleon.search import KnobSpace, option
from chameleon.target import detect_target
from tests.support import misbuild

TARGET = "llvm"
Seconds = Callable[[str, int, int], float | None]


class Traces:
    """One knob with twelve values; the module of a schedule says which task it is of and which value was taken."""

    def __init__(self, mod: tvm.IRModule | None = None, *_: Any, **__: Any) -> None:
        self.space = KnobSpace([option("knob", range(12))])
        self._key = str(mod.attrs["how"]) if mod is not None else ""

    def replay(self, config: Any) -> tuple[Any, Any]:
        return self.schedule(config), config

    def post_process(self, schedule: Any, _digits: Any) -> Any:
        return schedule

    def schedule(self, config: Any) -> tvm.s_tir.Schedule:
        return tvm.s_tir.Schedule(misbuild.doubling(f"{self._key}:{config[0]}"))


def task_space(mod: tvm.IRModule, *_: Any, **__: Any) -> tuple[Traces, dict[str, list[int]]]:
    """The space of a task without other algorithms."""
    return Traces(mod), {}


class Machine:
    """Builds and runs at the cost of made-up seconds.

    Args:
        seconds: the time of a task's configuration at its n-th measurement, None where it fails.
    """

    def __init__(self, folder: Path, seconds: Seconds, *, build_s: float = 0.0, run_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.measured: list[tuple[str, int]] = []
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
            key, _, number = Path(str(given.artifact_path)).parent.name.partition(":")
            digit = int(number)
            seconds = self._seconds(key, digit, self.measured.count((key, digit)))
            self.measured.append((key, digit))
            failed = seconds is None
            results.append(ms.runner.RunnerResult(None if failed else [seconds], "run_error: no" if failed else None))
        return [ms.runner.RunnerFuture(lambda: True, lambda r=r: r) for r in results]


def tune_tasks(
    tasks: Sequence[Task],
    machine: Machine,
    config: TuneConfig,
    records_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str = "net",
    environment: Environment | None = None,
) -> Session:
    """Tune tasks on a machine as `chameleon tune` does, with the machine's clock; gives the session after the run."""
    monkeypatch.setattr(session_module, "task_space", task_space)
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: machine.now_s)
    measurer = Measurer(detect_target(), machine, machine)  # type: ignore[arg-type]
    with Records(records_path, TARGET, environment=environment) as records:
        session = open_session(tasks, detect_target(), records, config, model)
        steps = (tune, share_best, confirm_best)
        with session.running():
            while sum([step(session, measurer, records, model, lambda _: None) for step in steps]):
                pass
        records.finish(model, elapsed_s=session.elapsed_s)
    return session


def made_up_task(key: str, *, name: str = "fused_conv2d", weight: int = 1, flop: float = 1e6) -> Task:
    """A task whose schedules the machine recognises by the key."""
    return Task(name=name, mod=misbuild.doubling(key), weight=weight, flop=flop, key=key)


def config(**given: Any) -> TuneConfig:
    return TuneConfig(**{"searcher": "random", "time_budget_s": None, **given})
