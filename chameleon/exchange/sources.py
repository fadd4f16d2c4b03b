"""Reads records of any kind as lines of ours: run folders, stores, AutoTVM's logs, MetaSchedule's databases, T4.

Nothing is unpickled. What a file is, is told from what is in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chameleon.errors import ChameleonError, UsageError
from chameleon.exchange.autotvm import lines_of_log
from chameleon.exchange.landscapes import lines_of_landscape
from chameleon.files import parse_json, read_bytes
from chameleon.jobs.records import RECORDS, records_path
from chameleon.store.lines import Line, RecordsError, parse_lines
from chameleon.store.open import lines_at
from chameleon.store.place import Place, Url

DATABASE = "database_tuning_record.json"
A_SOURCE = "a file of records or a run's folder"


def lines_of(source: Place, target: str | None = None) -> list[Line]:
    """The lines of records of a file, a folder or a store, header first.

    Args:
        target: of which to take the records, where a source holds several targets, or names none.

    Raises:
        UsageError: if there is nothing to read.
        RecordsError: if it is nothing that is known, or is broken.
    """
    if isinstance(source, Url):
        return lines_at(source, target)
    path = source
    if path.is_dir():
        if (path / DATABASE).is_file():
            return _of_database(path, target)
        path = in_folder(path)
    content = read_bytes(path, A_SOURCE)
    first = _first_object(content)
    if first.get("kind") == "tuning":
        return list(parse_lines(path, content[: content.rfind(b"\n") + 1]))
    if {"input", "config", "result"} <= first.keys():
        return lines_of_log(path, content, target)
    head = content[:4096].partition(b"\n")[0]
    if b"\t" in head and head.isascii() and not head.lstrip().startswith(b"{"):
        raise RecordsError(
            f"{path}: AutoTVM's old format, which holds pickles, is not read; "
            "convert it with `python -m tvm.autotvm.record --mode read` where it was written"
        )
    return lines_of_landscape(path, target)


def in_folder(folder: Path) -> Path:
    """The file of records that a folder stands for."""
    own = records_path(folder)
    if own is not None and ((folder / "run.json").exists() or own.parent == folder):
        return own
    found = sorted(folder.glob("trials-*.jsonl"))
    if len(found) == 1:
        return found[0]
    what = f"it has {', '.join(p.name for p in found)}; give one of them" if found else f"it has no {RECORDS}"
    raise UsageError(f"{folder} is not a run's folder and no database of MetaSchedule: {what}")


def _first_object(content: bytes) -> dict[str, Any]:
    """The JSON object in the first line; empty if there is none."""
    try:
        first = parse_json(content.partition(b"\n")[0])
    except ValueError:
        return {}
    return first if isinstance(first, dict) else {}


def _of_database(folder: Path, target: str | None) -> list[Line]:
    try:
        from chameleon.exchange.metaschedule import lines_of_database
    except ModuleNotFoundError as error:
        raise ChameleonError(
            f"a database of MetaSchedule needs {error.name} (pip install 'chameleon-tvm[tvm]')"
        ) from error
    return lines_of_database(folder, target)
