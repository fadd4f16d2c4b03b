"""AutoTVM's logs: their records as lines of ours, and back. No TVM is needed.

A log names of each record the task, the index of the configuration and its entities (values by knob). It does not say
which values the knobs have. So the knobs of an imported task have the values that occur in its log. Index, hash of the
template's code, and kinds of entities are kept in fields of their own, so that AutoTVM reads a written log as its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chameleon.errors import UsageError
from chameleon.exchange.targets import one_target
from chameleon.jobs.ledger import space_from_json
from chameleon.jobs.records import Records
from chameleon.search import Status
from chameleon.store.lines import UNKNOWN, Line, RecordsError, parse_lines, tuning_header
from tuners.autotvm_results import ERRORS, outcome_of
from tuners.config_space import ONLY

FIELD = "autotvm"
"""The field of a task line, and of its trial lines, that holds what AutoTVM needs to read them again."""
VERSION = 0.2
FAILED_COST = 1e9
_ERRORS = {Status.BUILD_ERROR: "compile_host", Status.RUN_ERROR: "runtime_device", Status.TIMEOUT: "run_timeout"}


def lines_of_log(path: Path, content: bytes, target: str | None) -> list[Line]:
    """The lines of records that a log holds.

    Args:
        target: of which to take the records, where there are several.

    Raises:
        RecordsError: if a line is no record of AutoTVM.
        UsageError: if there are several targets and none was chosen.
    """
    whole = content[: content.rfind(b"\n") + 1]
    records = list(parse_lines(path, whole))
    by_task: dict[str, list[dict[str, Any]]] = {}
    try:
        chosen = one_target(path, [str(r["input"][0]) for r in records], target)
        for record in records:
            if str(record["input"][0]) == chosen:
                by_task.setdefault(_key(record), []).append(record)
        lines = [line for key, found in by_task.items() for line in _task_lines(key, found, path.stem)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise RecordsError(
            f"{path}: not a log of AutoTVM ({error!r}); expected lines with input, config (index, code_hash, entity) "
            "and result"
        ) from error
    return [tuning_header(chosen, UNKNOWN), *lines]


def _key(record: Mapping[str, Any]) -> str:
    """What AutoTVM tells tasks apart by, and the template's code, hashed."""
    text = json.dumps([record["input"], record["config"].get("code_hash")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _task_lines(key: str, records: Sequence[Mapping[str, Any]], model: str) -> list[Line]:
    """The task line of one task, and a line for the best record of each configuration."""
    _, name, arguments, *_ = records[0]["input"]
    entities = [record["config"]["entity"] for record in records]
    names = [str(entity[0]) for entity in entities[0]]
    if any([str(e[0]) for e in entity] != names for entity in entities):
        raise ValueError(f"records of the task {name} with different knobs")
    values = [_values(entity[i][2] for entity in entities) for i in range(len(names))]
    knobs = [{"name": n, "kind": "option", "values": v} for n, v in zip(names, values, strict=True)]
    knobs = knobs or [{"name": ONLY, "kind": "option", "values": [None]}]
    kept = {
        "input": records[0]["input"],
        "code_hash": records[0]["config"].get("code_hash"),
        "kinds": [e[1] for e in entities[0]],
    }
    shapes = [x[1] for x in arguments if isinstance(x, list) and len(x) == 3 and x[0] == "TENSOR"]
    title = " ".join((str(name), *("x".join(map(str, s)) for s in shapes)))
    line: Line = {"kind": "task", "task": key, "name": title, "knobs": knobs, "sketches": [list(range(len(knobs)))]}
    line |= {"space": space_from_json(line).fingerprint(), FIELD: kept}
    positions = [{json.dumps(v): i for i, v in enumerate(column)} for column in values]
    best: dict[tuple[int, ...], Line] = {}
    for record in records:
        config = [p[json.dumps(e[2])] for p, e in zip(positions, record["config"]["entity"], strict=True)] or [0]
        trial = _trial_line(key, config, record, model)
        known = best.get(tuple(config))
        if known is None or trial.get("seconds", FAILED_COST) < known.get("seconds", FAILED_COST):
            best[tuple(config)] = trial
    return [line, *best.values()]


def _values(found: Any) -> list[Any]:
    """Different values in an order that does not depend on the log's."""
    known = {json.dumps(value): value for value in found}
    return [known[text] for text in sorted(known, key=lambda text: (len(text), text))]


def _trial_line(key: str, config: Sequence[int], record: Mapping[str, Any], model: str) -> Line:
    costs, error_no, all_cost, time_s = record["result"]
    result = SimpleNamespace(costs=costs, error_no=error_no, all_cost=all_cost)
    outcome = outcome_of(config, result)
    kept = {"index": int(record["config"]["index"]), "time_s": time_s, "error": outcome.error}
    return {"task": key, **outcome.trial.to_json(), FIELD: kept, "model": model, "elapsed_s": 0.0}


def log_of_lines(records: Records, lines: Sequence[Line], keys: Sequence[str]) -> list[Line]:
    """The records of a log, for the trials of the tasks `keys`; a failure's cost is 1e9, as AutoTVM writes it.

    Args:
        records: what the lines hold, of one environment.

    Raises:
        UsageError: if a task is none of AutoTVM.
    """
    tasks = {line["task"]: line for line in lines if line.get("kind") == "task"}
    for key in keys:
        if FIELD not in tasks[key]:
            raise UsageError(
                f"{records.place}: the task {tasks[key]['name']!r} was not tuned by AutoTVM, which could not read it; "
                "--to metaschedule or --to t4 can hold it"
            )
    return [
        _record(tasks[line["task"]], line)
        for line in lines
        if "status" in line and line["task"] in keys and tuple(line["config"]) in records.tasks[line["task"]].owners
    ]


def _record(task: Line, line: Line) -> Line:
    kept, own = task[FIELD], line[FIELD]
    values = [knob["values"][digit] for knob, digit in zip(task["knobs"], line["config"], strict=True)]
    names = [knob["name"] for knob in task["knobs"]]
    entity = [list(e) for e in zip(names, kept["kinds"], values, strict=False)]
    error = own.get("error") if own.get("error") in ERRORS else _ERRORS.get(Status(line["status"]), "no_error")
    costs = [line.get("seconds", FAILED_COST)]
    result = [costs, ERRORS.index(error), line.get("timings", {}).get("all", 0.0), own["time_s"]]
    config = {"index": own["index"], "code_hash": kept["code_hash"], "entity": entity}
    return {"input": kept["input"], "config": config, "result": result, "version": VERSION, "tvm_version": "chameleon"}
