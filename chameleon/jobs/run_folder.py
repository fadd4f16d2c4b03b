"""TODO"""

# pyright: reportAttributeAccessIssue=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.errors import ChameleonError
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.records import Records
from chameleon.jobs.session import Session, database_of, open_session
from chameleon.kernels.lower import extract_tasks, lower
from chameleon.manifest import write_manifest
from chameleon.memory.deadline import SEARCH_LIMIT_S, Deadline
from chameleon.memory.lower import Rewrites, lower_again, lower_rewritten
from chameleon.models.load import Model, load_model
from chameleon.serenity.order.schedule import schedule
from chameleon.target import detect_target, parse_target

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
    time_limit_s: float = 120.0  # for the search of rewrites; for orders and the arena of a compiled network


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
    deadline = Deadline(spec.time_limit_s)
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
    """Refuse a folder that belongs to another model or target before anything is lowered."""
    known = read_json(out / "run.json")
    for name, ours in (("model", model.name), ("fingerprint", model.fingerprint), ("target", str(target))):
        if known and known.get(name) != ours:
            raise ChameleonError(
                f"{out} holds the run of another {name}: expected {ours}, it has {known.get(name)}; give another --out"
            )


def claim(job: Opened, spec: JobSpec, config: TuneConfig, *, finished: bool) -> None:
    run = {"model": job.model.name, "fingerprint": job.model.fingerprint, "target": str(job.target)}
    run = {**run, "config": dataclasses.asdict(config), "finished": finished}
    (job.out / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    write_manifest(job.out / "manifest.json", {"model": spec.model, "config": dataclasses.asdict(config)})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that an earlier run wrote, empty if it is missing or was cut off."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def export(compiled: Any, path: Path) -> None:
    """Write the library beside its place first, so that a killed process leaves no half of it."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        compiled.export(part)
        part.replace(path)
    except OSError as error:
        raise ChameleonError(f"cannot write {path}: {error.strerror}") from error


def export_database(database: ms.database.Database, folder: Path) -> None:
    """Write the best schedules for stock tools: a MetaSchedule JSON database."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    exported = ms.database.JSONDatabase(work_dir=str(folder))
    for record in database.get_all_tuning_records():
        exported.commit_workload(record.workload.mod)
        exported.commit_tuning_record(record)


def slug(text: str) -> str:
    """The text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
