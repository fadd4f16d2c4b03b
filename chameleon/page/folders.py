"""Finds the runs below a folder, and reads what they left; nothing is locked, so a run may go on meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon.errors import UsageError
from chameleon.files import read_json
from chameleon.jobs.records import Records, RecordsError, is_written, records_path
from chameleon.jobs.zoo_state import EntryState, read_state


@dataclass(frozen=True)
class Run:
    """What one run left in its folder.

    Attributes:
        known: `run.json`.
        report: `report.json`; empty before the network was compiled.
        records: None before the first record, or where they cannot be read.
        state: `finished`; `running` while a process writes the records; `interrupted` otherwise. In a zoo also
            `waiting` and `failed`.
        problem: why it failed, or why its records cannot be read; empty if nothing is wrong.
    """

    folder: Path
    known: dict[str, Any]
    report: dict[str, Any]
    manifest: dict[str, Any]
    records: Records | None
    state: str
    problem: str = ""

    @property
    def model(self) -> str:
        return str(self.known.get("model", self.folder.name))


def find_runs(folder: Path) -> list[Run]:
    """The run in a folder, or the runs of a zoo in the folders in it, see `RunReader.find`."""
    return RunReader().find(folder)


class RunReader:
    """Reads runs. Records that did not change since the last look, or that several runs share, are read once."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[tuple[int, int], Records | None, str]] = {}

    def find(self, folder: Path) -> list[Run]:
        """The run in a folder; or the runs of a zoo, in the order of the zoo, then by name.

        Records of a zoo that cannot be read are a problem of their runs only.

        Raises:
            UsageError: if there is no run.
            RecordsError: if the records of the only run cannot be read.
        """
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder; expected that of a run, such as runs/resnet18-llvm-znver4")
        if (folder / "run.json").exists():
            run = self._run(folder, None)
            if run.problem:
                raise RecordsError(run.problem)
            return [run]
        entries = {folder / entry.folder: entry for entry in read_state(folder)}
        found = [*entries, *sorted({p.parent for p in folder.glob("*/run.json")} - entries.keys())]
        if not found:
            raise UsageError(
                f"{folder} is not the folder of a run: neither it nor a folder in it has a run.json; "
                "give the --out of `chameleon tune`, or the `out` of a zoo"
            )
        return [self._run(path, entries.get(path)) for path in found]

    def _run(self, folder: Path, entry: EntryState | None) -> Run:
        known = read_json(folder / "run.json")
        if entry and not known:
            known = {"model": Path(entry.model).stem, "target": entry.target}
        path = records_path(folder)
        records, problem = self._records(path) if path else (None, "")
        state = "finished" if known.get("finished") else "running" if path and is_written(path) else "interrupted"
        if entry:
            state, problem = entry.state, "; ".join(filter(None, (entry.error, problem)))
        report, manifest = read_json(folder / "report.json"), read_json(folder / "manifest.json")
        return Run(folder, known, report, manifest, records, state, problem)

    def _records(self, path: Path) -> tuple[Records | None, str]:
        """The records in a file, and why they cannot be read."""
        now = path.stat()
        stamp = (now.st_size, now.st_mtime_ns)
        if path not in self._read or self._read[path][0] != stamp:
            self._read[path] = (stamp, *_opened(path))
        return self._read[path][1:]


def _opened(path: Path) -> tuple[Records | None, str]:
    if not path.stat().st_size:
        return None, ""
    try:
        with Records(path, read_only=True) as records:
            return records, ""
    except (RecordsError, OSError) as error:
        return None, str(error)
