"""The records of tuning: a file with one JSON line for each trial, written at once, and read back to resume.

The first line of the file names the target. A `task` line introduces each workload and the knobs of its space. A
trial line is a trial of one task. Further lines say which schedules were timed again, and which model's tuning has
ended. The format is documented in docs/records.md.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from chameleon.errors import ChameleonError
from chameleon.files import read_json
from chameleon.search import Knob, KnobSpace, Trial
from chameleon.wording import same_target

FORMAT = 1
RECORDS = "trials.jsonl"
"""The file in a run's folder."""
QUIET_S = 120.0
"""Where the system does not list its locks, nobody is taken to write a file that did not change for so long."""
Config = tuple[int, ...]
logger = logging.getLogger("chameleon")


class RecordsError(ChameleonError):
    """A records file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Confirmation:
    """The few best schedules of a task were timed again, in turns.

    Attributes:
        seconds: for each configuration the time of each round; none if it failed this time.
        cold: the same with cold caches; empty if it was not timed so.
    """

    seconds: Mapping[Config, Sequence[float]]
    cold: Mapping[Config, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Exchange:
    """Two schedules of a task were compared in the network itself, in turns.

    Attributes:
        winner: the schedule that the network keeps.
        loser: the other one.
        seconds: the network's latency in each round, with the winner and with the loser.
        model: the network.
    """

    winner: Config
    loser: Config
    seconds: tuple[tuple[float, ...], tuple[float, ...]]
    model: str


Event = Trial | Confirmation | Exchange
"""What is on record of a task."""

SIDES = ("winner", "loser")
"""The fields of the line of an exchange that hold its schedules."""


@dataclass(frozen=True)
class Stamp:
    """When something was recorded.

    Attributes:
        model: whose tuning recorded it.
        elapsed_s: how long that tuning had taken.
        search_s: seconds of it that the searcher took since the trial before; 0 where the records do not tell.
    """

    model: str
    elapsed_s: float
    search_s: float = 0.0


@dataclass
class TaskRecords:
    """What is known of one workload, in the order of measuring.

    Attributes:
        space: the fingerprint of its space.
        knobs: the knobs and sketches of its space, as `space_to_json` writes them.
        anchor: what tasks with the same main block share (`tuners.anchors`); None if unknown.
        algorithms: the alternatives in its space, with their sketches (`chameleon.kernels.alternatives`).
        events: its trials, confirmations and exchanges.
        stamps: when each of the events was recorded.
        owners: for each trial the model whose tuning made it.
        origins: for each trial that took over a schedule of another task the key of that task.
    """

    name: str
    space: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    anchor: str | None = None
    algorithms: Mapping[str, Sequence[int]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    owners: dict[Config, str] = field(default_factory=dict)
    origins: dict[Config, str] = field(default_factory=dict)

    @property
    def trials(self) -> list[Trial]:
        return [event for event in self.events if isinstance(event, Trial)]

    def knob_space(self) -> KnobSpace | None:
        """The space on record, for those who want to learn from its trials; None if the records do not tell.

        Its values are as they were written. It has no constraints: they are not on record.
        """
        try:
            return space_from_json(self.knobs)
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    def add(self, trial: Trial, stamp: Stamp, origin: str | None = None) -> None:
        """Take a trial. A configuration counts once: a second trial of it counts only where the first one failed."""
        if trial.config in self.owners:
            known = next(i for i, e in enumerate(self.events) if isinstance(e, Trial) and e.config == trial.config)
            if trial.seconds is None or self.events[known].seconds is not None:
                return
            del self.events[known], self.stamps[known]
        self.note(trial, stamp)
        self.owners[trial.config] = stamp.model
        self.origins.pop(trial.config, None)
        if origin is not None:
            self.origins[trial.config] = origin

    def note(self, event: Event, stamp: Stamp) -> None:
        """Take an event: a trial that counts, times of the best schedules timed again, or what the network said."""
        self.events.append(event)
        self.stamps.append(stamp)

    def forget_failures(self) -> list[str]:
        """Drop the failed trials; returns the model of each."""
        failed = [trial.config for trial in self.trials if trial.seconds is None]
        kept = [not isinstance(e, Trial) or e.seconds is not None for e in self.events]
        self.events = [e for e, keep in zip(self.events, kept, strict=True) if keep]
        self.stamps = [s for s, keep in zip(self.stamps, kept, strict=True) if keep]
        for config in failed:
            self.origins.pop(config, None)
        return [self.owners.pop(config) for config in failed]


class Records:
    """An append-only file of trials with a single writer and any number of readers.

    An incomplete last line (the process was killed, the disk was full) is cut off when the file is opened to write. A
    reader ignores it: the writer may be in the middle of that line.

    Args:
        path: the file; a writer creates it where it does not exist.
        target: the target that every trial in it was measured on; None, for a reader: whichever the file names.
        read_only: only read, without the writer's lock.

    Raises:
        RecordsError: if the file holds something else, belongs to another target, or another process writes to it.
        OSError: if the file cannot be created or read.
    """

    def __init__(self, path: Path, target: str | None = None, *, read_only: bool = False) -> None:
        self._clear(path, target, read_only=read_only)
        self._file = path.open("rb" if read_only else "a+b")
        try:
            if not read_only:
                self._lock()
            lines = list(self._lines())
            self._load_all(lines)
        except BaseException:
            self._file.close()
            raise
        if not lines:
            self._write(tuning_header(self.target))

    @classmethod
    def of_lines(cls, path: Path, lines: Sequence[Mapping[str, Any]]) -> Records:
        """What these lines hold, header first, without a file; nothing can be written.

        Args:
            path: where they come from, for messages.

        Raises:
            RecordsError: if they are no records.
        """
        records = cls.__new__(cls)
        records._clear(path, None, read_only=True)
        records._file = io.BytesIO()
        records._load_all([(number, dict(line)) for number, line in enumerate(lines, start=1)])
        return records

    def _clear(self, path: Path, target: str | None, *, read_only: bool) -> None:
        self.path = path
        self.target = target or ""
        self.tasks: dict[str, TaskRecords] = {}
        self.elapsed_s: dict[str, float] = {}
        self.finished: set[str] = set()  # models whose tuning has ended
        # by task, the configurations whose schedules computed wrong values in their network
        self.wrong: dict[str, set[Config]] = {}
        self._read_only = read_only

    def _load_all(self, lines: Sequence[tuple[int, dict[str, Any]]]) -> None:
        for number, line in lines[:1]:
            self._check_header(number, line)
        for number, line in lines[1:]:
            self._load(number, line)

    def add_task(
        self,
        key: str,
        name: str,
        space: KnobSpace,
        anchor: str | None = None,
        algorithms: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> TaskRecords:
        """Introduce a workload and return what earlier runs have recorded of it.

        Args:
            anchor: what tasks with the same main block share; records of earlier versions do not have it.
            algorithms: the alternatives in its space, with their sketches.

        Raises:
            RecordsError: if the file knows the workload with another space of knobs.
        """
        known = self.tasks.get(key)
        if known is None:
            more: dict[str, Any] = {} if anchor is None else {"anchor": anchor}
            more |= {"algorithms": dict(algorithms)} if algorithms else {}
            knobs = space_to_json(space)
            self._write({"kind": "task", "task": key, "name": name, **more, **knobs})
            new = TaskRecords(name, space.fingerprint(), knobs, anchor, dict(algorithms))
            return self.tasks.setdefault(key, new)
        if known.space != space.fingerprint():
            raise RecordsError(
                f"{self.path}: the records of task {name!r} were made with other knobs (space {known.space}, now "
                f"{space.fingerprint()}), perhaps by another version of TVM; give another --out"
            )
        known.anchor = anchor
        return known

    def forget_failures(self) -> int:
        """Forget all failed trials on record, so that they may be measured again; the file keeps their lines.

        A model of which no trial is left also gets its tuning time back.

        Returns:
            How many trials were forgotten.
        """
        forgotten = self._forget_failures()
        if forgotten:
            self._write({"kind": "retry"})
        return forgotten

    def _forget_failures(self) -> int:
        forgotten = [model for task in self.tasks.values() for model in task.forget_failures()]
        left = {model for task in self.tasks.values() for model in task.owners.values()}
        self.elapsed_s = {model: seconds for model, seconds in self.elapsed_s.items() if model in left}
        self.finished -= set(forgotten)
        return len(forgotten)

    def append(
        self,
        key: str,
        trial: Trial,
        *,
        model: str,
        elapsed_s: float,
        origin: str | None = None,
        search_s: float = 0.0,
    ) -> None:
        """Write one trial to disk.

        Args:
            elapsed_s: the time that tuning `model` has taken so far.
            origin: the key of the task whose schedule was taken over; None where the task was searched itself.
            search_s: seconds that the searcher has taken since the trial before.
        """
        search_s = round(search_s, 4)
        self.tasks[key].add(trial, Stamp(model, elapsed_s, search_s), origin)
        self.finished.discard(model)
        self._spent(model, elapsed_s)
        more = {} if origin is None else {"origin": origin}
        more |= {"search_s": search_s} if search_s else {}
        self._write({"task": key, **trial.to_json(), **more, "model": model, "elapsed_s": round(elapsed_s, 3)})

    def confirm(self, key: str, confirmation: Confirmation, *, model: str, elapsed_s: float) -> None:
        """Write to disk that the best schedules of a task were timed again, all in one line."""
        self.tasks[key].note(confirmation, Stamp(model, elapsed_s))
        self._spent(model, elapsed_s)
        again = []
        for config, seconds in confirmation.seconds.items():
            cold = {"cold": list(confirmation.cold[config])} if config in confirmation.cold else {}
            again.append({"config": list(config), "seconds": list(seconds), **cold})
        line = {"kind": "confirmation", "task": key, "again": again, "model": model, "elapsed_s": round(elapsed_s, 3)}
        self._write(line)

    def exchange(self, key: str, exchange: Exchange, *, elapsed_s: float) -> None:
        """Write to disk that two schedules of a task were compared in the network."""
        self.tasks[key].note(exchange, Stamp(exchange.model, elapsed_s))
        self._spent(exchange.model, elapsed_s)
        sides = zip(SIDES, (exchange.winner, exchange.loser), exchange.seconds, strict=True)
        both = {side: {"config": list(config), "network_s": list(s)} for side, config, s in sides}
        line = {"kind": "exchange", "task": key, **both, "model": exchange.model, "elapsed_s": round(elapsed_s, 3)}
        self._write(line)

    def finish(self, model: str, *, elapsed_s: float) -> None:
        """Write to disk that tuning `model` has ended: its budget is used up, or nothing is left to try."""
        if model in self.finished:
            return
        self.finished.add(model)
        self._spent(model, elapsed_s)
        self._write({"kind": "finished", "model": model, "elapsed_s": round(elapsed_s, 3)})

    def _spent(self, model: str, elapsed_s: float) -> None:
        self.elapsed_s[model] = max(elapsed_s, self.elapsed_s.get(model, 0.0))

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
        """All complete lines with their numbers; a writer cuts an incomplete last line off the file."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content) and not self._read_only:
            logger.warning("%s: cut off a torn last line (%d bytes)", self.path, len(content) - len(whole))
            self._file.truncate(len(whole))
        yield from enumerate(parse_lines(self.path, whole), start=1)

    def _check_header(self, number: int, header: Mapping[str, Any]) -> None:
        if header.get("chameleon") != FORMAT or header.get("kind") != "tuning":
            raise RecordsError(
                f"{self.path}:{number}: expected the header of tuning records (format {FORMAT}), "
                f"got {str(header)[:120]}"
            )
        self.target = self.target or str(header.get("target"))
        if not same_target(str(header.get("target")), self.target):
            raise RecordsError(
                f"{self.path} holds records of target {header.get('target')}, expected {self.target}; "
                "give another --out or that --target"
            )

    def _load(self, number: int, line: dict[str, Any]) -> None:
        try:
            kind = line.get("kind")
            if kind == "task":
                self._load_task(number, line)
            elif kind == "tuning":  # the header of a file that was appended to this one
                self._check_header(number, line)
            elif kind == "finished":
                self.finished.add(line["model"])
                self._spent(line["model"], float(line["elapsed_s"]))
            elif kind == "retry":
                self._forget_failures()
            elif kind == "wrong":
                self.wrong.setdefault(line["task"], set()).add(tuple(int(d) for d in line["config"]))
            else:
                self._load_event(line)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordsError(
                f"{self.path}:{number}: not a line of tuning records ({error!r}); remove the line or the file"
            ) from error

    def _load_task(self, number: int, line: dict[str, Any]) -> None:
        """Take a task line. A second one of the same task changes nothing: the trials of both belong together."""
        algorithms = {str(name): [int(i) for i in of] for name, of in line.get("algorithms", {}).items()}
        new = TaskRecords(line["name"], line["space"], line, algorithms=algorithms)
        known = self.tasks.setdefault(line["task"], new)
        known.anchor = line.get("anchor", known.anchor)
        if known.space != line["space"]:
            raise RecordsError(
                f"{self.path}:{number}: the task {line['name']!r} comes a second time, with other knobs (space "
                f"{line['space']}, before {known.space}); keep the lines of one of the two in this file"
            )

    def _load_event(self, line: dict[str, Any]) -> None:
        task, model = self.tasks[line["task"]], line["model"]
        stamp = Stamp(model, float(line["elapsed_s"]), float(line.get("search_s", 0.0)))
        if line.get("kind") == "confirmation":
            again = {tuple(a["config"]): _numbers(a["seconds"]) for a in line["again"]}
            cold = {tuple(a["config"]): _numbers(a["cold"]) for a in line["again"] if "cold" in a}
            task.note(Confirmation(again, cold), stamp)
        elif line.get("kind") == "exchange":
            winner, loser = line["winner"], line["loser"]
            seconds = (_numbers(winner["network_s"]), _numbers(loser["network_s"]))
            task.note(Exchange(tuple(winner["config"]), tuple(loser["config"]), seconds, model), stamp)
        else:
            task.add(Trial.from_json(line), stamp, line.get("origin"))
            self.finished.discard(model)
        self._spent(model, stamp.elapsed_s)

    def _write(self, line: dict[str, Any]) -> None:
        if self._read_only:
            return
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def parse_lines(path: Path, whole: bytes) -> Iterator[dict[str, Any]]:
    """The objects of complete lines.

    Raises:
        RecordsError: if a line holds anything else.
    """
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise RecordsError(
                f"{path}:{number}: expected a JSON object, got {text[:80]!r}; remove the line or the file"
            )
        yield line


def records_path(folder: Path) -> Path | None:
    """The records of a run: in its folder, or beside it where several runs share them; None if there are none.

    Only the name is taken from the run's `run.json`, so that a file cannot point anywhere else.
    """
    name = Path(str(read_json(folder / "run.json").get("records") or RECORDS)).name
    return next((path for path in (folder / name, folder.parent / name) if path.is_file()), None)


def is_written(path: Path) -> bool:
    """Whether a process holds the writer's lock on a file; asked of the system, without taking a lock."""
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:  # not Linux
        return time.time() - path.stat().st_mtime < QUIET_S
    inode = str(path.stat().st_ino)
    rows = [line.split() for line in locks.splitlines()]
    return any(
        "FLOCK" in row and "WRITE" in row and row[5].rpartition(":")[2] == inode for row in rows if len(row) > 5
    )


def tuning_header(target: str) -> dict[str, Any]:
    """The first line of a file of records."""
    return {"chameleon": FORMAT, "kind": "tuning", "target": target}


def space_to_json(space: KnobSpace) -> dict[str, Any]:
    """The knobs of a space, for a `task` line."""
    return {
        "space": space.fingerprint(),
        "knobs": [{"name": k.name, "kind": k.kind, "values": [_plain(v) for v in k.values]} for k in space.knobs],
        "sketches": [[int(i) for i in row.nonzero()[0]] for row in space.active],
    }


def space_from_json(line: Mapping[str, Any]) -> KnobSpace:
    """The space of a `task` line: its knobs with their names, kinds and values, and its sketches; not to be searched.

    Raises:
        KeyError, TypeError, ValueError, IndexError: if the line does not describe a space.
    """
    knobs = [_recorded_knob(k["name"], k["kind"], tuple(_read(v) for v in k["values"])) for k in line["knobs"]]
    sketches = line["sketches"]
    return KnobSpace(knobs, sketches=sketches if len(sketches) > 1 else None)


def _recorded_knob(name: str, kind: Any, values: tuple[Any, ...]) -> Knob:
    """A knob without features and moves, which nobody asks of a recorded one, and which are slow to find."""
    return Knob(name, kind, values, np.zeros((len(values), 1), np.float32), np.zeros((len(values), 0), np.int64))


def _read(value: Any) -> Any:
    return tuple(_read(v) for v in value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value if isinstance(value, (int, float, bool)) else str(value)
