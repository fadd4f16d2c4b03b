"""`chameleon tune`: tunes the tasks of a network, then compiles the network with the best schedules and times it.

Everything that is measured and made goes into one folder; `chameleon.jobs.run_folder` describes its files. Because all
measurements are kept there, a run that was interrupted goes on where it ended.
"""

# pyright: reportAttributeAccessIssue=false
# (TVM's attributes come from C++ and have no types)

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import tvm
from tvm.target import Target

from chameleon.errors import ChameleonError, UsageError, doing
from chameleon.jobs.bench import bench_model
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.records import Records
from chameleon.jobs.run_folder import (
    JobSpec,
    Opened,
    Say,
    TaskReport,
    TuneReport,
    Watch,
    claim,
    export_database,
    open_job,
    read_json,
)
from chameleon.jobs.session import Measurer, Session, TaskTuner, open_session, tune
from chameleon.jobs.ship import device_elsewhere, ship
from chameleon.measure import WarmBuilder, WarmRunner
from chameleon.measure.remote import rpc_runner
from chameleon.measure.runner import device_name
from chameleon.search import KnobSpace, make_searcher, option


def tune_model(spec: JobSpec, config: TuneConfig, watch: Watch, say: Say) -> tuple[TuneReport, Path]:
    """Tune a model's tasks, or go on where an earlier run of the same folder ended, then compile and time it.

    Returns:
        The report and the folder.

    Raises:
        ChameleonError: with a message for people, on anything that the user can fix.
    """
    _check_config(spec, config)
    job = open_job(spec, say)
    claim(job, spec, config, finished=False)
    with Records(spec.records or job.out / "trials.jsonl", str(job.target)) as records:
        say(f"{len(job.tasks)} tasks; records in {records.path}")
        if not records.elapsed_s.get(job.model.name):  # nothing was measured before, so a device is needed
            _check_device(spec, job.target)
        session = open_session(job.tasks, job.target, records, config, job.model.name)
        if session.trials:
            say(f"resuming: {session.trials} trials measured before, in {session.elapsed_s:.0f} s of tuning")
        made = 0
        if not session.used_up:
            with ExitStack() as stack, doing(f"tuning {job.model.name}", job.out):
                made = tune(session, _measurer(spec, job.target, stack), records, job.model.name, watch)
        _warn_of_tasks_without_success(session.tasks, say)
        report = _finish(job, spec, session, records, made, say)
    claim(job, spec, config, finished=True)
    return report, job.out


def _check_device(spec: JobSpec, target: Target) -> None:
    if spec.tracker is None and not tvm.device(device_name(target.kind.name)).exist:
        raise ChameleonError(
            f"this machine has no {target.kind.name} device; measure on another one: --tracker host:port"
        )


def _measurer(spec: JobSpec, target: Target, stack: ExitStack) -> Measurer:
    _check_device(spec, target)
    if spec.tracker is None:
        return Measurer(target, stack.enter_context(WarmBuilder()), stack.enter_context(WarmRunner()))
    assert spec.device_key is not None  # `_check_config` has checked this
    builder = stack.enter_context(WarmBuilder(export="tar"))
    runner = stack.enter_context(rpc_runner(spec.tracker, spec.device_key))
    return Measurer(target, builder, runner, together=16)


def _finish(job: Opened, spec: JobSpec, session: Session, records: Records, made: int, say: Say) -> TuneReport:
    """Compile, compare, export and time the network, unless there is no new trial and an earlier run has done it."""
    report_path, artifact = job.out / "report.json", job.out / "network.so"
    report, before = _report(job, session), read_json(job.out / "report.json")
    if made == 0 and artifact.exists() and before.get("trials") == report.trials and before.get("comparison"):
        return dataclasses.replace(report, latency_ms=before["latency_ms"], comparison=before["comparison"])
    say("compiling with the best schedules")
    shipped = ship(
        job,
        session.tasks,
        artifact,
        say,
        mark=lambda tuner, trial: records.mark_wrong(tuner.task.key, trial.config),
        elsewhere=device_elsewhere(job.target, tracker=spec.tracker is not None),
    )
    export_database(shipped.database, job.out / "database")
    if untuned := shipped.compiled.untuned:
        say(f"no schedule for {len(untuned)} tasks: {', '.join(untuned)}")
    report = dataclasses.replace(_report(job, session), comparison=shipped.verdict.to_json())
    if spec.tracker is None and job.target.kind.name == "llvm":
        say("timing untuned and tuned")
        with doing(f"timing {job.model.name}", job.out):
            timed = bench_model(job.model, job.target, shipped.compiled)
        report = dataclasses.replace(
            report, latency_ms={"untuned": timed.untuned.median_ms, "tuned": timed.tuned.median_ms}
        )
    report_path.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    return report


def _report(job: Opened, session: Session) -> TuneReport:
    tasks = [
        TaskReport(t.task.name, t.task.weight, t.task.flop, t.now_s * 1e6 if t.now_s else None, len(t.best_s))
        for t in session.tasks
    ]
    return TuneReport(
        job.model.name,
        str(job.target),
        session.config.searcher,
        session.config.seed,
        session.trials,
        dict(session.failures),
        round(session.elapsed_s, 1),
        {"untuned": None, "tuned": None},
        tasks,
    )


def _check_config(spec: JobSpec, config: TuneConfig) -> None:
    """Check the names in the configuration, so that a mistake is reported before the model is loaded.

    Raises:
        UsageError: on an unknown searcher or option of it, or a tracker without a device key.
    """
    make_searcher(config.searcher, KnobSpace([option("any", [0])]), np.random.default_rng(0), **config.options)
    if spec.tracker is not None and spec.device_key is None:
        raise UsageError("--tracker needs --device-key: the key under which the devices registered")


def _warn_of_tasks_without_success(tasks: Sequence[TaskTuner], say: Say) -> None:
    for t in tasks:
        if t.best is None and (t.best_s or t.refusals):
            reasons = t.failures or t.refusals
            say(f"warning: no schedule of {t.task.name} worked: {dict(reasons.most_common(3))}")
