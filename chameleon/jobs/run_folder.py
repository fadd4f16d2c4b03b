"""The folder of a run: it holds everything that was measured and made for one model and one target.

`chameleon tune` fills the folder. `chameleon compile` and `chameleon bench` read the best schedules from it. A second
`chameleon tune` on the same folder goes on where the first one ended. The files are:

runs/resnet18-llvm-znver4/
    run.json        the model, target, input shapes and tasks of the run, and the resolved configuration
    manifest.json   commit, platform and versions of the last run
    rewrite.json    what was rewritten before tuning, if anything (`--rewrite`)
    trials.jsonl    every measurement (docs/records.md), unless a store elsewhere has them
    kept.jsonl      only while that store is gone: what was measured meanwhile
    database/       the best schedules as a MetaSchedule JSON database
    network.so      the compiled network with the best schedules (network.tar: its objects, for another machine)
    report.json     the result of the run, as `--json` writes it

This module opens such a folder, checks which model and target it belongs to, and reads and writes these files.
`chameleon.jobs.records` reads and writes `trials.jsonl`.
"""

# pyright: reportAttributeAccessIssue=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.errors import ChameleonError, UsageError, doing
from chameleon.files import read_json, slug
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.environment import Environment
from chameleon.jobs.records import KEPT, RECORDS, Records
from chameleon.jobs.session import Session, database_of, open_session
from chameleon.jobs.stages import Say, stage
from chameleon.jobs.task_tuner import TaskTuner
from chameleon.jobs.verify import Verdict
from chameleon.kernels.lower import extract_tasks, lower
from chameleon.manifest import cpu_name, version_of, write_manifest
from chameleon.measure.link import Toolchain
from chameleon.memory.deadline import SEARCH_LIMIT_S, Deadline
from chameleon.memory.lower import Rewrites, lower_again, lower_rewritten
from chameleon.models.load import Model, load_model
from chameleon.models.shapes import InputShape
from chameleon.serenity.order.schedule import schedule
from chameleon.store.open import exists
from chameleon.store.place import Place, Url
from chameleon.target import detect_target, parse_target, runs_here, vector_features
from chameleon.wording import same_target

Watch = Callable[[Session], None]


@dataclass(frozen=True)
class JobSpec:
    """What to tune, for what, and where the results go."""

    model: str  # a zoo name, an .onnx or a .pt2 file
    target: str | None = None  # None: this machine
    out: Path | None = None  # None: a folder under runs/
    input_shape: InputShape | None = None  # for models whose file leaves it open
    tracker: str | None = None  # host:port of an RPC tracker; None: measure here
    device_key: str | None = None
    ray: str | None = None  # address of a Ray cluster to measure on, or `auto`
    processor: str | None = None  # of the cluster's nodes that measure, once they have said it
    records: Place | None = None  # a store that several models may share; None: trials.jsonl in `out`
    rewrite: bool = False  # rewrite the network first where that lowers the peak of its memory
    retry_failed: bool = False  # forget failed trials on record, so that they may be measured again
    learn_from: tuple[Path, ...] = ()  # folders of earlier runs that teach, besides those next to this run's
    toolchain: Toolchain = field(default_factory=Toolchain)  # links the network's library for another machine
    device: Mapping[str, Any] | None = None  # what a device at the tracker said of itself
    time_limit_s: float = 120.0  # for the search of rewrites; for orders and the arena of a compiled network
    dims: Mapping[str, int] = field(default_factory=dict)  # sizes of open dimensions, by name


@dataclass(frozen=True)
class TaskReport:
    """One tuned task: best time in microseconds (`None`: nothing succeeded) and its trials.

    Attributes:
        origin: the task whose search found the best schedule; `None`: its own.
        algorithm: of the best schedule (`chameleon.kernels.alternatives`); `None`: TVM's own space
            of the operator as it is written.
        chosen_by: what chose the best schedule: `trial`, `confirmation` (timed again) or `network` (compared there).
        cold_us: its time with cold caches; `None` if it was not timed so.
    """

    name: str
    weight: int
    flop: float
    best_us: float | None
    trials: int
    origin: str | None = None
    algorithm: str | None = None
    chosen_by: str | None = None
    cold_us: float | None = None


@dataclass(frozen=True)
class TuneReport:
    """The outcome of a run, in the shape of `--json`.

    Attributes:
        tuning_s: seconds of tuning, earlier runs included.
        latency_ms: medians of the network `untuned` and `tuned`; `None` where the network was not timed.
        quartiles_ms: lower and upper quartile for each of these.
        finish_s: seconds that compiling and timing the network took after that.
        measured_on: when the network was compiled and timed, in local time.
        measured_before: whether an earlier run did so, since this one found no new schedule.
        warnings: why the times may be off.
        breakdown: where the latency goes, see `chameleon.jobs.in_network.Breakdown`; `None` where it was not timed.
    """

    model: str
    target: str
    searcher: str
    seed: int
    trials: int
    failures: dict[str, int]
    tuning_s: float
    latency_ms: dict[str, float | None]
    tasks: list[TaskReport]
    quartiles_ms: dict[str, tuple[float, float]] = field(default_factory=dict)
    finish_s: float = 0.0
    measured_on: str | None = None
    measured_before: bool = False
    warnings: list[str] = field(default_factory=list)
    comparison: dict[str, Any] | None = None  # of the outputs, see `chameleon.jobs.verify.Verdict.to_json`
    breakdown: dict[str, Any] | None = None

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


def open_job(spec: JobSpec, say: Say) -> Opened:
    """Load the model, lower it for the target and extract its tasks; the run's folder is made where there is none."""
    target = target_of(spec)
    out = spec.out or default_folder(spec.model, target, rewrite=spec.rewrite)
    _make_folder(out)
    return _open(spec, target, out, say)


def open_run(spec: JobSpec, say: Say) -> Opened:
    """Open the run of an earlier `chameleon tune`, to use its schedules.

    What `spec` leaves open (target, shapes of the inputs, rewriting, compiler) is taken from the folder of the run.

    Raises:
        ChameleonError: if there is no such run, or if it is of another model or target, or has other shapes.
    """
    spec = resolved_run(spec)
    assert spec.out is not None  # it was found
    return _open(spec, target_of(spec), spec.out, say)


def resolved_run(spec: JobSpec) -> JobSpec:
    """Find the folder of an earlier run, and take from it what `spec` leaves open.

    Raises:
        ChameleonError: if there is no such run.
    """
    spec, out = _with_folder(spec)
    known = read_json(out / "run.json")
    target, shape = spec.target or known.get("target"), spec.input_shape
    if not shape and not spec.dims:
        shape = _shapes(known)
    toolchain = spec.toolchain if spec.toolchain.compiler else Toolchain.from_json(known.get("toolchain") or {})
    return dataclasses.replace(spec, out=out, target=target, input_shape=shape, toolchain=toolchain)


def default_folder(model: str, target: Target, *, rewrite: bool) -> Path:
    """The folder of a run that was given none."""
    rewritten = "-rewritten" if rewrite else ""
    return Path("runs") / slug(f"{Path(model).stem}-{target.kind.name}-{target.attrs.get('mcpu', '')}{rewritten}")


def _with_folder(spec: JobSpec) -> tuple[JobSpec, Path]:
    """Find the folder of an earlier run: the one given, or a default one, whose network may be rewritten."""
    if spec.out:
        folders = [spec.out]
    else:
        target = target_of(spec)
        rewritten = default_folder(spec.model, target, rewrite=True)
        folders = [rewritten] if spec.rewrite else [default_folder(spec.model, target, rewrite=False), rewritten]
    for folder in folders:
        if isinstance(spec.records, Url) and exists(spec.records) and (folder / "run.json").exists():
            return spec, folder
        if not isinstance(spec.records, Url) and (spec.records or folder / RECORDS).exists():
            return spec, folder
    _check_store(folders[0], spec)
    others = sorted(str(p.parent) for p in Path("runs").glob("*/trials.jsonl") if _is_of(p.parent, spec.model))
    if not others:  # a model that no run can have is told first
        load_model(spec.model, input_shape=spec.input_shape, dims=spec.dims)
    raise ChameleonError(
        f"no records at {spec.records or folders[0] / 'trials.jsonl'}; run `chameleon tune {spec.model}` first "
        f"or give its --out{': ' + ', '.join(others) if others else ''}"
    )


def _check_store(folder: Path, spec: JobSpec) -> None:
    """Say that the records of a run are in a store which was not named: a file is not trusted to name one.

    Raises:
        UsageError: if they are.
    """
    known = str(read_json(folder / "run.json").get("records") or "")
    if spec.records is None and "://" in known:
        raise UsageError(f"the records of {folder} are in {known}; give it: --store URL")


def _is_of(folder: Path, model: str) -> bool:
    return read_json(folder / "run.json").get("model") in (Path(model).stem, model.lower())


def _shapes(known: dict[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the inputs of a run, by name; None if the folder is of a version that did not write them."""
    return {name: tuple(shape) for name, shape in known.get("inputs", {}).items()} or None


def _open(spec: JobSpec, target: Target, out: Path, say: Say) -> Opened:
    with stage(say, f"loading {spec.model} for {target.kind.name}"), doing(f"loading {spec.model}", out):
        model = load_model(spec.model, input_shape=spec.input_shape, dims=spec.dims, say=say)
    _check_folder(out, model, target)
    with doing(f"lowering {spec.model}", out):
        lowered = _lowered(model, target, out, spec, say)
        return Opened(model, target, lowered, extract_tasks(lowered, target), out)


def target_of(spec: JobSpec) -> Target:
    """The target that a job names; without a name this machine.

    Raises:
        UsageError: if there is no such target.
    """
    return parse_target(spec.target) if spec.target else detect_target()


def artifact_name(target: Target, toolchain: Toolchain) -> str:
    """The file of a run's compiled network: a library, or the objects of one that only another machine can link."""
    return "network.so" if runs_here(target) or toolchain.compiler else "network.tar"


def _lowered(model: Model, target: Target, out: Path, spec: JobSpec, say: Say) -> Any:
    """Lower a run's network to kernels, rewritten first if that was asked for.

    The rewrites are found once and kept in the run's folder, because the tasks depend on them.
    """
    kept = out / "rewrite.json"
    if kept.exists():
        with stage(say, f"lowering {model.name} with its rewrites"):
            return lower_again(model, target, schedule, Rewrites.from_json(json.loads(kept.read_text())))
    if not spec.rewrite:
        with stage(say, f"lowering {model.name}"):
            return lower(model, target)
    if (out / "run.json").exists():
        raise ChameleonError(f"{out} holds a run of {model.name} as it is; to tune it rewritten give another --out")
    deadline = Deadline(spec.time_limit_s)
    with stage(say, "rewriting, where that lowers the peak of memory"):
        found = lower_rewritten(model, target, deadline.solver(SEARCH_LIMIT_S), deadline=deadline)
    if not found.complete:
        say(f"the search of rewrites was cut off after {spec.time_limit_s:g} s and {found.tries} tries")
    say(f"rewritten: {found.rewrites}" if str(found.rewrites) else "no rewrite lowers it")
    kept.write_text(json.dumps(found.rewrites.to_json()) + "\n")
    return found.lowered


def finished_report(out: Path, config: TuneConfig) -> TuneReport | None:
    """The report of a run in this folder that used up the same configuration's budget, `None` if there is none."""
    run, report = read_json(out / "run.json"), read_json(out / "report.json")
    if (
        not report
        or not run.get("finished")
        or run.get("config") != json.loads(json.dumps(dataclasses.asdict(config)))
    ):
        return None
    return TuneReport(**{**report, "tasks": [TaskReport(**t) for t in report["tasks"]], "measured_before": True})


def recorded_tuners(job: Opened, spec: JobSpec) -> list[TaskTuner]:
    """The tasks of a run that have trials on record, with these; also while a run writes to the records.

    No search space is made for the other tasks: they keep their default schedules.

    Raises:
        ChameleonError: if there are no records, or only those of other environments.
    """
    _check_store(job.out, spec)
    place, keys = spec.records or job.out / RECORDS, [task.key for task in job.tasks]
    if not exists(place):
        raise ChameleonError(f"no records at {place}; run `chameleon tune {spec.model}` first or give its --out")
    known = read_json(job.out / "run.json").get("environment")
    with Records(place, str(job.target), read_only=True, environment=known, workloads=keys) as records:
        tasks = [t for t in job.tasks if t.key in records.tasks and records.tasks[t.key].events]
        if not tasks and records.measured_in:
            raise ChameleonError(
                f"{place} holds trials of other environments only, such as of another version of TVM; "
                f"`chameleon tune {spec.model}` measures the best of them again"
            )
        return open_session(
            tasks, job.target, records, TuneConfig(searcher="random", share=False), job.model.name
        ).tasks


def recorded_database(job: Opened, spec: JobSpec) -> ms.database.Database:
    """The best schedules in a run's records.

    Raises:
        ChameleonError: if there are no records.
    """
    return database_of(recorded_tuners(job, spec), job.target)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ChameleonError(
            f"cannot write to the output folder {out}: {error.strerror}; give another --out"
        ) from error


def _check_folder(out: Path, model: Model, target: Target) -> None:
    """Refuse a folder that belongs to another model or target, before any time is spent on lowering.

    Raises:
        ChameleonError: if it does.
    """
    known = read_json(out / "run.json")
    shapes, ours = _shapes(known), dict(model.source.shapes)
    if shapes and known.get("model") == model.name and shapes.keys() == ours.keys() and shapes != ours:
        raise ChameleonError(
            f"{out} holds a run of {model.name} with other input shapes: expected {shape_text(ours)}, it has "
            f"{shape_text(shapes)}; leave the shapes out or give another --out"
        )
    for name, ours in (("model", model.name), ("fingerprint", model.fingerprint), ("target", str(target))):
        same = same_target if name == "target" else str.__eq__
        if known and not same(str(known.get(name)), ours):
            raise ChameleonError(
                f"{out} holds the run of another {name}: expected {ours}, it has {known.get(name)}; give another --out"
            )


def shape_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """Shapes by name, as people write them: `x=1,3,224,224`."""
    return " ".join(f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items())


def claim(job: Opened, spec: JobSpec, config: TuneConfig, *, finished: bool) -> None:
    """Write into the folder whose run it holds: model, target, configuration, and whether the run is finished."""
    run = {"model": job.model.name, "fingerprint": job.model.fingerprint, "target": str(job.target)}
    run |= {"inputs": {name: list(shape) for name, shape in job.model.source.shapes.items()}}
    run |= {"tracker": spec.tracker is not None, "device": spec.device, "toolchain": spec.toolchain.to_json()}
    run |= {"tasks": [{"key": t.key, "name": t.name, "weight": t.weight, "flop": t.flop} for t in job.tasks]}
    if spec.records is not None:  # shared with other runs: a file beside this folder, or a database
        run |= {"records": spec.records.name if isinstance(spec.records, Path) else str(spec.records)}
    run |= {"environment": environment_of(spec, job.target).id}
    run = {**run, "config": dataclasses.asdict(config), "finished": finished}
    (job.out / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    write_manifest(job.out / "manifest.json", {"model": spec.model, "config": dataclasses.asdict(config)})


def environment_of(spec: JobSpec, target: Target) -> Environment:
    """What makes the times of this run incomparable with others.

    Of a device at a tracker only its key is known, and of a cluster what its nodes say.
    """
    device = None if spec.tracker is None else f"device {spec.device_key}"
    named = {"kind", "keys", "tag", "mcpu", "num-cores"}
    flags = {name: str(value) for name, value in sorted(target.export().items()) if name not in named}
    threads = target.attrs.get("num-cores")
    return Environment(
        tvm=version_of("apache-tvm"),
        cpu=spec.processor or device or cpu_name(),
        vector=" ".join(sorted(vector_features(target))),
        threads=None if threads is None else int(threads),
        flags=" ".join(f"{name}={value}" for name, value in flags.items()),
    )


def open_records(job: Opened, spec: JobSpec) -> Records:
    """The records of a run, to be written as well.

    Raises:
        RecordsError: if they belong to another target, or cannot be reached.
    """
    place = spec.records or job.out / RECORDS
    kept = job.out / KEPT if isinstance(place, Url) else None
    return Records(place, str(job.target), environment=environment_of(spec, job.target), kept=kept)


def export(compiled: Any, path: Path, check: Callable[[Path], Verdict], toolchain: Toolchain | None = None) -> Verdict:
    """Write a library beside its place, and rename it if it is right.

    So neither a killed process nor a wrong library leaves anything in the place.

    Args:
        check: compares the library with its reference.
        toolchain: links it for another machine; None: this machine's compiler does.

    Raises:
        ChameleonError: if the library cannot be written.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        compiled.export(part, toolchain)
        verdict = check(part)
        if verdict.agrees:
            part.replace(path)
    except OSError as error:
        missing = f": {error.filename}" if error.filename and Path(error.filename) not in (part, path) else ""
        raise ChameleonError(f"cannot write {path}: {error.strerror}{missing}") from error
    finally:
        part.unlink(missing_ok=True)
    return verdict


def export_database(database: ms.database.Database, folder: Path) -> None:
    """Write the best schedules as a MetaSchedule JSON database, which TVM's own tools read."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    exported = ms.database.JSONDatabase(work_dir=str(folder))
    for record in database.get_all_tuning_records():
        exported.commit_workload(record.workload.mod)
        exported.commit_tuning_record(record)
