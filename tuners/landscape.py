"""Recorded landscapes: every configuration of a space with the time that it took. They stand in for the hardware.

Five formats are read, plain or gzip. They are told apart by what is in the file, never by its name:

- T4 (https://github.com/odgaard/TuningSchema, `results-schema.json`): a JSON object with `results`;
- the cache files of Kernel Tuner: a JSON object with `tune_params_keys` and `cache`, closed or not;
- the results of KTT as JSON: an object with `Results`;
- our own JSON lines: first a header, then one trial a line; its digits are positions in the header's values::

    {"chameleon": 1, "kind": "landscape", "name": "conv", "knobs": [{"name": "x", "kind": "option", "values": [1, 2]}]}
    {"config": [1], "status": "ok", "seconds": 1e-3, "message": ""}

  where something else than time was measured, the header says `"objective": "GFLOP/s", "higher_is_better": true`, and
  the trials have a `score` (its negative where less is better);

- JSON lines of AutoTVM config entities:
  `{"knobs": digits, "entity": [[name, kind, value]...], "mean": seconds, "error"}`.

Kernel Tuner and T4 may name another objective than time, such as energy or GFLOP/s, or the score of a search.

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
from pathlib import Path
from typing import Any

from chameleon.files import parse_json
from chameleon.search.space import Knob, KnobSpace, location, option, split_of
from chameleon.search.trial import Status, Trial
from tuners.landscape_formats import entry_of, from_kernel_tuner, from_ktt, from_t4, open_cache, what_else
from tuners.landscape_table import (
    TIME,
    Entry,
    Landscape,
    LandscapeError,
    LandscapeWarning,
    Objective,
    assemble,
    bad_entry,
    frozen,
    landscape_name,
)

__all__ = [
    "TIME",
    "Landscape",
    "LandscapeError",
    "LandscapeWarning",
    "Objective",
    "landscape_header",
    "landscape_name",
    "load_landscape",
    "read_lines",
    "save_landscape",
    "write_lines",
]

FORMAT_VERSION = 1
LARGEST_BYTES = 1 << 30
"""Of what a file holds, unpacked: a small file may unpack to more than any machine has."""
FORMATS = "T4 JSON, a Kernel Tuner cache, KTT's JSON or landscape JSON lines, plain or gzip"


def load_landscape(path: Path | str) -> Landscape:
    """Read a recorded landscape of any of the formats named in this module's docstring.

    Raises:
        LandscapeError: if the file cannot be read, is none of the formats, is broken, or holds no success.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[: error.pos].count("\n") <= 1 and text.lstrip().startswith("{"):
            return _from_lines(path, text)
        document = open_cache(path, text)
        if document is None:
            what = (
                f"no valid JSON: {error.msg} in line {error.lineno}" if text.strip() else "nothing: the file is empty"
            )
            raise _not_a_landscape(path, what_else(text) or what) from error
    return _from_document(path, text, document)


def _from_document(path: Path, text: str, document: Any) -> Landscape:
    """The landscape in a file that is one JSON value."""
    if isinstance(document, dict):
        if "results" in document:
            return from_t4(path, document)
        if isinstance(document.get("Results"), list):
            return from_ktt(path, document)
        if {"tune_params_keys", "cache"} <= document.keys():
            return from_kernel_tuner(path, document)
        if "chameleon" in document or "kind" in document or "entity" in document:
            return _from_lines(path, text)
    found = f"an object with {sorted(document)[:8]}" if isinstance(document, dict) else f"a {type(document).__name__}"
    raise _not_a_landscape(path, what_else(json.dumps(document)) or f"JSON holding {found}")


def _not_a_landscape(path: Path, what: str) -> LandscapeError:
    return LandscapeError(f"{path}: not a recorded landscape: expected {FORMATS}, got {what}")


def save_landscape(landscape: Landscape, path: Path | str) -> None:
    """Write a landscape as our own JSON lines, compressed where the name ends in `.gz`."""
    trials = landscape.measure(landscape.configs)
    header = landscape_header(landscape.name, landscape.space)
    if (objective := landscape.objective) != TIME:
        header |= {"objective": objective.name, "higher_is_better": objective.higher_is_better}
    write_lines([header, *(trial.to_json() for trial in trials)], path)


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


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            data = stream.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise LandscapeError(f"{path}: holds more than {LARGEST_BYTES >> 20} MB; no landscape is that large")
        return data.decode()
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise LandscapeError(f"{path}: broken gzip file ({error}); get it again") from error
        raise LandscapeError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (EOFError, zlib.error) as error:
        raise LandscapeError(f"{path}: gzip file cut short or damaged ({error}); get it again") from error
    except UnicodeDecodeError as error:
        raise LandscapeError(f"{path}: not a recorded landscape: expected {FORMATS}, got binary data") from error


def _from_lines(path: Path, text: str) -> Landscape:
    lines = _parse_lines(path, text)
    if lines and "entity" in lines[0]:
        return _from_entities(path, lines)
    header = lines[0] if lines else {}
    if header.get("kind") != "landscape":
        tuning = header.get("kind") in ("tuning", "task")
        what = (
            "the records of a tuning run (`chameleon records export --to t4` makes landscapes of them)"
            if tuning
            else f"a line with {sorted(header)[:8]}"
        )
        raise _not_a_landscape(
            path,
            what_else(text)
            or f"{what}; only a landscape, which lists every configuration of one space, can be replayed",
        )
    if header.get("chameleon") != FORMAT_VERSION:
        raise LandscapeError(f"{path}: format version {FORMAT_VERSION} expected, got {header.get('chameleon')!r}")
    makers = {"split": split_of, "option": option, "location": location}
    try:
        knobs = [makers[k["kind"]](k["name"], frozen(k["values"])) for k in header["knobs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise bad_entry(
            path, "the header", "knobs with name, kind (split, option, location) and values", error
        ) from error
    trials = [_trial(path, number, line, knobs) for number, line in enumerate(lines[1:], start=2)]
    objective = Objective.of(header.get("objective", "time"), header.get("higher_is_better"))
    entries = [Entry(objective.value(t), t.status, t.message) for t in trials]
    return assemble(path, knobs, [t.config for t in trials], entries, objective)


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
            lines.append(parse_json(line))
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
                seen[int(digit)] = frozen(value)
            failed = line.get("error")
            entries.append(Entry(math.nan, Status.RUN_ERROR, str(failed)) if failed else entry_of(line["mean"]))
        except (KeyError, TypeError, ValueError) as error:
            raise bad_entry(path, f"line {number}", "knobs, entity and mean (seconds)", error) from error
        configs.append([int(d) for d in line["knobs"]])
    digits = [{old: new for new, old in enumerate(sorted(seen))} for seen in values]
    knobs = [_entity_knob(name, kind, [seen[d] for d in sorted(seen)])
             for (name, kind, _), seen in zip(lines[0]["entity"], values, strict=True)]  # fmt: skip
    return assemble(path, knobs, [[d[x] for d, x in zip(digits, c, strict=True)] for c in configs], entries)


def _entity_knob(name: str, kind: str, values: Sequence[Any]) -> Knob:
    if kind != "sp":
        return option(name, values)
    inner = [math.prod(x for x in v if x > 0) for v in values]
    extent = math.lcm(*inner)
    return split_of(name, [[extent // p if x < 0 else x for x in v] for v, p in zip(values, inner, strict=True)])
