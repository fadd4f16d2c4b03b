"""One job with its folders, and what is looked at after a fault."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from chameleon.store.lines import RecordsError
from chameleon.store.open import lines_at
from chameleon.store.place import Url
from scripts.faults.hooks import CONTROL
from scripts.faults.job import TIMEOUT_S
from tuners.outcomes import failure_reason

ROOT = Path(__file__).parents[2]
START_S = 240.0
"""Seconds that a job may take until its first trial, on a machine that is busy."""
GRACE_S = 5.0
"""Seconds that may pass beyond a time-out, and after which nothing of a job may be left."""
MARK = "FAULTS_MARK"
_LINE, _END, _SILENCE = "line", "end", "silence"
TOOLS = ("g++", "gcc", "ld", "as", "cc", "c++", "ld.bfd", "tar", "gzip", "ar", "git", "python3", "sh", "rm")


@dataclass
class Found:
    """What went wrong after the injections of one fault."""

    injections: int = 0
    lost: int = 0  # finished trials that are not on record
    hangs: int = 0
    left: int = 0  # processes, and entries of the temporary folder
    lies: int = 0  # failed trials that no candidate is to blame for
    stuck: int = 0  # jobs that did not end well after the fault was over
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


class Case:
    """The folders of a job, and its process.

    Args:
        root: an empty folder.
        trials: that the job makes.
        bound_s: no longer may pass between two events of a job after a fault.
    """

    def __init__(self, root: Path, trials: int, bound_s: float = TIMEOUT_S + GRACE_S) -> None:
        self.run, self.control, self.tmp, self.bin = (root / name for name in ("run", "control", "tmp", "bin"))
        for folder in (self.run, self.control, self.tmp, self.bin):
            folder.mkdir()
        for name in TOOLS:
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)
        self.trials, self.bound_s = trials, bound_s
        self.arguments: Sequence[str] = ()  # more of the job
        self.mark = uuid.uuid4().hex
        self.told: list[dict[str, Any]] = []  # the trials that a job has told of, which are on disk then
        self.reasons: Counter[str] = Counter()  # of failures that are candidates' own
        self.preload: str | None = None
        self.around: Any = None  # what its fault needs around it: a fleet, a database server, a cluster
        self.store: Url | None = None  # a database for the records, in the place of a file

    @property
    def records(self) -> Path:
        return self.run / "trials.jsonl"

    @property
    def clock(self) -> Path:
        """The file with the seconds by which the clock of the job is off."""
        return self.control / "clock"

    def start(self) -> Job:
        """Start the job."""
        environment = {**os.environ, "TMPDIR": str(self.tmp), "PATH": str(self.bin), MARK: self.mark}
        environment |= {CONTROL: str(self.control), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if self.preload:
            environment |= {"LD_PRELOAD": self.preload, "FAULTS_CLOCK": str(self.clock)}
        command = [sys.executable, "-m", "scripts.faults.job", str(self.run), "--trials", str(self.trials)]
        return Job(self, [*command, *self.arguments], environment)

    def on_record(self) -> list[dict[str, Any]]:
        """The trials in the records, torn lines left out; none while a database is gone."""
        if self.store is not None:
            with suppress(RecordsError):
                return _trials(lines_at(self.store))
            return []
        content = self.records.read_bytes() if self.records.exists() else b""
        return _trials(json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n"))

    def family(self) -> list[psutil.Process]:
        """All processes that this case's jobs have started and that live."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def check(self, found: Found) -> None:
        """Compare what was told with what is on record, and see what is left. The last job has ended."""
        kept = {json.dumps(t["config"]): t for t in self.on_record()}
        for trial in self.told:
            line = kept.get(json.dumps(trial["config"]), {})
            if (line.get("status"), line.get("seconds")) != (trial["status"], trial.get("seconds")):
                found.lost += 1
                found.notes.append(f"lost: {trial}")
        if len(self.on_record()) != len(kept):
            found.lost += 1
            found.notes.append("a configuration is on record twice")
        allowed = Counter(self.reasons)
        for line in kept.values():
            if line.get("seconds") is None:
                reason = failure_reason(line.get("message", ""))
                allowed[reason] -= 1
                if allowed[reason] < 0:
                    found.lies += 1
                    found.notes.append(f"lie: {line.get('message', '')[:200]}")
        self.check_left(found, temporary=True)

    def check_left(self, found: Found, *, temporary: bool) -> None:
        """Count processes that are left, and what is in the temporary folder; end the processes."""
        deadline_s = time.monotonic() + GRACE_S
        while (alive := self.family()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        found.left += len(alive)
        found.notes += [f"left: {process}" for process in alive]
        for process in alive:
            process.kill()
        if temporary:
            entries = [path.name for path in self.tmp.iterdir()]
            found.left += len(entries)
            found.notes += [f"left: {name}" for name in entries]


def _trials(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "config" in line and "kind" not in line]


class Job:
    """A running job, and what it tells."""

    def __init__(self, case: Case, command: list[str], environment: dict[str, str]) -> None:
        self._case = case
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._err: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._err.extend, args=(self.process.stderr,), daemon=True).start()
        self.last: dict[str, Any] = {}  # event
        self.made = 0  # trials that this job has told of

    @property
    def said(self) -> str:
        """What it wrote to its standard error."""
        return "".join(self._err)

    def wait_for_trials(self, n: int) -> bool:
        """Wait until so many trials more were told of; false if the job ends before, or does not start."""
        goal = self.made + n
        while self.made < goal:
            if self._hear(START_S) is not _LINE:
                return False
        return True

    def wait(self, found: Found) -> int:
        """Wait for the end; a silence that is too long counts as a hang, and ends the job."""
        bound_s = self._case.bound_s
        while (heard := self._hear(bound_s)) is _LINE:
            pass
        try:
            if heard is _SILENCE:
                raise subprocess.TimeoutExpired(self.process.args, bound_s)
            return self.process.wait(timeout=bound_s)
        except subprocess.TimeoutExpired:
            found.hangs += 1
            found.notes.append(f"silent for more than {bound_s:g} s after {self.last}")
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        """End the job's own process, and nothing else, without a warning."""
        self.process.send_signal(signal.SIGKILL)

    def _hear(self, limit_s: float) -> str:
        """Take the next line; says whether there was one, the end, or silence."""
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            return _SILENCE
        if line is None:
            self._lines.put(None)  # it stays at its end
            return _END
        if line.endswith("\n"):
            self.last = json.loads(line)
            if self.last["event"] == "trial":
                self.made += 1
                self._case.told.append(self.last)
        return _LINE

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)
