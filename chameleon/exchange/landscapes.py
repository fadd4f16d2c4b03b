"""Landscapes and records: a recorded landscape as the records of a task, and the records of a task as T4.

A landscape lists the configurations of one space. What was measured of a task is such a list: that of its trials. So
`chameleon replay` searches among these trials only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chameleon.errors import UsageError
from chameleon.jobs.ledger import space_to_json
from chameleon.jobs.measured import usable_event
from chameleon.jobs.records import Records
from chameleon.search import Status, Trial
from chameleon.store.lines import UNKNOWN, Line, RecordsError, tuning_header
from tuners.landscape import TIME, load_landscape

INVALIDITY = {
    Status.OK: "correct",
    Status.BUILD_ERROR: "compile",
    Status.RUN_ERROR: "runtime",
    Status.TIMEOUT: "timeout",
}
SCHEMA = "1.0.0"


def lines_of_landscape(path: Path, target: str | None) -> list[Line]:
    """The lines of records of a recorded landscape: one task, with a trial for each configuration.

    Raises:
        LandscapeError: if it is no landscape.
        UsageError: if no target is given; landscapes name none.
        RecordsError: if it holds something else than times.
    """
    landscape = load_landscape(path)
    if target is None:
        raise UsageError(f"{path} is a landscape, which names no target; say with --target what it was measured on")
    if landscape.objective != TIME:
        raise RecordsError(f"{path} holds {landscape.objective.name}; records of tuning hold times only")
    space = space_to_json(landscape.space)
    key = hashlib.sha256(f"{landscape.name} {space['space']}".encode()).hexdigest()[:16]
    trials = landscape.measure(landscape.configs)
    end = {"model": landscape.name, "elapsed_s": 0.0}
    return [
        tuning_header(target, UNKNOWN),
        {"kind": "task", "task": key, "name": landscape.name, **space},
        *({"task": key, **trial.to_json(), **end} for trial in trials),
    ]


def t4_of(records: Records, key: str) -> dict[str, Any]:
    """The trials of a task as a T4 document, times in seconds.

    Raises:
        RecordsError: if the records do not tell the knobs, or no trial succeeded.
    """
    task = records.tasks[key]
    space, wrong = task.knob_space(), task.wrong
    trials = [e for e in (usable_event(event, wrong) for event in task.events) if isinstance(e, Trial)]
    if space is None or not any(t.seconds for t in trials):
        why = "its knobs are not on record" if space is None else "no schedule of it worked"
        raise RecordsError(
            f"{records.place}: the task {task.name!r} makes no landscape: {why}; choose others with --task"
        )
    names = [knob.name for knob in space.knobs]
    values = [[list(v) if isinstance(v, tuple) else v for v in knob.values] for knob in space.knobs]
    results = [
        _result(trial, dict(zip(names, (v[d] for v, d in zip(values, trial.config, strict=True)), strict=True)))
        for trial in trials
    ]
    about = {"timeunit": "seconds", "task": task.name, "target": records.target}
    return {"schema_version": SCHEMA, "metadata": about, "results": results}


def _result(trial: Trial, configuration: dict[str, Any]) -> dict[str, Any]:
    times = {"compilation_time": trial.timings.get("build", 0.0), "runtimes": [trial.seconds] if trial.seconds else []}
    measured: Sequence[dict[str, Any]] = (
        [{"name": "time", "value": trial.seconds, "unit": "seconds"}] if trial.seconds else []
    )
    return {
        "configuration": configuration,
        "times": times,
        "invalidity": INVALIDITY[trial.status],
        "correctness": 1 if trial.seconds else 0,
        "measurements": measured,
        "objectives": ["time"],
    }
