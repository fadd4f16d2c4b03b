"""Finds the runs below a folder, and reads what they left; nothing is locked, so a run may go on meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon.errors import UsageError
from chameleon.files import read_json
from chameleon.jobs.records import Records, is_written, records_path


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
    path = records_path(folder)
    records = None
    if path is not None and path.stat().st_size:
        with Records(path, read_only=True) as records:
            pass
    state = "finished" if known.get("finished") else "running" if path and is_written(path) else "interrupted"
    return Run(folder, known, read_json(folder / "report.json"), read_json(folder / "manifest.json"), records, state)
