"""The tuners that are compared, ours and AutoTVM's own, and one run of one of them on a recording."""

# Pyright sees today's TVM, which has no AutoTVM:
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import importlib
import os
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import psutil
from tvm import autotvm
from tvm.autotvm.tuner import DropletTuner, GATuner, RandomTuner, XGBTuner

from chameleon.cores import usable_cores
from scripts.common.experiment_stats import Run
from tuners.autotvm import AnnealingTuner, ChameleonTuner, ReleaseTuner, SearcherTuner
from tuners.autotvm_replay import Recording, ReplayBuilder, ReplayRunner, load_recording


class Entry(NamedTuple):
    """A tuner to compare."""

    about: str  # what it is called in the papers
    make: Callable[[Any, int], Any]  # makes the tuner of a task and a seed; AutoTVM's own tuners ignore the seed


def _xgb(plan_size: int, feature_type: str = "itervar") -> Callable[[Any, int], Any]:
    """An XGBTuner with one process for each core that this process may use (AutoTVM: for each core of the machine)."""
    return lambda task, seed: XGBTuner(
        task, plan_size=plan_size, feature_type=feature_type, loss_type="reg", num_threads=usable_cores()
    )


TUNERS: dict[str, Entry] = {
    "xgb-64": Entry("AutoTVM's XGBTuner as shipped (plan_size=64)", _xgb(64)),
    "xgb-16": Entry("AutoTVM's XGBTuner, plan_size=16", _xgb(16)),
    "xgb-16-knob": Entry("AutoTVM's XGBTuner, plan_size=16, knob features", _xgb(16, "knob")),
    "ga": Entry("AutoTVM's GATuner", lambda task, seed: GATuner(task)),
    "random": Entry("AutoTVM's RandomTuner", lambda task, seed: RandomTuner(task)),
    "droplet": Entry("AutoTVM's DropletTuner", lambda task, seed: DropletTuner(task)),
    "annealing": Entry("SA, our cost model", lambda task, seed: AnnealingTuner(task, seed=seed)),
    "annealing+adaptive": Entry("SA + AS", lambda task, seed: AnnealingTuner(task, adaptive=True, seed=seed)),
    "agent": Entry("RL", lambda task, seed: SearcherTuner(task, "agent", seed=seed)),
    "release": Entry("RL + AS (ReLeASE)", lambda task, seed: ReleaseTuner(task, seed=seed)),
    "chameleon": Entry("RL + AS + synthesis (Chameleon)", lambda task, seed: ChameleonTuner(task, seed=seed)),
}
DEFAULT = ",".join(name for name in TUNERS if name != "xgb-16-knob")


class ReplayRequest(NamedTuple):
    """One run of a tuner on a recording.

    Attributes:
        n_parallel: how many configurations AutoTVM asks for at once.
        overhead_s: seconds that a trial costs beside building and running.
    """

    path: str
    tuner: str
    seed: int
    trials: int
    n_parallel: int
    overhead_s: float


class _Clock(ReplayRunner):
    """A runner that notes for each trial when its result would be known: after measuring and the tuner's own time."""

    def __init__(self, recording: Recording, overhead_s: float) -> None:
        super().__init__(recording)
        self.seconds: list[float | None] = []
        self.at_s: list[float] = []
        self._overhead_s, self._measuring_s, self._start_s = overhead_s, 0.0, cpu_s()

    def run(self, measure_inputs: Any, build_results: Any) -> Any:
        tuner_s = cpu_s() - self._start_s
        results = super().run(measure_inputs, build_results)
        for result in results:
            self._measuring_s += result.all_cost + self._overhead_s
            self.seconds.append(None if result.error_no else float(np.mean(result.costs)))
            self.at_s.append(tuner_s + self._measuring_s)
        return results


def replay_run(request: ReplayRequest) -> dict[str, Any]:
    """Make one run in this process.

    It changes the global random state, so each run needs a process of its own.
    """
    load_libraries()
    random.seed(request.seed)
    np.random.seed(request.seed)  # noqa: NPY002 - AutoTVM's own tuners draw from the global state
    recording = load_recording(request.path)
    task = recording.task()
    start_s = cpu_s()
    clock = _Clock(recording, request.overhead_s)
    tuner = TUNERS[request.tuner].make(task, request.seed)
    option = autotvm.measure_option(builder=ReplayBuilder(request.n_parallel), runner=clock)
    budget = min(request.trials, len(recording.answers))
    tuner.tune(n_trial=budget, measure_option=option)
    spent_s, seconds = round(cpu_s() - start_s, 3), tuple(clock.seconds)
    gave_up = len(seconds) < budget
    return Run(recording.name, request.tuner, request.seed, seconds, tuple(clock.at_s), spent_s, gave_up).to_json()


def load_libraries() -> None:
    """Import now what our tuners would otherwise import while they are timed."""
    for library in ("sklearn.cluster", "xgboost"):
        importlib.import_module(library)
    importlib.import_module("torch").set_num_threads(1)


def cpu_s() -> float:
    """Processor time of this process and of all that it started, those that ended included."""
    times = os.times()
    total = time.process_time() + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.Error:  # it has just ended, so its time is among those that ended
            continue
        total += used.user + used.system
    return total
