"""Looks through a file of records for what is broken, unknown, or of another machine, and says what to do."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chameleon.exchange.autotvm import FIELD
from chameleon.exchange.sources import A_SOURCE
from chameleon.files import parse_json, read_bytes, read_json
from chameleon.jobs.ledger import SIDES, space_from_json
from chameleon.manifest import cpu_name, manifest, version_of
from chameleon.search import KnobSpace, Trial
from chameleon.store.files import is_written
from chameleon.store.lines import FORMAT
from chameleon.store.open import lines_at
from chameleon.store.place import Place
from chameleon.wording import same_target
from tuners.outcomes import environment_cause

ERROR, WARNING = "error", "warning"
FIELDS: Mapping[str, tuple[str, ...]] = {
    "tuning": ("chameleon", "kind", "target", "environment"),
    "environment": ("kind", "environment", "tvm", "cpu", "vector", "threads", "flags"),
    "task": ("kind", "task", "name", "anchor", "algorithms", "space", "knobs", "sketches", FIELD),
    "trial": (
        *(
            "task",
            "space",
            "environment",
            "config",
            "status",
            "seconds",
            "score",
            "message",
            "timings",
            "origin",
            "search_s",
        ),
        *("model", "elapsed_s", FIELD),
    ),
    "confirmation": ("kind", "task", "space", "environment", "again", "model", "elapsed_s"),
    "exchange": ("kind", "task", "space", "environment", "winner", "loser", "model", "elapsed_s"),
    "finished": ("kind", "model", "elapsed_s", "environment"),
    "retry": ("kind", "at", "environment"),
    "wrong": ("kind", "task", "space", "environment", "config"),
}
"""The kinds of lines and their fields (docs/records.md)."""
OPTIONAL = (
    *("anchor", "algorithms", "knobs", "sketches", "at"),
    *("tvm", "cpu", "vector", "threads", "flags"),
    *("seconds", "score", "message", "timings", "origin", "search_s", FIELD),
)
PLACE = ("cpu", "cores", "platform")
"""What of a manifest makes times incomparable, besides the version of TVM."""


@dataclass(frozen=True)
class Finding:
    """Something about a file.

    Attributes:
        level: `error` where no command can use the file as it is; `warning` otherwise.
        line: the first line that it is about; None: the whole file.
        times: how many lines have it.
    """

    level: str
    line: int | None
    what: str
    advice: str
    times: int = 1


@dataclass
class _Seen:
    """What the lines before have told."""

    target: str | None = None
    spaces: dict[str, dict[str, KnobSpace | None]] = field(default_factory=dict)  # by workload and name of the space
    trials: set[tuple[Any, ...]] = field(default_factory=set)
    environments: list[Mapping[str, Any]] = field(default_factory=list)


def check_records(place: Place, target: str | None = None) -> list[Finding]:
    """Look through a file of records or a database. What several lines have in common is one finding.

    Args:
        target: which to look through, where a database has several.

    Raises:
        UsageError: if it cannot be read, or the target has to be named.
    """
    seen = _Seen()
    if isinstance(place, Path):
        findings = [*_lines(place, seen), *_manifest(place)]
    else:
        lines = [json.dumps(line).encode() for line in lines_at(place, target)]
        findings = list(_whole(enumerate(lines, start=1), seen))
    findings += _environments(seen)
    found: dict[tuple[str, str, str], Finding] = {}
    for f in findings:
        key = (f.level, f.what, f.advice)
        first = found.get(key, f)
        found[key] = Finding(f.level, first.line, f.what, f.advice, first.times + (key in found))
    return list(found.values())


def _lines(path: Path, seen: _Seen) -> Iterator[Finding]:
    content = read_bytes(path, A_SOURCE)
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        yield Finding(WARNING, None, "it holds no line", "nothing was measured; `chameleon tune` begins anew")
    lines = whole.splitlines()
    yield from _whole(enumerate(lines, start=1), seen)
    if len(whole) < len(content) and not is_written(path) and not (lines and not _is_header(lines[0])):
        yield Finding(
            WARNING,
            len(lines) + 1,
            f"a torn last line ({len(content) - len(whole)} bytes)",
            "nothing to do: readers skip it, and `chameleon tune` cuts it off",
        )


def _whole(lines: Iterable[tuple[int, bytes]], seen: _Seen) -> Iterator[Finding]:
    for number, text in lines:
        if number == 1 and not _is_header(text):
            advice = "put it back (docs/records.md); what another tool wrote is for `chameleon records import`"
            yield Finding(ERROR, 1, f"no header of records in format {FORMAT}", advice)
            return
        yield from _line(number, text, seen)


def _line(number: int, text: bytes, seen: _Seen) -> Iterator[Finding]:
    line = _object(text)
    if line is None:
        yield Finding(ERROR, number, "a line that is no JSON object", f"remove line {number}: sed -i {number}d FILE")
        return
    kind = str(line.get("kind", "trial"))
    if kind not in FIELDS:
        yield Finding(ERROR, number, f"a line of the unknown kind {kind!r}", "use the version that wrote it")
        return
    if more := sorted(line.keys() - set(FIELDS[kind])):
        what = f"fields of a {kind} line that this version does not know: {', '.join(more)}"
        yield Finding(WARNING, number, what, "they are ignored; merge and prune keep them")
    if missing := sorted(set(FIELDS[kind]) - {"kind", *OPTIONAL, *_optional(kind)} - line.keys()):
        what = f"a {kind} line without {', '.join(missing)}"
        yield Finding(ERROR, number, what, f"remove line {number}: sed -i {number}d FILE")
        return
    try:
        yield from _content(number, kind, line, seen)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"a {kind} line with a wrong value ({error!r:.120})"
        yield Finding(ERROR, number, what, f"remove line {number}: sed -i {number}d FILE")


def _optional(kind: str) -> tuple[str, ...]:
    """Fields that lines of earlier versions do not have."""
    return () if kind == "task" else ("space",) if kind == "environment" else ("space", "environment")


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        line = parse_json(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _is_header(text: bytes) -> bool:
    line = _object(text) or {}
    return line.get("kind") == "tuning" and line.get("chameleon") == FORMAT


def _content(number: int, kind: str, line: Mapping[str, Any], seen: _Seen) -> Iterator[Finding]:
    if kind == "tuning":
        seen.target = seen.target or str(line["target"])
        if not same_target(seen.target, str(line["target"])):
            yield Finding(ERROR, number, "records of a second target", "split the file here; one target a file")
    elif kind == "environment":
        seen.environments.append(line)
    elif kind == "task":
        yield from _task(number, line, seen)
    elif kind in ("trial", "confirmation", "exchange", "wrong"):
        if line["task"] not in seen.spaces:
            what = f"a {kind} line of the task {line['task']!r}, which no line before introduces"
            level = WARNING if kind == "wrong" else ERROR
            yield Finding(level, number, what, "put its task line before it, or remove the line")
            return
        spaces = seen.spaces[line["task"]]
        name = line.get("space", next(iter(spaces)))
        if name not in spaces or ("space" not in line and len(spaces) > 1):
            what = f"a {kind} line of the task {line['task']!r} that does not tell which of its spaces it is about"
            yield Finding(
                WARNING if kind == "wrong" else ERROR, number, what, "keep the lines of one space, or remove it"
            )
            return
        space = spaces[name]
        configs = _configs(kind, line)
        if space is not None and not all(_fits(config, space) for config in configs):
            what = f"a {kind} line whose digits do not fit the knobs of its task"
            yield Finding(ERROR, number, what, f"remove line {number}: sed -i {number}d FILE")
        if kind == "confirmation":
            _check_numbers(s for a in line["again"] for s in (*a["seconds"], *a.get("cold", ())))
        elif kind == "exchange":
            _check_numbers(s for side in SIDES for s in line[side]["network_s"])
        elif kind == "trial":
            keys = (line.get("environment"), line["task"], name)
            yield from _trial(number, Trial.from_json(line), keys, seen)
    if "elapsed_s" in line:
        float(line["elapsed_s"])


def _check_numbers(values: Iterable[Any]) -> None:
    """Raise a TypeError or a ValueError if one of the values is no number."""
    for value in values:
        float(value)


def _configs(kind: str, line: Mapping[str, Any]) -> list[Any]:
    """The configurations that a line speaks of."""
    if kind == "confirmation":
        return [a["config"] for a in line["again"]]
    return [line[side]["config"] for side in SIDES] if kind == "exchange" else [line["config"]]


def _task(number: int, line: Mapping[str, Any], seen: _Seen) -> Iterator[Finding]:
    space: KnobSpace | None = space_from_json(line) if {"knobs", "sketches"} <= line.keys() else None
    seen.spaces.setdefault(line["task"], {}).setdefault(line["space"], space)
    if space is not None and space.fingerprint() != line["space"]:
        what = f"the knobs of task {line['name']!r} do not have the fingerprint that stands with them"
        yield Finding(WARNING, number, what, "the line was changed by hand; `chameleon tune` will refuse its trials")


def _trial(number: int, trial: Trial, keys: tuple[Any, ...], seen: _Seen) -> Iterator[Finding]:
    if (*keys, trial.config) in seen.trials:
        what = "a configuration that was measured before"
        yield Finding(WARNING, number, what, "nothing to do: the first success counts; merge leaves the others out")
    seen.trials.add((*keys, trial.config))
    if trial.seconds is None and (cause := environment_cause(trial.message)):
        what = f"a failure that the environment is to blame for: {cause[:80]}"
        yield Finding(WARNING, number, what, "nothing to do: it is left out when the file is read")


def _fits(config: Collection[int], space: KnobSpace) -> bool:
    cards = space.cardinalities
    return len(config) == len(cards) and all(0 <= int(d) < c for d, c in zip(config, cards, strict=True))


def _environments(seen: _Seen) -> Iterator[Finding]:
    """Environments on record that are not that of this machine, as far as their lines tell."""
    here = {"cpu": cpu_name(), "tvm": version_of("apache-tvm")}
    for line in seen.environments:
        other = [
            f"{name} {line[name]}, here {ours}" for name, ours in here.items() if line.get(name) not in (None, ours)
        ]
        if other:
            what = f"trials of another environment ({line['environment']}): {'; '.join(other)}"
            advice = "nothing to do: here they are history to learn from, and the best of them are measured again"
            yield Finding(WARNING, None, what, advice)


def _manifest(path: Path) -> Iterator[Finding]:
    """What the manifest beside the records says of the machine and of TVM, where this is another."""
    if not (known := read_json(path.parent / "manifest.json")):
        return
    here = manifest({})
    facts = [(name, known.get(name), here[name]) for name in PLACE]
    packages = known.get("packages") or {}
    facts.append(("TVM", packages.get("apache-tvm"), here["packages"]["apache-tvm"]))
    for name, there, ours in facts:
        if there is not None and there != ours:
            what = f"measured in another environment: {name} {there}, here {ours}"
            advice = "learn from them (`chameleon tune --learn-from`); measure the best again before you rely on it"
            yield Finding(WARNING, None, what, advice)
