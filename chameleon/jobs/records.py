"""The records of tuning: a file with one JSON line for each trial, written at once, and read back to resume.

The first line of the file names the target. A `task` line introduces each workload and the knobs of its space. Every
other line is a trial of one task. The format is documented in docs/records.md.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chameleon.errors import ChameleonError
from chameleon.search import KnobSpace, Trial

FORMAT = 1
logger = logging.getLogger("chameleon")


class RecordsError(ChameleonError):
    """A records file cannot be used; the message says why and what to do."""


@dataclass
class TaskRecords:
    """What is known of one workload: the fingerprint of its space and `(trial, model)` in the order of measuring."""

    name: str
    space: str
    trials: list[tuple[Trial, str]] = field(default_factory=list)


class Records:
    """An append-only file of trials with a single writer.

    An incomplete last line (the process was killed, the disk was full) is cut off when the file is opened.

    Args:
        path: the file; it is created where it does not exist.
        target: the target that every trial in it was measured on.

    Raises:
        RecordsError: if the file holds something else, belongs to another target, or another process writes to it.
        OSError: if the file cannot be created or read.
    """

    def __init__(self, path: Path, target: str) -> None:
        self.path = path
        self.tasks: dict[str, TaskRecords] = {}
        self.elapsed_s: dict[str, float] = {}
        # by task, the configurations whose schedules computed wrong values in their network
        self.wrong: dict[str, set[tuple[int, ...]]] = {}
        self._file = path.open("a+b")
        try:
            self._lock()
            lines = list(self._lines())
            self._check_header(lines, target)
            for number, line in lines[1:]:
                self._load(number, line)
        except BaseException:
            self._file.close()
            raise
        if not lines:
            self._write({"chameleon": FORMAT, "kind": "tuning", "target": target})

    def add_task(self, key: str, name: str, space: KnobSpace) -> list[Trial]:
        """Introduce a workload and return its trials from earlier runs.

        Raises:
            RecordsError: if the file knows the workload with another space of knobs.
        """
        known = self.tasks.get(key)
        if known is None:
            self.tasks[key] = TaskRecords(name, space.fingerprint())
            self._write({"kind": "task", "task": key, "name": name, **space_to_json(space)})
            return []
        if known.space != space.fingerprint():
            raise RecordsError(
                f"{self.path}: the records of task {name!r} were made with other knobs (space {known.space}, now "
                f"{space.fingerprint()}), perhaps by another version of TVM; give another --out"
            )
        return [trial for trial, _ in known.trials]

    def append(self, key: str, trial: Trial, *, model: str, elapsed_s: float) -> None:
        """Write one trial to disk. `elapsed_s` is the time that tuning `model` has taken so far."""
        self.tasks[key].trials.append((trial, model))
        self.elapsed_s[model] = max(elapsed_s, self.elapsed_s.get(model, 0.0))
        self._write({"task": key, **trial.to_json(), "model": model, "elapsed_s": round(elapsed_s, 3)})

    def mark_wrong(self, key: str, config: tuple[int, ...]) -> None:
        """Write to disk that the schedule of a configuration computes wrong values, so that it is not used again."""
        self.wrong.setdefault(key, set()).add(config)
        self._write({"kind": "wrong", "task": key, "config": list(config)})

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecordsError(
                f"{self.path} is being written by another process; wait for it or give another --out"
            ) from None

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """All complete lines with their numbers; an incomplete last line is cut off the file."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            logger.warning("%s: cut off a torn last line (%d bytes)", self.path, len(content) - len(whole))
            self._file.truncate(len(whole))
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise RecordsError(
                    f"{self.path}:{number}: expected a JSON object, got {text[:80]!r}; remove the line or the file"
                )
            yield number, line

    def _check_header(self, lines: list[tuple[int, dict[str, Any]]], target: str) -> None:
        if not lines:
            return
        header = lines[0][1]
        if header.get("chameleon") != FORMAT or header.get("kind") != "tuning":
            raise RecordsError(
                f"{self.path}:1: expected the header of tuning records (format {FORMAT}), got {str(header)[:120]}"
            )
        if not same_target(str(header.get("target")), target):
            raise RecordsError(
                f"{self.path} holds records of target {header.get('target')}, expected {target}; "
                "give another --out or that --target"
            )

    def _load(self, number: int, line: dict[str, Any]) -> None:
        try:
            if line.get("kind") == "task":
                self.tasks[line["task"]] = TaskRecords(line["name"], line["space"])
                return
            if line.get("kind") == "wrong":
                self.wrong.setdefault(line["task"], set()).add(tuple(int(d) for d in line["config"]))
                return
            self.tasks[line["task"]].trials.append((Trial.from_json(line), line["model"]))
            self.elapsed_s[line["model"]] = max(self.elapsed_s.get(line["model"], 0.0), float(line["elapsed_s"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RecordsError(
                f"{self.path}:{number}: not a line of tuning records ({error!r}); remove the line or the file"
            ) from error

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def same_target(one: str, other: str) -> bool:
    """Whether two texts are the same target: TVM writes the options of one target in any order."""
    try:
        return one == other or json.loads(one) == json.loads(other)
    except ValueError:  # the older form, such as `llvm -mcpu=znver4`
        return False


def space_to_json(space: KnobSpace) -> dict[str, Any]:
    """The knobs of a space, for a `task` line."""
    return {
        "space": space.fingerprint(),
        "knobs": [{"name": k.name, "kind": k.kind, "values": [_plain(v) for v in k.values]} for k in space.knobs],
        "sketches": [[int(i) for i in row.nonzero()[0]] for row in space.active],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value if isinstance(value, (int, float, bool)) else str(value)
