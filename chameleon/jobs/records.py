"""The records of tuning: a file with one JSON line for each trial, written at once, and read back to resume.

The first line of the file names the target. A `task` line introduces each workload and the knobs of its space. A
trial line is a trial of one task. Further lines say which schedules were timed again, and which model's tuning has
ended. The format is documented in docs/records.md.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from chameleon.errors import ChameleonError
from chameleon.search import Knob, KnobSpace, Trial
from chameleon.wording import same_target

FORMAT = 1
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


@dataclass
class TaskRecords:
    """What is known of one workload, in the order of measuring.

    Attributes:
        space: the fingerprint of its space.
        knobs: the knobs and sketches of its space, as `space_to_json` writes them.
        anchor: what tasks with the same main block share (`tuners.anchors`); None if unknown.
        algorithms: the alternatives in its space, with their sketches (`chameleon.kernels.alternatives`).
        events: its trials, confirmations and exchanges.
        owners: for each trial the model whose tuning made it.
        origins: for each trial that took over a schedule of another task the key of that task.
    """

    name: str
    space: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    anchor: str | None = None
    algorithms: Mapping[str, Sequence[int]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
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

    def add(self, trial: Trial, model: str, origin: str | None = None) -> None:
        """Take a trial. A configuration counts once: a second trial of it counts only where the first one failed."""
        if trial.config in self.owners:
            known = next(i for i, e in enumerate(self.events) if isinstance(e, Trial) and e.config == trial.config)
            if trial.seconds is None or self.events[known].seconds is not None:
                return
            del self.events[known]
        self.events.append(trial)
        self.owners[trial.config] = model
        self.origins.pop(trial.config, None)
        if origin is not None:
            self.origins[trial.config] = origin

    def forget_failures(self) -> list[str]:
        """Drop the failed trials; returns the model of each."""
        failed = [trial.config for trial in self.trials if trial.seconds is None]
        self.events = [e for e in self.events if not isinstance(e, Trial) or e.seconds is not None]
        for config in failed:
            self.origins.pop(config, None)
        return [self.owners.pop(config) for config in failed]


class Records:
    """An append-only file of trials with a single writer and any number of readers.

    An incomplete last line (the process was killed, the disk was full) is cut off when the file is opened to write. A
    reader ignores it: the writer may be in the middle of that line.

    Args:
        path: the file; a writer creates it where it does not exist.
        target: the target that every trial in it was measured on.
        read_only: only read, without the writer's lock.

    Raises:
        RecordsError: if the file holds something else, belongs to another target, or another process writes to it.
        OSError: if the file cannot be created or read.
    """

    def __init__(self, path: Path, target: str, *, read_only: bool = False) -> None:
        self.path = path
        self.tasks: dict[str, TaskRecords] = {}
        self.elapsed_s: dict[str, float] = {}
        self.finished: set[str] = set()  # models whose tuning has ended
        # by task, the configurations whose schedules computed wrong values in their network
        self.wrong: dict[str, set[Config]] = {}
        self._read_only = read_only
        self._file = path.open("rb" if read_only else "a+b")
        try:
            if not read_only:
                self._lock()
            lines = list(self._lines())
            self._check_header(lines, target)
            for number, line in lines[1:]:
                self._load(number, line, target)
        except BaseException:
            self._file.close()
            raise
        if not lines:
            self._write({"chameleon": FORMAT, "kind": "tuning", "target": target})

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

    def append(self, key: str, trial: Trial, *, model: str, elapsed_s: float, origin: str | None = None) -> None:
        """Write one trial to disk.

        Args:
            elapsed_s: the time that tuning `model` has taken so far.
            origin: the key of the task whose schedule was taken over; None where the task was searched itself.
        """
        self.tasks[key].add(trial, model, origin)
        self.finished.discard(model)
        self._spent(model, elapsed_s)
        taken = {} if origin is None else {"origin": origin}
        self._write({"task": key, **trial.to_json(), **taken, "model": model, "elapsed_s": round(elapsed_s, 3)})

    def confirm(self, key: str, confirmation: Confirmation, *, model: str, elapsed_s: float) -> None:
        """Write to disk that the best schedules of a task were timed again, all in one line."""
        self.tasks[key].events.append(confirmation)
        self._spent(model, elapsed_s)
        again = []
        for config, seconds in confirmation.seconds.items():
            cold = {"cold": list(confirmation.cold[config])} if config in confirmation.cold else {}
            again.append({"config": list(config), "seconds": list(seconds), **cold})
        line = {"kind": "confirmation", "task": key, "again": again, "model": model, "elapsed_s": round(elapsed_s, 3)}
        self._write(line)

    def exchange(self, key: str, exchange: Exchange, *, elapsed_s: float) -> None:
        """Write to disk that two schedules of a task were compared in the network."""
        self.tasks[key].events.append(exchange)
        self._spent(exchange.model, elapsed_s)
        sides = zip(("winner", "loser"), (exchange.winner, exchange.loser), exchange.seconds, strict=True)
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
        number, header = lines[0]
        if header.get("chameleon") != FORMAT or header.get("kind") != "tuning":
            raise RecordsError(
                f"{self.path}:{number}: expected the header of tuning records (format {FORMAT}), "
                f"got {str(header)[:120]}"
            )
        if not same_target(str(header.get("target")), target):
            raise RecordsError(
                f"{self.path} holds records of target {header.get('target')}, expected {target}; "
                "give another --out or that --target"
            )

    def _load(self, number: int, line: dict[str, Any], target: str) -> None:
        try:
            kind = line.get("kind")
            if kind == "task":
                self._load_task(number, line)
            elif kind == "tuning":  # the header of a file that was appended to this one
                self._check_header([(number, line)], target)
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
        if line.get("kind") == "confirmation":
            task.events.append(
                Confirmation(
                    {tuple(a["config"]): _numbers(a["seconds"]) for a in line["again"]},
                    {tuple(a["config"]): _numbers(a["cold"]) for a in line["again"] if "cold" in a},
                )
            )
        elif line.get("kind") == "exchange":
            winner, loser = line["winner"], line["loser"]
            seconds = (_numbers(winner["network_s"]), _numbers(loser["network_s"]))
            task.events.append(Exchange(tuple(winner["config"]), tuple(loser["config"]), seconds, model))
        else:
            task.add(Trial.from_json(line), model, line.get("origin"))
            self.finished.discard(model)
        self._spent(model, float(line["elapsed_s"]))

    def _write(self, line: dict[str, Any]) -> None:
        if self._read_only:
            return
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


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
