"""`chameleon tune`: tunes the tasks of a network, then compiles the network with the best schedules and times it.

Everything that is measured and made goes into one folder; `chameleon.jobs.run_folder` describes its files. Because all
measurements are kept there, a run that was interrupted goes on where it ended.
"""

# pyright: reportAttributeAccessIssue=false
# (TVM's attributes come from C++ and have no types)

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from chameleon.errors import ChameleonError, UsageError, doing
from chameleon.files import read_json
from chameleon.jobs.bench import bench_model
from chameleon.jobs.busy import activity, busy_warnings, spread_warnings
from chameleon.jobs.compile import Compiled
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.confirm import confirm_best
from chameleon.jobs.exchange import exchange_best
from chameleon.jobs.in_network import Alone, breakdown, profile_network
from chameleon.jobs.measurer import Measurer, Measures, local_measurer
from chameleon.jobs.ray_nodes import check_cluster, ray_measurer
from chameleon.jobs.records import LOCK, Records
from chameleon.jobs.run_folder import (
    JobSpec,
    Opened,
    TaskReport,
    TuneReport,
    Watch,
    artifact_name,
    claim,
    export_database,
    open_job,
    open_records,
    target_of,
)
from chameleon.jobs.session import Session, open_session, share_best, tune
from chameleon.jobs.ship import device_elsewhere, ship
from chameleon.jobs.stages import Say, stage
from chameleon.jobs.task_tuner import TaskTuner
from chameleon.jobs.teachers import Teacher, earlier_runs, taught_by
from chameleon.kernels.lower import kernel_tasks, moving_kernels
from chameleon.locks import claimed
from chameleon.measure import WarmBuilder
from chameleon.measure.device_facts import DeviceFacts, ask_device, needs_target
from chameleon.measure.link import find_compiler
from chameleon.measure.preflight import check_toolchain
from chameleon.measure.remote import rpc_runner
from chameleon.measure.runner import device_name
from chameleon.measure.tracker import check_tracker
from chameleon.search import KnobSpace, make_searcher, option
from chameleon.target import check_runs_here, parse_target, runs_here
from chameleon.wording import names_text
from chameleon.workers.faults import EnvironmentFault


def tune_model(spec: JobSpec, config: TuneConfig, watch: Watch, say: Say) -> tuple[TuneReport, Path]:
    """Tune a model's tasks, or go on where an earlier run of the same folder ended, then compile and time it.

    Returns:
        The report and the folder.

    Raises:
        ChameleonError: with a message for people, on anything that the user can fix.
    """
    _check_config(spec, config)
    spec = _check_place(spec, say)
    job = open_job(spec, say)
    with claimed(job.out / LOCK), _with_cluster(spec, job.target, say) as (spec, cluster):
        return _tune_here(job, spec, cluster, config, watch, say), job.out


@contextmanager
def _with_cluster(spec: JobSpec, target: Target, say: Say) -> Iterator[tuple[JobSpec, Measures | None]]:
    """Have the nodes to measure on; the records are opened for their processor. None of this without `--ray`.

    Raises:
        EnvironmentFault: if no node can measure.
    """
    if spec.ray is None:
        yield spec, None
        return
    with ray_measurer(spec.ray, target, say) as cluster:
        cluster.check()
        yield dataclasses.replace(spec, processor=cluster.processor), cluster


def _tune_here(
    job: Opened, spec: JobSpec, cluster: Measures | None, config: TuneConfig, watch: Watch, say: Say
) -> TuneReport:
    """Tune into a folder that is this process's."""
    claim(job, spec, config, finished=False)
    with open_records(job, spec) as records:
        say(f"{len(job.tasks)} tasks; records in {records.place}")
        if not records.elapsed_s.get(job.model.name):  # nothing was measured before, so a device is needed
            _check_device(spec, job.target)
        if spec.retry_failed:
            say(f"{records.forget_failures()} failed trials on record may be measured again")
        with stage(say, "making the search spaces"):
            teachers = _teachers(job, spec, records, config, say)
            session = open_session(job.tasks, job.target, records, config, job.model.name, teachers)
        for name, reason in session.untunable.items():
            say(f"warning: TVM makes no design space for {name}, which keeps its default schedule: {reason}")
        if session.trials:
            say(f"resuming: {session.trials} trials measured before, in {session.elapsed_s:.0f} s of tuning")
        if len(session.groups) < len(session.tasks):
            say(f"tasks with the same main block share a search: {len(session.groups)} searches")
        _warn_of_a_small_budget(session, say)
        try:
            with doing(f"tuning {job.model.name}", job.out):
                warnings = _measure(job, spec, cluster, session, records, watch)
        except EnvironmentFault as fault:
            raise EnvironmentFault(_stopped(fault, session, records)) from fault
        if session.enough:
            say(f"tuning ends early: the rest of the budget is expected to gain {session.forecast:.1%} (--until)")
        _warn_of_tasks(session.tasks, say)
        _check_success(job, session)
        for warning in warnings:
            say(f"warning: {warning}")
        report = _finish(job, spec, session, records, warnings, say)
    claim(job, spec, config, finished=True)
    return report


def _teachers(job: Opened, spec: JobSpec, records: Records, config: TuneConfig, say: Say) -> list[Teacher]:
    """What other networks' tuning on this kind of machine can teach those tasks that are new."""
    target, own = str(job.target), [task.key for task in job.tasks]
    if not config.learn or all(key in records.tasks and records.tasks[key].events for key in own):
        return []
    found = [*taught_by(records, own), *earlier_runs(job.out, target, spec.learn_from)]
    if found:
        say(f"{len(found)} tasks of earlier runs teach new tasks (--no-learn: none does)")
    return found


def _measure(
    job: Opened, spec: JobSpec, cluster: Measures | None, session: Session, records: Records, watch: Watch
) -> list[str]:
    """Tune and time the best again until the budget is used up.

    Returns:
        What disturbed the measurements.

    Raises:
        EnvironmentFault: if a tiny kernel cannot be built and run before the first batch, or candidates later.
    """
    name, warnings = job.model.name, []
    if session.has_work:
        with ExitStack() as stack:
            measurer = _measurer(spec, job.target, stack) if cluster is None else cluster
            before = activity()
            with session.running():
                # What was kept for the last steps may turn out to be more than they take.
                steps = [tune, share_best, confirm_best]
                if measures_here(spec) and job.target.kind.name == "llvm":
                    steps.append(partial(exchange_best, job))
                    session.exchange_kept_s = session.config.confirm.exchange_s
                while sum([step(session, measurer, records, name, watch) for step in steps]):
                    pass
            watch(session)
            warnings = busy_warnings("tuning", before, activity()) if measures_here(spec) else measurer.report()
    records.finish(name, elapsed_s=session.elapsed_s)
    return warnings


def _check_place(spec: JobSpec, say: Say) -> JobSpec:
    """Check what measuring and linking need, before the model is loaded.

    Returns:
        The job, with the target that the device at the tracker says it is if none was named.

    Raises:
        UsageError: if the target is of another architecture than this machine, or than the compiler links for.
        EnvironmentFault: if there is no compiler here, no device at the tracker, or no cluster.
    """
    spec.toolchain.check()
    if spec.tracker is not None:
        found = check_tracker(spec.tracker, str(spec.device_key))
        say(f"{found.devices} devices with the key {spec.device_key} at {spec.tracker}, {found.free} of them free")
        spec = _with_device(spec, spec.tracker, say)
    elif spec.ray is not None:
        check_cluster(spec.ray)
    target = target_of(spec)
    if measures_here(spec):
        check_runs_here(target)
    if runs_here(target) and spec.toolchain.compiler is None:
        find_compiler()
    check_toolchain(spec.toolchain, target)
    return spec


def _with_device(spec: JobSpec, tracker: str, say: Say) -> JobSpec:
    """The job with what its target leaves open, as a device at the tracker says it.

    Raises:
        UsageError: if the device does not know its processor and no target was named.
    """
    asked: list[DeviceFacts] = []

    def facts() -> DeviceFacts:
        if not asked:
            asked.append(ask_device(tracker, str(spec.device_key)))
        return asked[0]

    if spec.target in (None, "llvm"):
        text = facts().target()
        if text is None:
            raise needs_target(facts())
    else:
        text = str(spec.target).strip()
        parse_target(text, cores=lambda: facts().threads)
        if asked and text.startswith("{"):
            text = json.dumps({**json.loads(text), "num-cores": facts().threads})
        elif asked:
            text = f"{text} -num-cores={facts().threads}"
    if not asked:
        return spec
    say(f"the device {facts().device} is {facts()}")
    if facts().advice:
        say(f"warning: {facts().advice}")
    return dataclasses.replace(spec, target=text, device=facts().to_json())


def _check_device(spec: JobSpec, target: Target) -> None:
    if measures_here(spec) and not tvm.device(device_name(target.kind.name)).exist:
        raise ChameleonError(
            f"this machine has no {target.kind.name} device; measure on another one: --tracker host:port"
        )


def _stopped(fault: EnvironmentFault, session: Session, records: Records) -> str:
    kept = f"{session.trials} trials are kept in {records.place}" if session.trials else "nothing was recorded"
    return f"{fault}. Tuning stopped, {kept}; when that is repaired, the same command goes on from there"


def _check_success(job: Opened, session: Session) -> None:
    """Refuse to compile and time a network as tuned when no schedule of any task worked.

    Raises:
        ChameleonError: with the reasons; the report says that nothing was tuned.
    """
    if not session.tasks or any(t.best for t in session.tasks):
        return
    (job.out / "report.json").write_text(json.dumps(_report(job, session).to_json(), indent=1) + "\n")
    reasons = ", ".join(f"{reason} {n}" for reason, n in session.failures.most_common(3)) or "no trial was made"
    raise ChameleonError(
        f"nothing was tuned, so the network was not compiled: no schedule of any task worked ({reasons}); "
        "when the cause is removed, --retry-failed measures the failed ones again"
    )


def _measurer(spec: JobSpec, target: Target, stack: ExitStack) -> Measurer:
    """A measurer on this machine or at a tracker, which has measured a tiny kernel."""
    _check_device(spec, target)
    if spec.tracker is None:
        measurer = local_measurer(target, stack)
    else:
        assert spec.device_key is not None  # `_check_config` has checked this
        # Without a compiler for the device, the device links the objects itself.
        export = "tar" if spec.toolchain.compiler is None else "so"
        builder = stack.enter_context(WarmBuilder(export=export, toolchain=spec.toolchain))
        runner = stack.enter_context(rpc_runner(spec.tracker, spec.device_key))
        measurer = Measurer(target, builder, runner, runner.room)
    measurer.check()
    return measurer


def measures_here(spec: JobSpec) -> bool:
    """Whether candidates are timed by this machine, and not at a tracker or on the nodes of a cluster."""
    return spec.tracker is None and spec.ray is None


def _finish(
    job: Opened, spec: JobSpec, session: Session, records: Records, warnings: list[str], say: Say
) -> TuneReport:
    """Compile, compare, export and time the network, unless an earlier run has done it with the same schedules."""
    report_path, artifact = job.out / "report.json", job.out / artifact_name(job.target, spec.toolchain)
    report = dataclasses.replace(_report(job, session), warnings=warnings)
    stored = _stored(report, read_json(report_path)) if artifact.exists() else None
    if stored is not None:
        say(f"no schedule is new; the network was compiled before, on {stored.measured_on}")
        return stored
    start_s = time.monotonic()
    with stage(say, "compiling with the best schedules"):
        shipped = ship(
            job,
            session.tasks,
            artifact,
            say,
            mark=lambda tuner, trial: records.mark_wrong(tuner.task.key, trial.config),
            elsewhere=device_elsewhere(job.target, tracker=spec.tracker is not None),
            toolchain=spec.toolchain,
        )
    export_database(shipped.database, job.out / "database")
    if untuned := shipped.compiled.untuned:
        say(f"no schedule for {len(untuned)} tasks: {names_text(untuned)}")
    report = dataclasses.replace(_report(job, session), warnings=warnings, comparison=shipped.verdict.to_json())
    if measures_here(spec) and job.target.kind.name == "llvm":
        with doing(f"timing {job.model.name}", job.out):
            report = _timed(report, job, session, shipped.compiled, say)
    finish_s, now = round(time.monotonic() - start_s, 1), datetime.now().isoformat(" ", "minutes")
    report = dataclasses.replace(report, finish_s=finish_s, measured_on=now)
    report_path.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    return report


def _stored(report: TuneReport, before: dict[str, Any]) -> TuneReport | None:
    """The report with what an earlier run measured; None if that one had other schedules or compared no outputs."""
    now = report.to_json()
    if any(before.get(key) != now[key] for key in ("trials", "tasks")) or not before.get("comparison"):
        return None
    return dataclasses.replace(
        report,
        latency_ms=before["latency_ms"],
        quartiles_ms=before.get("quartiles_ms", {}),
        measured_on=before.get("measured_on") or "an unknown date",
        measured_before=True,
        comparison=before["comparison"],
        warnings=[*before.get("warnings", []), *report.warnings],
        breakdown=before.get("breakdown"),
    )


def _timed(report: TuneReport, job: Opened, session: Session, compiled: Compiled, say: Say) -> TuneReport:
    """The report with the latencies of the network and where they go, and warnings where they cannot be relied on."""
    before = activity()
    with stage(say, "timing untuned and tuned"):
        timed = bench_model(job.model, job.target, compiled)
        profile = profile_network(job.model, job.target, compiled.executable)
    latencies = timed.latency
    warnings = [
        *busy_warnings("the timing of the network", before, activity()),
        *spread_warnings({name: (t.low_ms, t.median_ms, t.high_ms) for name, t in latencies.items()}),
    ]
    for warning in warnings:
        say(f"warning: {warning}")
    return dataclasses.replace(
        report,
        latency_ms={name: t.median_ms for name, t in latencies.items()},
        quartiles_ms={name: (t.low_ms, t.high_ms) for name, t in latencies.items()},
        warnings=[*report.warnings, *warnings],
        breakdown=breakdown(profile, _alone(job, session), moving_kernels(job.lowered)).to_json(),
    )


def _alone(job: Opened, session: Session) -> dict[str, Alone]:
    """The kernels that were timed alone, by name, as they were."""
    alone = {t.key: Alone(t.task.name, t.now_s, t.cold_s) for t in session.tasks if t.now_s is not None}
    return {name: alone[key] for name, key in kernel_tasks(job.lowered).items() if key in alone}


def _report(job: Opened, session: Session) -> TuneReport:
    return TuneReport(
        job.model.name,
        str(job.target),
        session.config.searcher,
        session.config.seed,
        session.trials,
        dict(session.failures),
        round(session.elapsed_s, 1),
        {"untuned": None, "tuned": None},
        [_task_report(t, session) for t in session.tasks],
    )


def _task_report(tuner: TaskTuner, session: Session) -> TaskReport:
    task, best_us = tuner.task, tuner.now_s * 1e6 if tuner.now_s else None
    names = {t.key: t.task.name for t in session.tasks}
    origin = tuner.origins.get(tuner.best.config) if tuner.best else None
    # A task of another model is known by its key only.
    return TaskReport(
        task.name,
        task.weight,
        task.flop,
        best_us,
        len(tuner.best_s),
        names.get(origin or "", origin),
        tuner.algorithm,
        tuner.chosen_by,
        tuner.cold_s * 1e6 if tuner.cold_s else None,
    )


def _check_config(spec: JobSpec, config: TuneConfig) -> None:
    """Check the names in the configuration, so that a mistake is reported before the model is loaded.

    Raises:
        UsageError: on an unknown searcher or option of it, a tracker without a device key, or with a cluster.
    """
    make_searcher(config.searcher, KnobSpace([option("any", [0])]), np.random.default_rng(0), **config.options)
    if spec.tracker is not None and spec.ray is not None:
        raise UsageError("--tracker and --ray are two places to measure on; give one of them")
    if spec.tracker is not None and spec.device_key is None:
        raise UsageError("--tracker needs --device-key: the key under which the devices registered")


def _warn_of_a_small_budget(session: Session, say: Say) -> None:
    trials, tasks = session.config.trials, len(session.tasks)
    if trials is not None and trials < tasks:
        say(
            f"warning: {trials} trials for {tasks} tasks: at least {tasks - trials} tasks stay untuned; "
            f"give --trials {tasks * session.config.first_batch} or more"
        )


def _warn_of_tasks(tasks: Sequence[TaskTuner], say: Say) -> None:
    """Name the tasks that have no schedule, and those whose best schedule may only have been lucky."""
    for t in tasks:
        if t.best is None and (t.best_s or t.refusals):
            reasons = t.failures or t.refusals
            say(f"warning: no schedule of {t.task.name} worked: {dict(reasons.most_common(3))}")
    if lucky := [t.task.name for t in tasks if t.unconfirmed]:
        say(
            f"warning: no time was left to time the best schedules again of {names_text(lucky)}; "
            "give a longer --time-budget"
        )
