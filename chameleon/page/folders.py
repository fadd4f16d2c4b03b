"""Finds the runs below a folder or in a store, and reads what they left; a run may go on meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon.errors import ChameleonError, UsageError
from chameleon.files import read_json
from chameleon.jobs.records import LOCK, Records, records_path
from chameleon.jobs.zoo_state import EntryState, read_state
from chameleon.locks import is_claimed
from chameleon.store.open import targets_of
from chameleon.store.place import Place, Url


@dataclass(frozen=True)
class Run:
    """What one run left in its folder, or in a store.

    Attributes:
        folder: None for a model in a store.
        known: `run.json`.
        report: `report.json`; empty before the network was compiled.
        records: None before the first record, and where they cannot be read.
        state: `finished`; `running` while a process writes into the folder; `interrupted` otherwise. In a zoo also
            `waiting` and `failed`; `unfinished` for a model in a store, which does not tell.
        problem: why it failed, or why its records cannot be read; empty if nothing is wrong.
    """

    folder: Path | None
    known: dict[str, Any]
    report: dict[str, Any]
    manifest: dict[str, Any]
    records: Records | None
    state: str
    problem: str = ""

    @property
    def name(self) -> str:
        return self.folder.resolve().name if self.folder else self.model

    @property
    def model(self) -> str:
        return str(self.known.get("model") or (self.folder.name if self.folder else "unknown"))


def find_runs(source: Place, store: Place | None = None) -> list[Run]:
    """The run in a folder, the runs of a zoo in the folders in it, or the models in a store, see `RunReader.find`."""
    return RunReader(store).find(source)


class RunReader:
    """Reads runs. A file of records that did not change since the last look, or that runs share, is read once.

    Args:
        store: where the records of a folder's runs are; None: in the folder.
    """

    def __init__(self, store: Place | None = None) -> None:
        self._store = store
        self._read: dict[tuple[Path, str | None], tuple[tuple[int, int], Records]] = {}

    def find(self, source: Place) -> list[Run]:
        """The run in a folder; the runs of a zoo, in the order of the zoo, then by name; or the models in a store.

        Records that cannot be read are a problem of their run; the others are there all the same.

        Raises:
            UsageError: if there is no run.
            RecordsError: if a store cannot be reached.
        """
        if isinstance(source, Url):
            return _in_store(source)
        if not source.is_dir():
            raise UsageError(f"{source} is no folder; expected that of a run, such as runs/resnet18-llvm-znver4")
        if (source / "run.json").exists():
            return [self._run(source, None)]
        entries = {source / entry.folder: entry for entry in read_state(source)}
        found = [*entries, *sorted({p.parent for p in source.glob("*/run.json")} - entries.keys())]
        if not found:
            raise UsageError(
                f"{source} is not the folder of a run: neither it nor a folder in it has a run.json; "
                "give the --out of `chameleon tune`, or the `out` of a zoo"
            )
        return [self._run(path, entries.get(path)) for path in found]

    def _run(self, folder: Path, entry: EntryState | None) -> Run:
        known = read_json(folder / "run.json")
        records, problem = None, ""
        try:
            records = self._records(folder, known)
        except (ChameleonError, OSError) as error:
            problem = f"the records cannot be read: {error}"
        state = "finished" if known.get("finished") else "running" if is_claimed(folder / LOCK) else "interrupted"
        if entry:
            known = known or {"model": Path(entry.model).stem, "target": entry.target}
            state, problem = entry.state, "; ".join(filter(None, (entry.error, problem)))
        report, manifest = read_json(folder / "report.json"), read_json(folder / "manifest.json")
        return Run(folder, known, report, manifest, records, state, problem)

    def _records(self, folder: Path, known: dict[str, Any]) -> Records | None:
        """The records of a run. A database must be named by the user: a file is not trusted to name one."""
        place = self._store or records_path(folder)
        if not known and isinstance(place, Url):  # it has not begun, and what others measured is not its own
            return None
        if place is None or (isinstance(place, Path) and not place.stat().st_size):
            if "://" in str(known.get("records")):
                raise UsageError(f"they are in {known['records']}; give it: --store URL")
            return None
        environment = known.get("environment")
        if isinstance(place, Path):
            return self._in_file(place, environment)
        target = str(known["target"]) if "target" in known else None
        keys = [t["key"] for t in known["tasks"]] if "tasks" in known else None
        with Records(place, target, read_only=True, environment=environment, workloads=keys) as records:
            return records

    def _in_file(self, path: Path, environment: str | None) -> Records:
        now = path.stat()
        stamp = (now.st_size, now.st_mtime_ns)
        seen = self._read.get((path, environment))
        if seen is None or seen[0] != stamp:
            with Records(path, read_only=True, environment=environment) as records:
                seen = self._read[path, environment] = (stamp, records)
        return seen[1]


def _in_store(store: Url) -> list[Run]:
    found = []
    for target in targets_of(store):
        with Records(store, target, read_only=True) as everything:
            for records in map(everything.within, everything.measured_in):
                for model in sorted(records.elapsed_s):
                    state = "finished" if model in records.finished else "unfinished"
                    found.append(Run(None, {"model": model, "target": target}, {}, {}, records, state))
    if not found:
        raise UsageError(f"{store} holds no trials")
    return found
