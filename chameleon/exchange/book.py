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
from chameleon.jobs.ledger import Config
from chameleon.jobs.measured import Measured, usable, usable_events
from chameleon.jobs.records import Records
from chameleon.store.lines import UNKNOWN, Line, RecordsError, tuning_header
from chameleon.store.open import open_store
from chameleon.store.place import Place, Url
from chameleon.wording import same_target


class Book:
    """The lines that count of one or several sources of records.

    Args:
        lines: of records, header first, such as `lines_of` reads them.
        place: where they come from, for messages.

    Raises:
        RecordsError: if they are no records.
    """

    def __init__(self, place: Place, lines: Sequence[Line]) -> None:
        self.place = place
        records = Records.of_lines(place, lines)
        self.target = records.target
        self._assumed = ""  # the environment of lines that do not tell
        self._introductions: dict[str, Line] = {}  # the lines of environments
        self._tasks: dict[tuple[str, str], Line] = {}  # by workload and space
        self._spaces: dict[str, list[str]] = {}  # of each workload
        self._events: dict[Any, Line] = {}  # trials by all their keys, other lines by their text
        self._ends: dict[tuple[str, str], Line] = {}  # the line of the end of each model in each environment
        for line in lines:
            self._add(line)

    def merge(self, other: Book) -> None:
        """Take what another book holds and this one does not. Doing it twice changes nothing.

        Raises:
            RecordsError: if it is of another target.
        """
        if not same_target(self.target, other.target):
            raise RecordsError(
                f"{other.place} holds records of target {other.target}, {self.place} of {self.target}; "
                "merge records of one target only"
            )
        assumed = self._assumed
        if other._assumed != assumed:
            self._tell_environment()
            assumed = UNKNOWN
        lines = [other._told(line, assumed, self) for line in other.lines[1:]]
        self._assumed = assumed
        for line in lines:
            self._add(line)

    @property
    def lines(self) -> list[Line]:
        """Header, environments, tasks, events in their order, and which models' tuning has ended."""
        last: dict[tuple[str, str], float] = {}
        for line in self._events.values():
            if "status" in line:
                key = (self._environment(line), line["model"])
                last[key] = max(float(line["elapsed_s"]), last.get(key, 0.0))
        ended = [end for key, end in self._ends.items() if float(end["elapsed_s"]) >= last.get(key, 0.0)]
        header = tuning_header(self.target, self._assumed or None)
        return [header, *self._introductions.values(), *self._tasks.values(), *self._events.values(), *ended]

    def records(self, environment: str | None = None) -> Records:
        """The same as records that can be read."""
        return Records.of_lines(self.place, self.lines, environment)

    def prune(self, keep: int) -> int:
        """Keep the best so many trials of each task in each environment; returns how many trials went."""
        best: dict[tuple[str, str, str], set[Config]] = {}
        for environment, ledger in self.records().ledgers.items():
            for (key, space), task in ledger.by_space.items():
                ranking = Measured(key, usable(task), 1, task.origins).ranking()
                best[environment, key, space] = set(ranking[:keep])
        before = self.n_trials
        events = [_pruned(line, best.get(self._of(line), set())) for line in self._events.values()]
        self._events = {self._identity(line): line for line in events if line is not None}
        return before - self.n_trials

    @property
    def n_trials(self) -> int:
        return sum("status" in line for line in self._events.values())

    def _add(self, line: Line) -> None:
        kind = line.get("kind")
        if kind == "task":
            self._add_task(line)
        elif kind == "tuning":
            if "environment" in line and line["environment"] != self._assumed:
                self._tell_environment()
                self._assumed = line["environment"]
        elif kind == "environment":
            self._introductions.setdefault(line["environment"], line)
        elif kind == "retry":
            self._forget_failures(self._environment(line))
        elif kind == "finished":
            key = (self._environment(line), line["model"])
            known = self._ends.get(key)
            if known is None or float(known["elapsed_s"]) < float(line["elapsed_s"]):
                self._ends[key] = line
        else:
            self._add_event(line)

    def _add_task(self, line: Line) -> None:
        key, space = line["task"], line["space"]
        spaces = self._spaces.setdefault(key, [])
        if spaces and space not in spaces:  # from here on the lines before must tell which space they are about
            told = [
                {**x, "space": spaces[0]} if x.get("task") == key and "space" not in x else x
                for x in self._events.values()
            ]
            self._events = {self._identity(x): x for x in told}
        if space not in spaces:
            spaces.append(space)
        known = self._tasks.setdefault((key, space), dict(line))
        known.update({name: value for name, value in line.items() if name not in known})

    def _add_event(self, line: Line) -> None:
        identity = self._identity(line)
        known = self._events.get(identity)
        if known is not None and ("seconds" in known or "seconds" not in line):
            return
        self._events.pop(identity, None)  # a success after a failure counts from here on
        self._events[identity] = line

    def _forget_failures(self, environment: str) -> None:
        failed = {key: line for key, line in self._events.items() if "status" in line and "seconds" not in line}
        for key, line in failed.items():
            if self._environment(line) == environment:
                del self._events[key]
                self._ends.pop((environment, line["model"]), None)

    def _environment(self, line: Line) -> str:
        return str(line.get("environment", self._assumed))

    def _of(self, line: Line) -> tuple[str, str, str]:
        """Environment, workload and space of a line about a task; earlier versions knew one space of a workload."""
        key = line.get("task", "")
        return self._environment(line), key, line.get("space") or self._spaces.get(key, [""])[0]

    def _identity(self, line: Line) -> Any:
        """What makes a line the same as another: all keys of a trial, the whole text of another line."""
        if "status" in line:
            return (*self._of(line), tuple(line["config"]))
        return json.dumps(line, sort_keys=True)

    def _told(self, line: Line, assumed: str, into: Book) -> Line:
        """A line as it must be in another book, where what it does not tell would mean something else."""
        if line.get("kind") in ("task", "environment"):
            return line
        more: Line = {}
        if "environment" not in line and self._assumed not in (assumed, "", UNKNOWN):
            more["environment"] = self._assumed
        if "space" not in line and (spaces := self._spaces.get(line.get("task", ""))):
            others = set(into._spaces.get(line["task"], ())) - set(spaces)
            more |= {"space": spaces[0]} if others else {}
        return {**line, **more} if more else line

    def _tell_environment(self) -> None:
        """Write the environment into all lines that do not tell theirs; the others will count as unknown."""
        name, self._assumed = self._assumed, UNKNOWN
        if name in ("", UNKNOWN):
            return
        told = [x if "environment" in x else {**x, "environment": name} for x in self._events.values()]
        ends = [x if "environment" in x else {**x, "environment": name} for x in self._ends.values()]
        self._events = {self._identity(line): line for line in told}
        self._ends = {(self._environment(line), line["model"]): line for line in ends}


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


def _pruned(line: Line, best: set[Config]) -> Line | None:
    """The line as far as it is about the best trials of its task; None for another trial. Wrong stays wrong."""
    if "status" in line:
        return line if tuple(line["config"]) in best else None
    if line.get("kind") != "confirmation":
        return line
    # Without a schedule left it still says when the best was chosen among those timed again.
    return {**line, "again": [a for a in line["again"] if tuple(a["config"]) in best]}


def write_into(store: Url, book: Book) -> int:
    """Write into a database what it does not hold yet; returns how many trials that were. Twice is as once.

    Raises:
        RecordsError: if it cannot be reached.
    """
    opened = open_store(store, book.target)
    try:
        known = [line for _, line in opened.read()]
        into = Book(store, known or [tuning_header(book.target, UNKNOWN)])
        before = into.n_trials
        into.merge(book)
        opened.extend(into.lines)
    finally:
        opened.close()
    return into.n_trials - before
