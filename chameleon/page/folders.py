"""Finds the runs below a folder or in a store, and reads what they left; a run may go on meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon.errors import ChameleonError, UsageError
from chameleon.files import read_json
from chameleon.jobs.records import LOCK, Records, records_path
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
        state: `finished`; `running` while a process writes into the folder; `interrupted` otherwise; `unfinished` for
            a model in a store, which does not tell.
        problems: why there is less to see than there should be.
    """

    folder: Path | None
    known: dict[str, Any]
    report: dict[str, Any]
    manifest: dict[str, Any]
    records: Records | None
    state: str
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name if self.folder else self.model

    @property
    def model(self) -> str:
        return str(self.known.get("model") or (self.folder.name if self.folder else "unknown"))


def find_runs(source: Place, store: Place | None = None) -> list[Run]:
    """The run in a folder, or the runs of a zoo in the folders in it, by name; or the models in a store.

    Records that cannot be read are a problem of their run; the others are there all the same.

    Args:
        store: where the records of a folder's runs are; None: in the folder.

    Raises:
        UsageError: if there is none.
        RecordsError: if a store cannot be reached.
    """
    if isinstance(source, Url):
        return _in_store(source)
    if not source.is_dir():
        raise UsageError(f"{source} is no folder; expected that of a run, such as runs/resnet18-llvm-znver4")
    found = [source] if (source / "run.json").exists() else sorted(p.parent for p in source.glob("*/run.json"))
    if not found:
        raise UsageError(
            f"{source} is not the folder of a run: neither it nor a folder in it has a run.json; "
            "give the --out of `chameleon tune`, or the `out` of a zoo"
        )
    return [_read(path, store) for path in found]


def _read(folder: Path, store: Place | None) -> Run:
    known = read_json(folder / "run.json")
    records, problems = None, []
    try:
        records = _records(folder, known, store)
    except (ChameleonError, OSError) as error:
        problems.append(f"the records cannot be read: {error}")
    state = "finished" if known.get("finished") else "running" if is_claimed(folder / LOCK) else "interrupted"
    report, manifest = read_json(folder / "report.json"), read_json(folder / "manifest.json")
    return Run(folder, known, report, manifest, records, state, tuple(problems))


def _records(folder: Path, known: dict[str, Any], store: Place | None) -> Records | None:
    """The records of a run. A database must be named by the user: a file is not trusted to name one."""
    place = store or records_path(folder)
    if place is None or (isinstance(place, Path) and not place.stat().st_size):
        if "://" in str(known.get("records")):
            raise UsageError(f"they are in {known['records']}; give it: --store URL")
        return None
    target = str(known["target"]) if isinstance(place, Url) and "target" in known else None
    keys = [t["key"] for t in known["tasks"]] if isinstance(place, Url) and "tasks" in known else None
    environment = known.get("environment")
    with Records(place, target, read_only=True, environment=environment, workloads=keys) as records:
        return records


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
