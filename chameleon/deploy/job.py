"""`chameleon tune` and `chameleon compile`: one folder a run, holding everything that was measured and made.

runs/resnet18-llvm-znver4/
    run.json        which model and target the folder belongs to, and the resolved configuration
    manifest.json   commit, platform and versions of the last run
    rewrite.json    what was rewritten before tuning, if anything (`--rewrite`)
    trials.jsonl    every measurement (docs/records.md)
    database/       the best schedules as a MetaSchedule JSON database
    network.so      the compiled network with the best schedules
    report.json     what `--json` prints
"""

# pyright: reportAttributeAccessIssue=false
# (TVM's attributes come from C++ and have no types)

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.deploy.bench import BenchResult, bench_model
from chameleon.deploy.compile import Compiled, compile_model
from chameleon.deploy.config import TuneConfig
from chameleon.deploy.measure import WarmBuilder, WarmRunner
from chameleon.deploy.memory_lower import Rewrites, lower_again, lower_rewritten
from chameleon.deploy.model import Model, load_model
from chameleon.deploy.records import Records
from chameleon.deploy.remote import rpc_runner
from chameleon.deploy.runner import device_name
from chameleon.deploy.target import detect_target, parse_target
from chameleon.deploy.tasks import extract_tasks, lower
from chameleon.deploy.tuning import Measurer, Session, TaskTuner, database_of, open_session, tune
from chameleon.errors import ChameleonError, UsageError
from chameleon.manifest import write_manifest
from chameleon.search import KnobSpace, make_searcher, option
from chameleon.serenity.schedule import schedule

Watch = Callable[[Session], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class JobSpec:
    """What to tune, for what, and where the results go."""

    model: str  # a zoo name, an .onnx or a .pt2 file
    target: str | None = None  # None: this machine
    out: Path | None = None  # None: a folder under runs/
    input_shape: tuple[int, ...] | None = None  # for models whose file leaves it open
    tracker: str | None = None  # host:port of an RPC tracker; None: measure here
    device_key: str | None = None
    records: Path | None = None  # shared by several models; None: trials.jsonl in `out`
    rewrite: bool = False  # rewrite the network first where that lowers the peak of its memory


@dataclass(frozen=True)
class TaskReport:
    """One tuned task: best time in microseconds (`None`: nothing succeeded) and its trials."""

    name: str
    weight: int
    flop: float
    best_us: float | None
    trials: int


@dataclass(frozen=True)
class TuneReport:
    """The outcome of a run, in the shape of `--json`."""

    model: str
    target: str
    searcher: str
    seed: int
    trials: int
    failures: dict[str, int]
    tuning_s: float
    latency_ms: dict[str, float | None]
    tasks: list[TaskReport]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Opened:
    """A model with its tasks, ready to be tuned or compiled."""

    model: Model
    target: Target
    lowered: Any
    tasks: Sequence[Any]
    out: Path


def tune_model(spec: JobSpec, config: TuneConfig, watch: Watch, say: Say) -> tuple[TuneReport, Path]:
    """Tune a model's tasks, or go on where an earlier run of the same folder ended, then compile and time it.

    Returns:
        The report and the folder.

    Raises:
        ChameleonError: with a message for people, on anything that the user can mend.
    """
    _check_config(spec, config)
    job = open_job(spec, say)
    _claim(job, spec, config, finished=False)
    with Records(spec.records or job.out / "trials.jsonl", str(job.target)) as records:
        say(f"{len(job.tasks)} tasks; records in {records.path}")
        if not records.elapsed_s.get(job.model.name):  # there is something to measure for certain
            _check_device(spec, job.target)
        session = open_session(job.tasks, job.target, records, config, job.model.name)
        if session.trials:
            say(f"resuming: {session.trials} trials measured before, in {session.elapsed_s:.0f} s of tuning")
        made = 0
        if not session.used_up:
            with ExitStack() as stack:
                made = tune(session, _measurer(spec, job.target, stack), records, job.model.name, watch)
    _warn_of_tasks_without_success(session.tasks, say)
    report = _finish(job, spec, session, made, say)
    _claim(job, spec, config, finished=True)
    return report, job.out


def compile_tuned(spec: JobSpec, output: Path, say: Say, *, memory_aware: bool = False) -> Compiled:
    """Build the network with the best schedules in the folder's records and write it.

    Args:
        memory_aware: order it for the least memory, with these schedules' workspaces, in one arena.

    Raises:
        ChameleonError: if there are no records, or they belong to another model or target.
    """
    job = open_job(spec, say)
    compiled = compile_model(job.lowered, job.target, recorded_database(job, spec), schedule if memory_aware else None)
    _export(compiled, output)
    return compiled


def bench_tuned(spec: JobSpec, say: Say) -> BenchResult:
    """Time the network untuned, with the best schedules in the folder's records, and in ONNX Runtime.

    Raises:
        ChameleonError: if there are no records, or they belong to another model or target.
    """
    job = open_job(spec, say)
    compiled = compile_model(job.lowered, job.target, recorded_database(job, spec))
    say("timing untuned, tuned and ONNX Runtime in turn")
    return bench_model(job.model, job.target, compiled, onnxruntime=True)


def open_job(spec: JobSpec, say: Say) -> Opened:
    """Load the model, lower it for the target and extract its tasks."""
    target = parse_target(spec.target) if spec.target else detect_target()
    name = f"{Path(spec.model).stem}-{target.kind.name}-{target.attrs.get('mcpu', '')}{'-rewritten' if spec.rewrite else ''}"
    out = spec.out or Path("runs") / slug(name)
    _make_folder(out)
    say(f"loading {spec.model} for {target.kind.name}")
    model = load_model(spec.model, input_shape=spec.input_shape)
    _check_folder(out, model, target)
    lowered = _lowered(model, target, out, spec, say)
    return Opened(model, target, lowered, extract_tasks(lowered, target), out)


def _lowered(model: Model, target: Target, out: Path, spec: JobSpec, say: Say) -> Any:
    """The kernels of a run's network. What is rewritten is found once and kept in its folder: the tasks depend on it."""
    kept = out / "rewrite.json"
    if kept.exists():
        return lower_again(model, target, schedule, Rewrites.from_json(json.loads(kept.read_text())))
    if not spec.rewrite:
        return lower(model, target)
    if (out / "run.json").exists():
        raise ChameleonError(f"{out} holds a run of {model.name} as it is; to tune it rewritten give another --out")
    say("rewriting, where that lowers the peak of memory")
    found = lower_rewritten(model, target, schedule)
    say(f"rewritten: {found.rewrites}" if str(found.rewrites) else "no rewrite lowers it")
    kept.write_text(json.dumps(found.rewrites.to_json()) + "\n")
    return found.lowered


def parse_shape(text: str | Sequence[int]) -> tuple[int, ...]:
    """An input shape from `1,3,224,224` or a list.

    Raises:
        UsageError: if these are no positive whole numbers.
    """
    parts = text.replace("x", ",").split(",") if isinstance(text, str) else text
    try:
        shape = tuple(int(part) for part in parts)
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"expected an input shape such as 1,3,224,224, got {text!r}")
    return shape


def finished_report(out: Path, config: TuneConfig) -> TuneReport | None:
    """The report of a run in this folder that used up the same configuration's budget, `None` if there is none."""
    run, report = _read_json(out / "run.json"), _read_json(out / "report.json")
    if not report or not run.get("finished") or run.get("config") != json.loads(json.dumps(dataclasses.asdict(config))):
        return None
    return TuneReport(**{**report, "tasks": [TaskReport(**t) for t in report["tasks"]]})


def recorded_database(job: Opened, spec: JobSpec) -> ms.database.Database:
    """The best schedules in the folder's records.

    Raises:
        ChameleonError: if there are no records.
    """
    path = spec.records or job.out / "trials.jsonl"
    if not path.exists():
        raise ChameleonError(f"no records at {path}; run `chameleon tune {spec.model}` first or give its --out")
    with Records(path, str(job.target)) as records:
        session = open_session(job.tasks, job.target, records, TuneConfig(searcher="random"), job.model.name)
    return database_of(session.tasks, job.target)


def _check_device(spec: JobSpec, target: Target) -> None:
    if spec.tracker is None and not tvm.device(device_name(target.kind.name)).exist:
        raise ChameleonError(f"this machine has no {target.kind.name} device; measure on another one: --tracker host:port")


def _measurer(spec: JobSpec, target: Target, stack: ExitStack) -> Measurer:
    _check_device(spec, target)
    if spec.tracker is None:
        return Measurer(target, stack.enter_context(WarmBuilder()), stack.enter_context(WarmRunner()))
    assert spec.device_key is not None  # _check_config saw to it
    builder = stack.enter_context(WarmBuilder(export="tar"))
    runner = stack.enter_context(rpc_runner(spec.tracker, spec.device_key))
    return Measurer(target, builder, runner, together=16)


def _finish(job: Opened, spec: JobSpec, session: Session, made: int, say: Say) -> TuneReport:
    """Compile, export and time the network, unless nothing is new and an earlier run did."""
    report_path, artifact = job.out / "report.json", job.out / "network.so"
    report = _report(job, session)
    if made == 0 and artifact.exists() and (before := _read_json(report_path)) and before.get("trials") == report.trials:
        return dataclasses.replace(report, latency_ms=before["latency_ms"])
    say("compiling with the best schedules")
    database = database_of(session.tasks, job.target)
    _export_database(database, job.out / "database")
    compiled = compile_model(job.lowered, job.target, database)
    _export(compiled, artifact)
    if compiled.untuned:
        say(f"no schedule for {len(compiled.untuned)} tasks: {', '.join(compiled.untuned)}")
    if spec.tracker is None and job.target.kind.name == "llvm":
        say("timing untuned and tuned")
        timed = bench_model(job.model, job.target, compiled, onnxruntime=False)
        report = dataclasses.replace(report, latency_ms={"untuned": timed.untuned.median_ms, "tuned": timed.tuned.median_ms})
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
    """What is wrong with the names is said before the model is loaded.

    Raises:
        UsageError: on an unknown searcher or option of it, or a tracker without a device key.
    """
    make_searcher(config.searcher, KnobSpace([option("any", [0])]), np.random.default_rng(0), **config.options)
    if spec.tracker is not None and spec.device_key is None:
        raise UsageError("--tracker needs --device-key: the key under which the devices registered")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ChameleonError(f"cannot write to the output folder {out}: {error.strerror}; give another --out") from error


def _check_folder(out: Path, model: Model, target: Target) -> None:
    """Refuse a folder that belongs to another model or target before anything is lowered."""
    known = _read_json(out / "run.json")
    for name, ours in (("model", model.name), ("fingerprint", model.fingerprint), ("target", str(target))):
        if known and known.get(name) != ours:
            raise ChameleonError(
                f"{out} holds the run of another {name}: expected {ours}, it has {known.get(name)}; give another --out"
            )


def _claim(job: Opened, spec: JobSpec, config: TuneConfig, *, finished: bool) -> None:
    run = {"model": job.model.name, "fingerprint": job.model.fingerprint, "target": str(job.target)}
    run = {**run, "config": dataclasses.asdict(config), "finished": finished}
    (job.out / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    write_manifest(job.out / "manifest.json", {"model": spec.model, "config": dataclasses.asdict(config)})


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file that an earlier run wrote, empty if it is missing or was cut off."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _export(compiled: Any, path: Path) -> None:
    """Write the library beside its place first, so that a killed process leaves no half of it."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        compiled.export(part)
        part.replace(path)
    except OSError as error:
        raise ChameleonError(f"cannot write {path}: {error.strerror}") from error


def _export_database(database: ms.database.Database, folder: Path) -> None:
    """Write the best schedules for stock tools: a MetaSchedule JSON database."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    exported = ms.database.JSONDatabase(work_dir=str(folder))
    for record in database.get_all_tuning_records():
        exported.commit_workload(record.workload.mod)
        exported.commit_tuning_record(record)


def _warn_of_tasks_without_success(tasks: Sequence[TaskTuner], say: Say) -> None:
    for t in tasks:
        if t.best is None and (t.best_s or t.refusals):
            reasons = t.failures or t.refusals
            say(f"warning: no schedule of {t.task.name} worked: {dict(reasons.most_common(3))}")


def slug(text: str) -> str:
    """The text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
