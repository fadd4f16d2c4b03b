"""The records of tuning: a line for each trial, on disk before the next one, and read back to resume.

A store (`chameleon.store`) keeps the lines: a file, SQLite or PostgreSQL. The first line names the target. A `task`
line introduces each workload and the knobs of its space, an `environment` line what the trials were measured on. A
trial line is a trial of one task. Further lines say which schedules were timed again, and which model's tuning has
ended. The format is documented in docs/records.md.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

from chameleon.files import read_json
from chameleon.jobs.environment import Environment
from chameleon.jobs.ledger import SIDES, Config, Confirmation, Exchange, Ledger, Stamp, TaskRecords, space_to_json
from chameleon.search import KnobSpace, Trial
from chameleon.store.files import FileStore
from chameleon.store.lines import FORMAT, UNKNOWN, Line, RecordsError, Store, StoreGone, tuning_header
from chameleon.store.open import open_store
from chameleon.store.place import Place
from chameleon.wording import same_target

RECORDS = "trials.jsonl"
"""The file in a run's folder."""
KEPT = "kept.jsonl"
"""The file in a run's folder with what was measured while the database was gone."""
LOCK = ".lock"
"""The file in a run's folder whose lock says that a process writes into the folder."""
logger = logging.getLogger("chameleon")


class Records:
    """What is on record of one target, from a store with any number of writers and readers.

    Every environment has its own trials: a configuration counts once in each. What is asked for without naming one
    (`tasks`, `finished`, ...) is that of the environment that the records are opened for.

    Args:
        place: the store; a writer makes it where there is none.
        target: the target that every trial in it was measured on; None, for a reader: whichever the store names.
        read_only: only read.
        environment: in which is measured now, for a writer; its name, for a reader. None: the one of the last event.
        kept: a file for lines that the store does not take any more; what it holds is taken in first.
        workloads: read only what is about these workloads; None: all.

    Raises:
        RecordsError: if the store holds something else, belongs to another target, or cannot be reached.
        OSError: if a file cannot be created or read.
    """

    def __init__(
        self,
        place: Place,
        target: str | None = None,
        *,
        read_only: bool = False,
        environment: Environment | str | None = None,
        kept: Path | None = None,
        workloads: Collection[str] | None = None,
    ) -> None:
        self._clear(place, target, environment, read_only=read_only)
        self._kept = kept
        self._store: Store = open_store(place, target, read_only=read_only, workloads=workloads)
        try:
            lines = self._store.read()
            if not lines and not read_only:
                # In a database lie the lines of many; there a line that does not tell its environment has none.
                unknown = None if isinstance(place, Path) else UNKNOWN
                self._store.extend([tuning_header(self.target, unknown)])
                lines = self._store.read()
            if not read_only:
                lines += self._take_kept()
            self._load_all(lines)
            self._introduce_environment()
        except BaseException:
            self._store.close()
            raise

    @classmethod
    def of_lines(cls, place: Place, lines: Sequence[Mapping[str, Any]], environment: str | None = None) -> Records:
        """What these lines hold, header first, without a store; nothing can be written.

        Args:
            place: where they come from, for messages.

        Raises:
            RecordsError: if they are no records.
        """
        records = cls.__new__(cls)
        records._clear(place, None, environment, read_only=True)
        records._load_all([(number, dict(line)) for number, line in enumerate(lines, start=1)])
        return records

    def _clear(
        self, place: Place, target: str | None, environment: Environment | str | None, *, read_only: bool
    ) -> None:
        self.place = place
        self.target = target or ""
        self.environments: dict[str, Line] = {}  # the lines that introduce them
        self.ledgers: dict[str, Ledger] = {}
        self._read_only = read_only
        self._kept: Path | None = None
        self._gone = False
        self._here = environment if isinstance(environment, Environment) else None
        self.environment = environment.id if isinstance(environment, Environment) else environment
        self._assumed = self.environment or ""  # of lines that do not tell
        self._introduced: dict[str, dict[str, Line]] = {}  # the task lines by workload and space

    @property
    def _ledger(self) -> Ledger:
        return self.ledgers.setdefault(self.environment or "", Ledger())

    @property
    def tasks(self) -> dict[str, TaskRecords]:
        """The tasks by their keys."""
        return self._ledger.tasks

    @property
    def elapsed_s(self) -> dict[str, float]:
        """How long tuning each model has taken."""
        return self._ledger.elapsed_s

    @property
    def finished(self) -> set[str]:
        """The models whose tuning has ended."""
        return self._ledger.finished

    @property
    def wrong(self) -> dict[str, set[Config]]:
        """By task the configurations whose schedules computed wrong values in their network."""
        return {key: task.wrong for key, task in self.tasks.items() if task.wrong}

    @property
    def measured_in(self) -> list[str]:
        """The environments with a trial; empty names that of lines which do not tell."""
        return [name for name, known in self.ledgers.items() if any(t.events for t in known.by_space.values())]

    def within(self, environment: str) -> Records:
        """The same records, asked for what was measured in another environment; only to read."""
        other = copy.copy(self)
        other.environment, other._read_only = environment, True
        other._complete(other._ledger)
        return other

    def elsewhere(self, key: str, space: str) -> list[TaskRecords]:
        """What was measured of a workload with these knobs in other environments."""
        others = [known for name, known in self.ledgers.items() if name != (self.environment or "")]
        found = (known.by_space.get((key, space)) for known in others)
        return [task for task in found if task is not None and task.events]

    def histories(self) -> Iterator[tuple[str, TaskRecords, bool]]:
        """All tasks with an event: key, what is on record of it, and whether it is one of `tasks`."""
        current = {id(task) for task in self.tasks.values()}
        for known in self.ledgers.values():
            yield from ((key, t, id(t) in current) for (key, _), t in known.by_space.items() if t.events)

    def add_task(
        self,
        key: str,
        name: str,
        space: KnobSpace,
        anchor: str | None = None,
        algorithms: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> TaskRecords:
        """Introduce a workload and return what is on record of it with these knobs in this environment.

        Args:
            anchor: what tasks with the same main block share; records of earlier versions do not have it.
            algorithms: the alternatives in its space, with their sketches.

        Raises:
            RecordsError: for a reader, if the records know the workload with other knobs only.
        """
        known, fingerprint = self._introduced.get(key, {}), space.fingerprint()
        if fingerprint not in known:
            if known and self._read_only:
                raise RecordsError(
                    f"{self.place}: the records of task {name!r} were made with other knobs (space "
                    f"{', '.join(known)}, now {fingerprint}), perhaps by another version of TVM; tune it again"
                )
            more: dict[str, Any] = {} if anchor is None else {"anchor": anchor}
            more |= {"algorithms": dict(algorithms)} if algorithms else {}
            line = {"kind": "task", "task": key, "name": name, **more, **space_to_json(space)}
            self._write(line)
            self._load_task(line)
        task = self._task(self._ledger, key, fingerprint)
        self.tasks[key] = task
        task.anchor = task.anchor if anchor is None else anchor
        return task

    def refresh(self) -> dict[str, list[tuple[Trial, str]]]:
        """Take what others have written meanwhile.

        Returns:
            By task their new trials in this environment, each with the model that was tuned.

        Raises:
            RecordsError: if they wrote something that is no line of records.
        """
        news: dict[str, list[tuple[Trial, str]]] = {}
        try:
            lines = self._store.read()
        except StoreGone:  # to write is tried longer
            return news
        for number, line in lines:
            trial = self._load(number, line)
            if trial is not None:
                news.setdefault(line["task"], []).append((trial, line["model"]))
        self._complete(self._ledger)
        return news

    def forget_failures(self) -> int:
        """Forget all failed trials of this environment, so that they may be measured again; their lines stay.

        A model of which no trial is left also gets its tuning time back.

        Returns:
            How many trials were forgotten.
        """
        forgotten = self._ledger.forget_failures()
        if forgotten:  # with the time, so that each of these lines is another one
            self._write({"kind": "retry", "at": datetime.now(timezone.utc).isoformat(), **self._in()})
        return forgotten

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
        """Write one trial; it is on disk when this returns.

        Args:
            elapsed_s: the time that tuning `model` has taken so far.
            origin: the key of the task whose schedule was taken over; None where the task was searched itself.
            search_s: seconds that the searcher has taken since the trial before.
        """
        search_s = round(search_s, 4)
        self.tasks[key].add(trial, Stamp(model, elapsed_s, search_s), origin)
        self.finished.discard(model)
        self._ledger.spent(model, elapsed_s)
        more: dict[str, Any] = {} if origin is None else {"origin": origin}
        more |= {"search_s": search_s} if search_s else {}
        end = {"model": model, "elapsed_s": round(elapsed_s, 3)}
        self._write({"task": key, **self._of(key), **trial.to_json(), **more, **end})

    def confirm(self, key: str, confirmation: Confirmation, *, model: str, elapsed_s: float) -> None:
        """Write that the best schedules of a task were timed again, all in one line."""
        self.tasks[key].note(confirmation, Stamp(model, elapsed_s))
        self._ledger.spent(model, elapsed_s)
        again = []
        for config, seconds in confirmation.seconds.items():
            cold = {"cold": list(confirmation.cold[config])} if config in confirmation.cold else {}
            again.append({"config": list(config), "seconds": list(seconds), **cold})
        end = {"model": model, "elapsed_s": round(elapsed_s, 3)}
        self._write({"kind": "confirmation", "task": key, **self._of(key), "again": again, **end})

    def exchange(self, key: str, exchange: Exchange, *, elapsed_s: float) -> None:
        """Write that two schedules of a task were compared in the network."""
        self.tasks[key].note(exchange, Stamp(exchange.model, elapsed_s))
        self._ledger.spent(exchange.model, elapsed_s)
        sides = zip(SIDES, (exchange.winner, exchange.loser), exchange.seconds, strict=True)
        both = {side: {"config": list(config), "network_s": list(s)} for side, config, s in sides}
        end = {"model": exchange.model, "elapsed_s": round(elapsed_s, 3)}
        self._write({"kind": "exchange", "task": key, **self._of(key), **both, **end})

    def finish(self, model: str, *, elapsed_s: float) -> None:
        """Write that tuning `model` has ended: its budget is used up, or nothing is left to try."""
        if model in self.finished:
            return
        self.finished.add(model)
        self._ledger.spent(model, elapsed_s)
        self._write({"kind": "finished", "model": model, "elapsed_s": round(elapsed_s, 3), **self._in()})

    def mark_wrong(self, key: str, config: Config) -> None:
        """Write that the schedule of a configuration computes wrong values, so that it is not used again."""
        self.tasks[key].wrong.add(config)
        self._write({"kind": "wrong", "task": key, **self._of(key), "config": list(config)})

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in(self) -> dict[str, str]:
        """The field that names the environment of a line."""
        return {"environment": self.environment} if self.environment else {}

    def _of(self, key: str) -> dict[str, str]:
        """The fields that name space and environment of a line about a task."""
        return {"space": self.tasks[key].space, **self._in()}

    def _load_all(self, lines: Sequence[tuple[int, Line]]) -> None:
        for number, line in lines[:1]:
            self._check_header(number, line)
        last = None
        for number, line in lines[1:]:
            self._load(number, line)
            last = line.get("environment", self._assumed) if "status" in line else last
        if self.environment is None:
            self.environment = (self._assumed if last is None else last) or None
        self._complete(self._ledger)

    def _complete(self, ledger: Ledger) -> None:
        """Give a ledger the tasks that were introduced and of which it has nothing."""
        for key, spaces in self._introduced.items():
            if key not in ledger.tasks:
                ledger.tasks[key] = self._task(ledger, key, list(spaces)[-1])

    def _check_header(self, number: int, header: Mapping[str, Any]) -> None:
        if header.get("chameleon") != FORMAT or header.get("kind") != "tuning":
            raise RecordsError(
                f"{self.place}:{number}: expected the header of tuning records (format {FORMAT}), "
                f"got {str(header)[:120]}"
            )
        self.target = self.target or str(header.get("target"))
        if not same_target(str(header.get("target")), self.target):
            raise RecordsError(
                f"{self.place} holds records of target {header.get('target')}, expected {self.target}; "
                "give another --out or that --target"
            )
        self._assumed = str(header.get("environment", self.environment or ""))

    def _load(self, number: int, line: Line) -> Trial | None:
        """Take a line; returns the trial that it adds to `tasks`, if it does."""
        try:
            kind = line.get("kind")
            ledger = self.ledgers.setdefault(line.get("environment", self._assumed), Ledger())
            if kind == "task":
                self._load_task(line)
            elif kind == "environment":
                self.environments[line["environment"]] = line
            elif kind == "tuning":  # the header of a file that was appended to this one
                self._check_header(number, line)
            elif kind == "finished":
                ledger.finished.add(line["model"])
                ledger.spent(line["model"], float(line["elapsed_s"]))
            elif kind == "retry":
                ledger.forget_failures()
            elif kind == "wrong":
                self._load_wrong(ledger, number, line)
            else:
                return self._load_event(ledger, number, line)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordsError(
                f"{self.place}:{number}: not a line of tuning records ({error!r}); remove the line or the file"
            ) from error
        return None

    def _load_task(self, line: Line) -> None:
        """Take a task line. A second one of the same knobs changes nothing: the trials of both belong together."""
        key, space = line["task"], line["space"]
        known = self._introduced.setdefault(key, {})
        line = {**known.get(space, {}), **line, "name": known.get(space, line)["name"]}
        known[space] = line
        for ledger in self.ledgers.values():
            if (key, space) in ledger.by_space:
                ledger.by_space[key, space].anchor = line.get("anchor")
        self._ledger.tasks[key] = self._task(self._ledger, key, space)

    def _task(self, ledger: Ledger, key: str, space: str) -> TaskRecords:
        """What a ledger has of a workload with these knobs."""
        if (key, space) not in ledger.by_space:
            line = self._introduced[key][space]
            algorithms = {str(name): [int(i) for i in of] for name, of in line.get("algorithms", {}).items()}
            new = TaskRecords(line["name"], space, line, line.get("anchor"), algorithms)
            ledger.by_space[key, space] = new
            ledger.tasks[key] = new
        return ledger.by_space[key, space]

    def _told(self, ledger: Ledger, number: int, line: Line) -> TaskRecords:
        """The task that a line is about. Earlier versions did not write the space: then there may be one only."""
        spaces = self._introduced[line["task"]]
        if "space" not in line and len(spaces) > 1:
            raise RecordsError(
                f"{self.place}:{number}: the task {next(iter(spaces.values()))['name']!r} came before with several "
                f"spaces of knobs ({', '.join(spaces)}), and this line does not tell its own; keep the lines of one"
            )
        return self._task(ledger, line["task"], line.get("space", next(iter(spaces))))

    def _load_wrong(self, ledger: Ledger, number: int, line: Line) -> None:
        config = tuple(int(d) for d in line["config"])
        if line["task"] in self._introduced:
            self._told(ledger, number, line).wrong.add(config)

    def _load_event(self, ledger: Ledger, number: int, line: Line) -> Trial | None:
        task, model = self._told(ledger, number, line), line["model"]
        stamp = Stamp(model, float(line["elapsed_s"]), float(line.get("search_s", 0.0)))
        trial = None
        if line.get("kind") == "confirmation":
            again = {tuple(a["config"]): _numbers(a["seconds"]) for a in line["again"]}
            cold = {tuple(a["config"]): _numbers(a["cold"]) for a in line["again"] if "cold" in a}
            task.note(Confirmation(again, cold), stamp)
        elif line.get("kind") == "exchange":
            winner, loser = line["winner"], line["loser"]
            seconds = (_numbers(winner["network_s"]), _numbers(loser["network_s"]))
            task.note(Exchange(tuple(winner["config"]), tuple(loser["config"]), seconds, model), stamp)
        else:
            found = Trial.from_json(line)
            counts = task.add(found, stamp, line.get("origin"))
            trial = found if counts and self.tasks.get(line["task"]) is task else None
            ledger.finished.discard(model)
        ledger.spent(model, stamp.elapsed_s)
        return trial

    def _introduce_environment(self) -> None:
        if self._here is not None and self._here.id not in self.environments:
            self.environments[self._here.id] = self._here.to_line()
            self._write(self.environments[self._here.id])

    def _write(self, line: Line) -> None:
        if self._read_only:
            return
        try:
            if not self._gone:
                self._store.append(line)
                return
            why = f"{self.place} is gone"
        except StoreGone as gone:
            if self._kept is None:
                raise
            self._gone, why = True, str(gone)
        assert self._kept is not None  # otherwise the first time has ended this
        store = FileStore(self._kept)
        try:
            store.extend([*self._needed(line), line])
        finally:
            store.close()
        raise RecordsError(
            f"{why}; what was measured is kept in {self._kept}: the same command takes it in when the database is "
            f"back, and so does `chameleon records merge {self._kept} -o {self.place}`"
        )

    def _needed(self, line: Line) -> list[Line]:
        """The lines without which another one cannot be read: header, environment and task."""
        needed = [tuning_header(self.target, UNKNOWN)]
        needed += [self.environments[e] for e in (line.get("environment"),) if e in self.environments]
        return needed + [
            t for t in self._introduced.get(line.get("task", ""), {}).values() if t["space"] == line["space"]
        ]

    def _take_kept(self) -> list[tuple[int, Line]]:
        """Take in what was kept while the database was gone; returns the lines that are new here."""
        if self._kept is None or not self._kept.exists():
            return []
        store = FileStore(self._kept, read_only=True)
        try:
            lines = [line for _, line in store.read() if line.get("kind") != "tuning"]
        finally:
            store.close()
        taken = self._store.extend(lines)
        self._kept.unlink()
        logger.warning("%s: took in %d lines from %s", self.place, taken, self._kept)
        return self._store.read()


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def records_path(folder: Path) -> Path | None:
    """The file with the records of a run: in its folder, or beside it where several runs share it; None without one.

    Only a name is taken from the run's `run.json`, so that this file cannot point anywhere else.
    """
    known = str(read_json(folder / "run.json").get("records") or RECORDS)
    if "://" in known:  # a database, which the user has to name
        return None
    name = Path(known).name
    return next((path for path in (folder / name, folder.parent / name) if path.is_file()), None)
