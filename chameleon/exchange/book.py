"""What files of records hold as lines: read, put together, cut down to the best, and written again.

The lines themselves are kept as they were written, fields of other versions included. Which of them count is the rule
of `chameleon.jobs.records`: a configuration counts once, the first success before any failure.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chameleon.errors import UsageError
from chameleon.jobs.measured import Measured, usable_events
from chameleon.jobs.records import Config, Records, RecordsError, tuning_header
from chameleon.wording import same_target

Line = dict[str, Any]


class Book:
    """The lines that count of one or several files of records.

    Args:
        lines: of records, header first, such as `lines_of` reads them.
        path: where they come from, for messages.

    Raises:
        RecordsError: if they are no records.
    """

    def __init__(self, path: Path, lines: Sequence[Line]) -> None:
        self.path = path
        self.target = Records.of_lines(path, lines).target
        self._tasks: dict[str, Line] = {}
        self._events: dict[Any, Line] = {}  # trials by task and configuration, other lines by their text
        self._ends: dict[str, Line] = {}  # the line of the end of each model
        for line in lines[1:]:
            self._add(line)

    def merge(self, other: Book) -> None:
        """Take what another book holds and this one does not. Doing it twice changes nothing.

        Raises:
            RecordsError: if it is of another target, or has a task with other knobs.
        """
        if not same_target(self.target, other.target):
            raise RecordsError(
                f"{other.path} holds records of target {other.target}, {self.path} of {self.target}; "
                "merge records of one target only"
            )
        for key, line in other._tasks.items():
            known = self._tasks.get(key)
            if known is not None and known["space"] != line["space"]:
                raise RecordsError(
                    f"{other.path}: the task {line['name']!r} has other knobs than in {self.path} (space "
                    f"{line['space']}, there {known['space']}); these files cannot be put together"
                )
        for line in other.lines[1:]:
            self._add(line)

    @property
    def lines(self) -> list[Line]:
        """Header, tasks, events in their order, and which models' tuning has ended."""
        last: dict[str, float] = {}
        for line in self._events.values():
            if "status" in line:
                last[line["model"]] = max(float(line["elapsed_s"]), last.get(line["model"], 0.0))
        ended = [end for model, end in self._ends.items() if float(end["elapsed_s"]) >= last.get(model, 0.0)]
        return [tuning_header(self.target), *self._tasks.values(), *self._events.values(), *ended]

    def records(self) -> Records:
        """The same as records that can be read."""
        return Records.of_lines(self.path, self.lines)

    def prune(self, keep: int) -> int:
        """Keep the best so many trials of each task, and no others; returns how many trials went."""
        records, best = self.records(), {}
        for key in records.tasks:
            best[key] = set(measured(records, key).ranking()[:keep])
        before = self.n_trials
        events = [_pruned(line, best) for line in self._events.values()]
        self._events = {_identity(line): line for line in events if line is not None}
        return before - self.n_trials

    @property
    def n_trials(self) -> int:
        return sum("status" in line for line in self._events.values())

    def _add(self, line: Line) -> None:
        kind = line.get("kind")
        if kind == "task":
            known = self._tasks.setdefault(line["task"], dict(line))
            known.update({name: value for name, value in line.items() if name not in known})
        elif kind == "retry":
            self._forget_failures()
        elif kind == "finished":
            known = self._ends.get(line["model"])
            if known is None or float(known["elapsed_s"]) < float(line["elapsed_s"]):
                self._ends[line["model"]] = line
        elif kind != "tuning":
            self._add_event(line)

    def _add_event(self, line: Line) -> None:
        identity = _identity(line)
        known = self._events.get(identity)
        if known is not None and ("seconds" in known or "seconds" not in line):
            return
        self._events.pop(identity, None)  # a success after a failure counts from here on
        self._events[identity] = line

    def _forget_failures(self) -> None:
        failed = {key: line for key, line in self._events.items() if "status" in line and "seconds" not in line}
        for key, line in failed.items():
            del self._events[key]
            self._ends.pop(line["model"], None)


def measured(records: Records, key: str) -> Measured:
    """What was measured of a task, with confirmations, and wrong schedules as failures."""
    task = records.tasks[key]
    return Measured(key, usable_events(records, key), 1, task.origins)


def write_new(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write lines into a new file, whole or not at all; a file that exists is never touched.

    Raises:
        UsageError: if the file exists, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            part = Path(file.name)
            try:
                for line in lines:
                    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                part.chmod(0o644)
                os.link(part, path)  # unlike a renaming, it replaces nothing
            finally:
                part.unlink()
    except FileExistsError as error:
        raise UsageError(f"{path} exists; give another -o, or remove it first") from error
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); give another -o") from error


def _identity(line: Line) -> Any:
    """What makes a line the same as another: task and configuration of a trial, the whole text of another line."""
    if "status" in line:
        return line["task"], tuple(line["config"])
    return json.dumps(line, sort_keys=True)


def _pruned(line: Line, best: Mapping[str, set[Config]]) -> Line | None:
    """The line as far as it is about the best trials; None for another trial. What is wrong stays known."""
    if "status" in line:
        return line if tuple(line["config"]) in best[line["task"]] else None
    if line.get("kind") != "confirmation":
        return line
    # Without a schedule left it still says when the best was chosen among those timed again.
    return {**line, "again": [a for a in line["again"] if tuple(a["config"]) in best[line["task"]]]}
