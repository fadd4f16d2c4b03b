"""Finds the runs below a folder, and reads what they left; nothing is locked, so a run may go on meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon.errors import UsageError
from chameleon.files import read_json
from chameleon.jobs.records import Records

RECORDS = "trials.jsonl"
QUIET_S = 120.0
"""Where the system does not list its locks, a run whose records did not change for so long is taken for ended."""


@dataclass(frozen=True)
class Run:
    """What one run left in its folder.

    Attributes:
        known: `run.json`.
        report: `report.json`; empty before the network was compiled.
        records: None before the first record.
        state: `finished`; `running` while a process writes the records; `interrupted` otherwise.
    """

    folder: Path
    known: dict[str, Any]
    report: dict[str, Any]
    manifest: dict[str, Any]
    records: Records | None
    state: str

    @property
    def model(self) -> str:
        return str(self.known.get("model", self.folder.name))


def find_runs(folder: Path) -> list[Run]:
    """The run in a folder, or the runs of a zoo in the folders in it, by name.

    Raises:
        UsageError: if there is none.
        RecordsError: if records cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; expected that of a run, such as runs/resnet18-llvm-znver4")
    found = [folder] if (folder / "run.json").exists() else sorted(p.parent for p in folder.glob("*/run.json"))
    if not found:
        raise UsageError(
            f"{folder} is not the folder of a run: neither it nor a folder in it has a run.json; "
            "give the --out of `chameleon tune`, or the `out` of a zoo"
        )
    return [_read(path) for path in found]


def _read(folder: Path) -> Run:
    known = read_json(folder / "run.json")
    path = records_path(folder, known)
    records = None
    if path is not None and path.stat().st_size:
        with Records(path, read_only=True) as records:
            pass
    state = "finished" if known.get("finished") else "running" if path and is_written(path) else "interrupted"
    return Run(folder, known, read_json(folder / "report.json"), read_json(folder / "manifest.json"), records, state)


def records_path(folder: Path, known: dict[str, Any]) -> Path | None:
    """The records of a run: in its folder, or beside it where several runs share them; None if there are none.

    Only the name is taken from `run.json`, so that a file cannot point anywhere else.
    """
    name = Path(str(known.get("records") or RECORDS)).name
    return next((path for path in (folder / name, folder.parent / name) if path.is_file()), None)


def is_written(path: Path) -> bool:
    """Whether a process holds the writer's lock on a file; asked of the system, without taking a lock."""
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        return time.time() - path.stat().st_mtime < QUIET_S
    inode = str(path.stat().st_ino)
    rows = [line.split() for line in locks.splitlines()]
    return any(
        "FLOCK" in row and "WRITE" in row and row[5].rpartition(":")[2] == inode for row in rows if len(row) > 5
    )
