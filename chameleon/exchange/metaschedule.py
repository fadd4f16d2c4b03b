"""MetaSchedule's databases: the schedules of a run as a database that TVM's own tools open, and back."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.errors import UsageError, first_line
from chameleon.exchange.book import measured
from chameleon.exchange.targets import one_target
from chameleon.files import parse_json, read_json
from chameleon.jobs.ledger import Config, space_to_json
from chameleon.jobs.records import Records
from chameleon.jobs.run_folder import JobSpec, open_run
from chameleon.jobs.stages import Say
from chameleon.kernels.alternatives import EXACT, algorithm_of, replaced_by
from chameleon.kernels.lower import Task, task_key
from chameleon.models.load import model_names
from chameleon.store.lines import UNKNOWN, Line, RecordsError, tuning_header
from tuners.anchors import anchor_key
from tuners.outcomes import measured_trial
from tuners.task_space import commit_schedule, task_space
from tuners.trace_space import Refused

logger = logging.getLogger("chameleon")


def lines_of_database(folder: Path, target: str | None) -> list[Line]:
    """The lines of records of a database: its workloads are the tasks, its traces the trials.

    A database knows no names of tasks: a task is called after its main block. Failures have no reason there.

    Args:
        target: of which to take the records, where there are several.

    Raises:
        RecordsError: if the database cannot be read.
        UsageError: if there are several targets and none was chosen.
    """
    try:
        database = ms.database.JSONDatabase(work_dir=str(folder), allow_missing=False)
        found = [r for r in database.get_all_tuning_records() if r.target is not None]
    except Exception as error:  # whatever TVM's reader throws
        raise RecordsError(f"{folder}: not a database of MetaSchedule: {first_line(error)}") from error
    chosen = one_target(folder, [str(r.target) for r in found], target)
    mods, algorithms = _workloads(folder)
    by_task: dict[str, list[Any]] = {}
    for record in found:
        if str(record.target) == chosen:
            mod = record.workload.mod
            key = replaced_by(mod) or task_key(mod)
            mods.setdefault(key, mod)
            by_task.setdefault(key, []).append(record)
    lines: list[Line] = [tuning_header(chosen, UNKNOWN)]
    for key, records in by_task.items():
        names = algorithms.get(key, set()) | set(EXACT)
        lines += _task_lines(key, mods[key], names, records, Target(chosen), folder.resolve().name)
    return lines


def _workloads(folder: Path) -> tuple[dict[str, IRModule], dict[str, set[str]]]:
    """The workloads of a database by their keys, and the names of the other algorithms for them."""
    lines = (folder / "database_workload.json").read_text().splitlines()
    mods, algorithms = {}, {}
    for mod in (ms.database.Workload.from_json(parse_json(line)).mod for line in lines if line.strip()):
        if (name := algorithm_of(mod)) is None:
            mods[task_key(mod)] = mod
        else:
            algorithms.setdefault(str(replaced_by(mod)), set()).add(name)
    return mods, algorithms


def _task_lines(
    key: str, mod: IRModule, names: Collection[str], records: Sequence[Any], target: Target, model: str
) -> list[Line]:
    try:
        traces, algorithms = task_space(mod, target, names)
    except Exception as error:  # TVM's rules fail in many ways
        logger.warning("the workload %s is left out: TVM makes no design space for it: %s", key, first_line(error))
        return []
    anchor = anchor_key(mod, traces)
    blocks = [knob.name.partition(".")[0] for knob in traces.space.knobs if "." in knob.name]
    name = f"{blocks[0] if blocks else 'workload'}-{key[:6]}"
    more: dict[str, Any] = {} if anchor is None else {"anchor": anchor}
    more |= {"algorithms": algorithms} if algorithms else {}
    best: dict[Config, Line] = {}
    foreign = 0
    for record in records:
        digits = traces.digits(record.trace)
        if digits is None:
            foreign += 1
            continue
        trial = measured_trial(tuple(int(d) for d in digits), [float(s) for s in record.run_secs or ()], None)
        known = best.get(trial.config)
        if known is None or (trial.seconds or 1e9) < known.get("seconds", 1e9):
            best[trial.config] = {"task": key, **trial.to_json(), "model": model, "elapsed_s": 0.0}
    if foreign:
        logger.warning("%s: %d records come from other design spaces and are left out", name, foreign)
    return [{"kind": "task", "task": key, "name": name, **more, **space_to_json(traces.space)}, *best.values()]


def export_run(
    run: Path, records: Records, keys: Sequence[str], out: Path, model: str | None, best: int | None, say: Say
) -> int:
    """Write the schedules of a run's tasks as a database; returns how many records it has.

    The records hold no kernels. So the network is loaded and lowered again.

    Args:
        run: its folder.
        keys: of the tasks.
        model: the network; None: the name in `run.json`, if it is one of the zoo.
        best: only so many schedules of each task, the fastest; None: all that work.

    Raises:
        UsageError: if the folder holds no run, or the network has to be named.
        RecordsError: if the tasks of the network have other knobs than the records.
    """
    known = read_json(run / "run.json")
    if not known:
        raise UsageError(f"{run} is not the folder of a run; a database needs the kernels of its network")
    model = model or (known.get("model") if known.get("model") in model_names() else None)
    if model is None:
        raise UsageError(f"{run} is a run of {known.get('model')!r}, from a file; give that file: --model FILE")
    job = open_run(JobSpec(model, out=run, records=records.place), say)
    parent = out.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=parent, prefix=f".{out.name}."))
    try:
        database = ms.database.JSONDatabase(work_dir=str(part))
        tasks = [task for task in job.tasks if task.key in keys]
        written = sum(_commit(database, task, job.target, records, best) for task in tasks)
        part.chmod(0o755)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return written


def _commit(database: ms.database.Database, task: Task, target: Target, records: Records, best: int | None) -> int:
    """Commit the schedules of one task, the fastest first; returns how many."""
    known = records.tasks[task.key]
    traces, _ = task_space(task.mod, target, known.algorithms)
    if traces.space.fingerprint() != known.space:
        raise RecordsError(
            f"{records.place}: the records of task {known.name!r} were made with other knobs (space {known.space}, "
            f"now {traces.space.fingerprint()}), perhaps by another version of TVM; export them with that version"
        )
    results = measured(records, task.key)
    times: Mapping[Config, float] = {c: s * (results.now_s or 0.0) for c, s in results.slowness().items()}
    written = 0
    for mod in traces.modules:  # without them an import would not know the same space
        database.commit_workload(mod)
    for config in sorted(times, key=lambda config: times[config])[:best]:
        try:
            commit_schedule(database, traces, config, times[config], target)
        except Refused as refusal:
            logger.warning("%s: a schedule is left out: %s", task.name, refusal)
            continue
        written += 1
    return written
