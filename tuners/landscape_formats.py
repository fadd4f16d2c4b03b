"""What other tuners record: T4, the caches of Kernel Tuner, the results of KTT; and files that only look like it."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chameleon.files import parse_json
from chameleon.search.trial import Status
from tuners.landscape_table import (
    TIME,
    Entry,
    Landscape,
    LandscapeError,
    LandscapeWarning,
    Objective,
    bad_entry,
    named_landscape,
)

UNIT_S = {
    **{"s": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "miliseconds": 1e-3},
    **{"us": 1e-6, "microseconds": 1e-6, "ns": 1e-9, "nanoseconds": 1e-9},
}
"""Seconds in a unit of time, by the names that the formats use."""
_KERNEL_TUNER_ERROR_MS = 1e20  # what Kernel Tuner before 0.4 recorded as the time of a failure
_ERROR = "__error__"  # where Kernel Tuner from 1.4 on names the failure of a configuration


def entry_of(value: Any, objective: Objective = TIME, unit: float = 1.0) -> Entry:
    """The entry for a value, or for Kernel Tuner's name of a failure (a string), such as `CompilationFailedConfig`.

    Args:
        unit: a time is multiplied by it.

    Raises:
        ValueError, TypeError: if it is neither.
    """
    if isinstance(value, str):
        build = "compil" in value.lower() or "invalid" in value.lower()
        status = Status.TIMEOUT if "timeout" in value.lower() else Status.BUILD_ERROR if build else Status.RUN_ERROR
        return Entry(math.nan, status, value)
    number = float(value)
    positive = objective != TIME or (number > 0 and number != _KERNEL_TUNER_ERROR_MS)
    if not (math.isfinite(number) and positive):
        return Entry(math.nan, Status.RUN_ERROR, f"no valid {objective.name} on record ({value})")
    return Entry(number * unit if objective == TIME else number, Status.OK)


def from_t4(path: Path, document: Mapping[str, Any]) -> Landscape:
    """Reads T4 results. A result with the invalidity `constraints` is listed, so it counts as a failed build."""
    results = document["results"]
    metadata = document.get("metadata")
    unit = metadata.get("timeunit", "ms") if isinstance(metadata, dict) else "ms"
    if not isinstance(results, list):
        raise LandscapeError(f"{path}: expected `results` to be a list, got a {type(results).__name__}")
    objective = _t4_objective(path, results)
    configs: list[dict[str, Any]] = []
    entries: list[Entry] = []
    for i, result in enumerate(results):
        try:
            configs.append(dict(result["configuration"]))
            entries.append(_t4_entry(result, objective, unit))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            expected = f"configuration, invalidity and a measurement called {objective.name}"
            raise bad_entry(path, f"result {i}", expected, error) from error
    return named_landscape(path, list(configs[0]) if configs else [], {}, configs, entries, objective)


def _t4_objective(path: Path, results: Sequence[Any]) -> Objective:
    """What the results name as their objective, as far as it was measured."""
    named = next((r["objectives"] for r in results if isinstance(r, dict) and r.get("objectives")), ["time"])
    return _objective(path, named if isinstance(named, list) else [named], None)


def _t4_entry(result: Mapping[str, Any], objective: Objective, unit: str) -> Entry:
    verdict = result.get("invalidity") or "correct"
    if verdict != "correct":
        statuses = {"timeout": Status.TIMEOUT, "compile": Status.BUILD_ERROR, "constraints": Status.BUILD_ERROR}
        return Entry(math.nan, statuses.get(verdict, Status.RUN_ERROR), str(verdict))
    found = next((m for m in result.get("measurements", ()) if m["name"] == objective.name), None)
    if found is None:
        raise ValueError(f"no measurement called {objective.name!r}")
    return entry_of(found["value"], objective, _unit_s(found.get("unit") or unit) if objective == TIME else 1.0)


def _unit_s(unit: str) -> float:
    if str(unit).lower() not in UNIT_S:
        raise ValueError(f"unknown unit of time {unit!r}, known: {', '.join(UNIT_S)}")
    return UNIT_S[str(unit).lower()]


def _objective(path: Path, names: Sequence[str], higher_is_better: bool | None) -> Objective:
    """The objective that is replayed: of several the time, or else the first."""
    names = [str(name) for name in names] or ["time"]
    chosen = "time" if "time" in names else names[0]
    if len(names) > 1:
        warnings.warn(f"{path}: of the objectives {', '.join(names)} only {chosen} is used", LandscapeWarning, 4)
    return TIME if chosen == "time" else Objective.of(chosen, higher_is_better)


def from_kernel_tuner(path: Path, document: Mapping[str, Any]) -> Landscape:
    """Reads a cache of Kernel Tuner, of any objective."""
    names, cache = list(document["tune_params_keys"]), document["cache"]
    if not isinstance(cache, dict):
        raise LandscapeError(f"{path}: expected `cache` to be an object, got a {type(cache).__name__}")
    objective = _cache_objective(path, document)
    configs: list[dict[str, Any]] = []
    entries: list[Entry] = []
    for key, record in cache.items():
        try:
            configs.append({name: record[name] for name in names})
            value = record[_ERROR] if _ERROR in record else record[objective.name]
            entries.append(entry_of(value, objective, UNIT_S["ms"]))
        except (KeyError, TypeError, ValueError) as error:
            expected = f"a value for each of {names} and a {objective.name}"
            raise bad_entry(path, f"entry {key!r}", expected, error) from error
    return named_landscape(path, names, document.get("tune_params") or {}, configs, entries, objective)


def _cache_objective(path: Path, document: Mapping[str, Any]) -> Objective:
    """The objective that a cache names. If none of its entries has it, but they have times, then the time."""
    named = document.get("objective") or "time"
    objective = _objective(
        path, named if isinstance(named, list) else [named], document.get("objective_higher_is_better")
    )
    records = [r for r in document["cache"].values() if isinstance(r, dict)]
    if objective != TIME and not any(objective.name in r for r in records) and any("time" in r for r in records):
        warnings.warn(f"{path}: no entry has the objective {objective.name}; the time is used", LandscapeWarning, 4)
        return TIME
    return objective


def open_cache(path: Path, text: str) -> dict[str, Any] | None:
    """Reads a cache of Kernel Tuner that was never closed, as a run that was stopped leaves it, cut anywhere.

    Returns:
        The document with all whole entries; None if the text is no such cache.

    Raises:
        LandscapeError: if no entry is whole.
    """
    for found in re.finditer(r'"cache"\s*:\s*\{', text):
        try:
            document = parse_json(text[: found.start()].rstrip().removesuffix(",") + "}")
        except json.JSONDecodeError:
            continue
        if "tune_params_keys" in document:
            break
    else:
        return None
    entries = _whole_entries(text, found.end())
    if not entries:
        raise LandscapeError(f"{path}: the cache of Kernel Tuner was never closed and holds no whole entry yet")
    warnings.warn(f"{path}: the cache was never closed; using the {len(entries)} entries in it", LandscapeWarning, 4)
    return {**document, "cache": entries}


def _whole_entries(text: str, at: int) -> dict[str, Any]:
    """The entries of an object from position `at` on, up to the first that is cut short or broken."""
    decoder, entries = json.JSONDecoder(), {}
    blank, colon = re.compile(r"[\s,]*"), re.compile(r"\s*:\s*")
    while True:
        try:
            key, at = decoder.raw_decode(text, blank.match(text, at).end())  # type: ignore[union-attr]
            separator = colon.match(text, at)
            if separator is None:
                return entries
            entries[key], at = decoder.raw_decode(text, separator.end())
        except (json.JSONDecodeError, TypeError):
            return entries


def from_ktt(path: Path, document: Mapping[str, Any]) -> Landscape:
    """Reads the results that KTT (Kernel Tuning Toolkit) saves as JSON."""
    metadata = document.get("Metadata")
    unit = metadata.get("TimeUnit", "Milliseconds") if isinstance(metadata, dict) else "Milliseconds"
    configs: list[dict[str, Any]] = []
    entries: list[Entry] = []
    for i, result in enumerate(document["Results"]):
        try:
            configs.append({pair["Name"]: pair["Value"] for pair in result["Configuration"]})
            ok = str(result["Status"]).lower() == "ok"
            entries.append(entry_of(result["TotalDuration"] if ok else result["Status"], TIME, _unit_s(unit)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            expected = "Configuration (a list of Name and Value), Status and TotalDuration"
            raise bad_entry(path, f"result {i} of KTT", expected, error) from error
    return named_landscape(path, list(configs[0]) if configs else [], {}, configs, entries)


def what_else(text: str) -> str | None:
    """What a file is that cannot be replayed, for people, with what to do about it; None if it is not known."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")][:1]
    try:
        first = parse_json(lines[0]) if lines else None
    except json.JSONDecodeError:
        first = None
    if isinstance(first, dict):
        return _of_tvm(first)
    if isinstance(first, list) and len(first) == 2:
        if isinstance(first[0], int) and isinstance(first[1], list):
            return f"the tuning records of a MetaSchedule database. {_ONE_SEARCH}"
        if all(isinstance(part, str) for part in first):
            return f"the workloads of a MetaSchedule database, which hold no times. {_ONE_SEARCH}"
    if text.lstrip().startswith("<?xml"):
        return "XML; if KTT wrote it, save its results again as JSON"
    return None


_ONE_SEARCH = (
    "Such a file holds what one search happened to try, of one task or many; only a landscape, which lists every "
    "configuration of one space, can be replayed"
)


def _of_tvm(line: Mapping[str, Any]) -> str | None:
    if {"input", "config", "result"} <= line.keys():
        return f"a log of AutoTVM. {_ONE_SEARCH} (`load_history` of tuners.autotvm learns from such logs)"
    if {"i", "r", "v"} <= line.keys():
        return f"a line with {sorted(line)[:8]}, as in the logs of TVM's auto-scheduler or old AutoTVM. {_ONE_SEARCH}"
    if {"ConfigurationSpace", "General"} & line.keys():
        return "a description of a tuning problem (T1), which holds no measurements"
    return None
