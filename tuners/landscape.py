"""Recorded landscapes: every configuration of a space with the time that it took. They stand in for the hardware.

Four formats are read, plain or gzip. They are told apart by what is in the file, never by its name:

- T4 (https://github.com/odgaard/TuningSchema, `results-schema.json`): a JSON object with `results`;
- the cache files of Kernel Tuner: a JSON object with `tune_params_keys` and `cache`;
- our own JSON lines: first a header, then one trial a line; its digits are positions in the header's values::

    {"chameleon": 1, "kind": "landscape", "name": "conv", "knobs": [{"name": "x", "kind": "option", "values": [1, 2]}]}
    {"config": [1], "status": "ok", "seconds": 1e-3, "message": ""}

- JSON lines of AutoTVM config entities:
  `{"knobs": digits, "entity": [[name, kind, value]...], "mean": seconds, "error"}`.

One rule holds for all. A configuration that is not listed breaks a constraint that is known beforehand: it is outside
of the space, and free. A configuration that is listed as failed had to be tried to find this out: it costs a
measurement, whatever the recorded reason.
"""

from __future__ import annotations

import gzip
import json
import math
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chameleon.errors import ChameleonError
from chameleon.search.space import Digits, Knob, KnobSpace, location, option, split_of
from chameleon.search.trial import Status, Trial

FORMAT_VERSION = 1
_UNIT_S = {"s": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "miliseconds": 1e-3, "us": 1e-6, "ns": 1e-9}
_KERNEL_TUNER_ERROR_MS = 1e20  # what Kernel Tuner before 0.4 recorded as the time of a failure
_EXTENSIONS = (".gz", ".jsonl", ".json", ".t4")
_FORMATS = "T4 JSON, a Kernel Tuner cache or landscape JSON lines, plain or gzip"


class LandscapeError(ChameleonError):
    """A file that cannot be replayed. The message says what is wrong with it and what to do."""


class LandscapeWarning(UserWarning):
    """Something in a recorded landscape was left out."""


class Entry(NamedTuple):
    """What a landscape holds for one configuration; `seconds` is NaN unless `status` is `OK`."""

    seconds: float
    status: Status
    message: str = ""


@dataclass(frozen=True)
class Landscape:
    """A space with the recorded outcome of each of its configurations.

    Attributes:
        name: the file's name without its extensions.
        space: its only configurations are the `listed` ones `[m, n_knobs]`, in lexicographic order of their digits.
        seconds: time of each listed configuration, `[m]`, NaN where it failed.
        statuses: how each listed configuration ended, `m` of them.
        messages: why each listed configuration failed; empty where it did not.
        configs: the listed configurations, `[m, n_knobs]`.
    """

    name: str
    space: KnobSpace
    seconds: NDArray[np.float64] = field(repr=False)
    statuses: tuple[Status, ...] = field(repr=False)
    messages: tuple[str, ...] = field(repr=False)
    configs: Digits = field(init=False, repr=False, compare=False)
    _rows: Mapping[bytes, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        listed = self.space.listed
        if listed is None:
            raise ValueError("a landscape needs a space with listed configurations, got one without: pass listed=...")
        if not len(listed) == len(self.seconds) == len(self.statuses) == len(self.messages):
            raise ValueError(
                f"expected a time, a status and a message for each of the {len(listed)} listed configurations, got "
                f"{len(self.seconds)} times, {len(self.statuses)} statuses and {len(self.messages)} messages"
            )
        object.__setattr__(self, "configs", listed)
        object.__setattr__(self, "_rows", {key: row for row, key in enumerate(self.space.keys(listed))})

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def best_seconds(self) -> float:
        """The best time on record."""
        return float(np.nanmin(self.seconds))

    def measure(self, configs: Digits) -> list[Trial]:
        """Look up the configurations `[n, n_knobs]`; an unlisted one comes back as `INVALID`, which is free."""
        return [self._trial(config) for config in np.asarray(configs, dtype=np.int64)]

    def _trial(self, config: Digits) -> Trial:
        row = self._rows.get(self.space.keys(config[None])[0])
        if row is None:
            return Trial(tuple(config), Status.INVALID, message="not in the landscape: it breaks a known constraint")
        ok = self.statuses[row] is Status.OK
        return Trial(tuple(config), self.statuses[row], float(self.seconds[row]) if ok else None, self.messages[row])


def load_landscape(path: Path | str) -> Landscape:
    """Read a recorded landscape of any of the formats named in this module's docstring.

    Raises:
        LandscapeError: if the file cannot be read, is none of the formats, is broken, or holds no success.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[: error.pos].count("\n") <= 1:
            return _from_lines(path, text)
        document = _close_kernel_tuner_cache(path, text, error)
    if isinstance(document, dict) and "results" in document:
        return _from_t4(path, document)
    if isinstance(document, dict) and {"tune_params_keys", "cache"} <= document.keys():
        return _from_kernel_tuner(path, document)
    if isinstance(document, dict) and ("chameleon" in document or "kind" in document or "entity" in document):
        return _from_lines(path, text)
    found = f"an object with {sorted(document)[:8]}" if isinstance(document, dict) else f"a {type(document).__name__}"
    raise LandscapeError(f"{path}: not a recorded landscape: expected {_FORMATS}, got JSON holding {found}")


def save_landscape(landscape: Landscape, path: Path | str) -> None:
    """Write a landscape as our own JSON lines, compressed where the name ends in `.gz`."""
    trials = landscape.measure(landscape.configs)
    write_lines([landscape_header(landscape.name, landscape.space), *(trial.to_json() for trial in trials)], path)


def landscape_header(name: str, space: KnobSpace) -> dict[str, Any]:
    """The first line of our own format. A program that records may add fields; they are ignored when it is read."""
    knobs = [{"name": k.name, "kind": k.kind, "values": k.values} for k in space.knobs]
    return {"chameleon": FORMAT_VERSION, "kind": "landscape", "name": name, "knobs": knobs}


def write_lines(lines: Iterable[Mapping[str, Any]], path: Path | str) -> None:
    """Write JSON lines, compressed where the name ends in `.gz`, the same bytes every time."""
    path = Path(path)
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, plain or gzip, with all their fields.

    If the last line is cut short, it is skipped with a warning.

    Raises:
        LandscapeError: if the file cannot be read or a line is no JSON object.
    """
    return _parse_lines(Path(path), _read_text(Path(path)))


def landscape_name(path: Path) -> str:
    """The file's name without its extensions (`conv.t4.json.gz` is `conv`; other dots belong to the name)."""
    name = path.name
    while any(name.endswith(e) and name != e for e in _EXTENSIONS):
        name = name[: name.rindex(".")]
    return name


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise LandscapeError(f"{path}: broken gzip file ({error}); get it again") from error
        raise LandscapeError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (EOFError, zlib.error) as error:
        raise LandscapeError(f"{path}: gzip file cut short or damaged ({error}); get it again") from error
    except UnicodeDecodeError as error:
        raise LandscapeError(f"{path}: not a recorded landscape: expected {_FORMATS}, got binary data") from error


def _close_kernel_tuner_cache(path: Path, text: str, error: json.JSONDecodeError) -> Any:
    """Reads a cache of Kernel Tuner that lacks its closing braces, as a run that was stopped leaves it."""
    try:
        document = json.loads(text.rstrip().removesuffix(",") + "}}")
    except json.JSONDecodeError:
        what = f"{error.msg} in line {error.lineno}" if text.strip() else "the file is empty"
        raise LandscapeError(
            f"{path}: not a recorded landscape: expected {_FORMATS}, got no valid JSON: {what}"
        ) from error
    warnings.warn(
        f"{path}: the cache was never closed; using the {_count(document)} entries in it", LandscapeWarning, 3
    )
    return document


def _count(document: Any) -> int:
    return len(document["cache"]) if isinstance(document, dict) and isinstance(document.get("cache"), dict) else 0


def _from_t4(path: Path, document: Mapping[str, Any]) -> Landscape:
    configs: list[dict[str, Any]] = []
    entries: list[Entry] = []
    metadata = document.get("metadata")
    unit = metadata.get("timeunit", "ms") if isinstance(metadata, dict) else "ms"
    for i, result in enumerate(document["results"]):
        try:
            configs.append(dict(result["configuration"]))
            entries.append(_t4_entry(result, unit))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _bad_entry(
                path, f"result {i}", "configuration, invalidity and a measurement called time", error
            ) from error
    return _landscape(path, list(configs[0]) if configs else [], {}, configs, entries)


def _t4_entry(result: Mapping[str, Any], unit: str) -> Entry:
    """The entry for one result of T4.

    A result with the invalidity `constraints` counts as a failed build: it is listed, so it costs a measurement.
    """
    verdict = result.get("invalidity") or "correct"
    time = next((m for m in result.get("measurements", ()) if m["name"] == "time"), None)
    if verdict != "correct":
        statuses = {"timeout": Status.TIMEOUT, "compile": Status.BUILD_ERROR, "constraints": Status.BUILD_ERROR}
        return Entry(math.nan, statuses.get(verdict, Status.RUN_ERROR), str(verdict))
    if time is None:
        raise ValueError("no measurement called 'time'")
    unit = time.get("unit") or unit
    if unit not in _UNIT_S:
        raise ValueError(f"unknown unit of time {unit!r}, known: {', '.join(_UNIT_S)}")
    return _entry(time["value"], _UNIT_S[unit])


def _from_kernel_tuner(path: Path, document: Mapping[str, Any]) -> Landscape:
    names = list(document["tune_params_keys"])
    configs: list[dict[str, Any]] = []
    entries: list[Entry] = []
    for key, record in document["cache"].items():
        try:
            configs.append({name: record[name] for name in names})
            entries.append(_entry(record["time"], _UNIT_S["ms"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_entry(path, f"entry {key!r}", f"a value for each of {names} and a time", error) from error
    return _landscape(path, names, document.get("tune_params") or {}, configs, entries)


def _entry(time: Any, unit_s: float) -> Entry:
    """The entry for a time, or for Kernel Tuner's name of a failure (a string), such as `CompilationFailedConfig`."""
    if isinstance(time, str):
        build = "compil" in time.lower() or "invalid" in time.lower()
        status = Status.TIMEOUT if "timeout" in time.lower() else Status.BUILD_ERROR if build else Status.RUN_ERROR
        return Entry(math.nan, status, time)
    seconds = float(time) * unit_s
    if not (math.isfinite(seconds) and seconds > 0) or time == _KERNEL_TUNER_ERROR_MS:
        return Entry(math.nan, Status.RUN_ERROR, f"no valid time on record ({time})")
    return Entry(seconds, Status.OK)


def _from_lines(path: Path, text: str) -> Landscape:
    lines = _parse_lines(path, text)
    if lines and "entity" in lines[0]:
        return _from_entities(path, lines)
    header = lines[0] if lines else {}
    if header.get("kind") != "landscape":
        tuning = header.get("kind") in ("tuning", "task")
        what = "the records of a tuning run, which hold samples" if tuning else f"a line with {sorted(header)[:8]}"
        raise LandscapeError(
            f"{path}: not a recorded landscape: expected {_FORMATS}, got {what}; only a landscape, "
            "which lists every configuration of one space, can be replayed"
        )
    if header.get("chameleon") != FORMAT_VERSION:
        raise LandscapeError(f"{path}: format version {FORMAT_VERSION} expected, got {header.get('chameleon')!r}")
    makers = {"split": split_of, "option": option, "location": location}
    try:
        knobs = [makers[k["kind"]](k["name"], _frozen(k["values"])) for k in header["knobs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _bad_entry(
            path, "the header", "knobs with name, kind (split, option, location) and values", error
        ) from error
    trials = [_trial(path, number, line, knobs) for number, line in enumerate(lines[1:], start=2)]
    entries = [Entry(t.seconds if t.seconds is not None else math.nan, t.status, t.message) for t in trials]
    return _assemble(path, knobs, [t.config for t in trials], entries)


def _trial(path: Path, number: int, line: Mapping[str, Any], knobs: Sequence[Knob]) -> Trial:
    try:
        trial = Trial.from_json(line)
    except ValueError as error:
        raise LandscapeError(f"{path}: line {number}: {error}") from error
    if len(trial.config) != len(knobs) or not all(
        0 <= d < k.cardinality for d, k in zip(trial.config, knobs, strict=True)
    ):
        raise LandscapeError(
            f"{path}: line {number}: digits {trial.config} do not fit the {len(knobs)} knobs of the header"
        )
    return trial


def _parse_lines(path: Path, text: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that is cut short, as a killed writer leaves it, is skipped."""
    raw = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    lines = []
    for number, line in raw:
        try:
            lines.append(json.loads(line))
            if not isinstance(lines[-1], dict):
                raise LandscapeError(
                    f"{path}: line {number}: a JSON object expected, got a {type(lines[-1]).__name__}"
                )
        except json.JSONDecodeError as error:
            if number != raw[-1][0]:
                raise LandscapeError(
                    f"{path}: line {number} is not valid JSON ({error.msg}); repair or delete it"
                ) from error
            warnings.warn(f"{path}: the last line is cut short and was skipped", LandscapeWarning, 4)
    return lines


def _from_entities(path: Path, lines: Sequence[Mapping[str, Any]]) -> Landscape:
    """Reads AutoTVM entities. A split lacks its outermost factor (-1), which follows from the loop's extent."""
    configs: list[list[int]] = []
    entries: list[Entry] = []
    values: list[dict[int, Any]] = [{} for _ in lines[0]["entity"]]
    for number, line in enumerate(lines, start=1):
        try:
            for seen, digit, (_, _, value) in zip(values, line["knobs"], line["entity"], strict=True):
                seen[int(digit)] = _frozen(value)
            failed = line.get("error")
            entries.append(
                Entry(math.nan, Status.RUN_ERROR, str(failed)) if failed else _entry(line["mean"], _UNIT_S["s"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_entry(path, f"line {number}", "knobs, entity and mean (seconds)", error) from error
        configs.append([int(d) for d in line["knobs"]])
    digits = [{old: new for new, old in enumerate(sorted(seen))} for seen in values]
    knobs = [_entity_knob(name, kind, [seen[d] for d in sorted(seen)])
             for (name, kind, _), seen in zip(lines[0]["entity"], values, strict=True)]  # fmt: skip
    return _assemble(path, knobs, [[d[x] for d, x in zip(digits, c, strict=True)] for c in configs], entries)


def _entity_knob(name: str, kind: str, values: Sequence[Any]) -> Knob:
    if kind != "sp":
        return option(name, values)
    inner = [math.prod(x for x in v if x > 0) for v in values]
    extent = math.lcm(*inner)
    return split_of(name, [[extent // p if x < 0 else x for x in v] for v, p in zip(values, inner, strict=True)])


def _landscape(
    path: Path,
    names: Sequence[str],
    order: Mapping[str, Any],
    configs: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
) -> Landscape:
    """A landscape from named values: each name becomes an option knob with the values that occur, numbers rising."""
    knobs, columns = [], []
    for name in names:
        try:
            column = [_frozen(config[name]) for config in configs]
        except KeyError as error:
            raise LandscapeError(
                f"{path}: every configuration needs a value for each of {list(names)}; one lacks {error}"
            ) from error
        values = _ordered([*_frozen(order.get(name) or ()), *column], set(column))
        knobs.append(option(name, values))
        columns.append([{v: i for i, v in enumerate(values)}[x] for x in column])
    return _assemble(path, knobs, [list(row) for row in zip(*columns, strict=True)], entries)


def _ordered(recorded: Iterable[Any], occurring: set[Any]) -> list[Any]:
    values = [v for v in dict.fromkeys(recorded) if v in occurring]
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return sorted(values) if numeric else values


def _assemble(
    path: Path, knobs: Sequence[Knob], configs: Sequence[Sequence[int]], entries: Sequence[Entry]
) -> Landscape:
    """Makes the landscape, sorted by digits, so that a file's format and order change nothing.

    Of repeated configurations the first is kept.
    """
    if not any(e.status is Status.OK for e in entries):
        raise LandscapeError(f"{path}: nothing to find: none of its {len(entries)} configurations has a valid time")
    digits = np.array(configs, dtype=np.int64).reshape(len(configs), len(knobs))
    listed, first = np.unique(digits, axis=0, return_index=True)
    if len(listed) < len(digits):
        repeats = len(digits) - len(listed)
        warnings.warn(f"{path}: {repeats} repeated configurations; the first of each is used", LandscapeWarning, 4)
    seconds = np.array([entries[i].seconds for i in first])
    statuses = tuple(entries[i].status for i in first)
    return Landscape(
        landscape_name(path),
        KnobSpace(knobs, listed=listed),
        seconds,
        statuses,
        tuple(entries[i].message for i in first),
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def _bad_entry(path: Path, where: str, expected: str, error: Exception) -> LandscapeError:
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return LandscapeError(f"{path}: {where}: expected {expected}; {what}")
