"""What a zoo says of itself, without TVM: where its file puts runs and records, and what became of its entries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon.files import read_json
from chameleon.locks import is_claimed
from chameleon.store.place import Place, place_of

ZOO_OUT = "runs/zoo"
"""The folder of a zoo whose file names none."""
STATE, LOCK = "zoo.json", "zoo.lock"


@dataclass(frozen=True)
class EntryState:
    """One entry of a zoo.

    Attributes:
        folder: the name of its folder in that of the zoo.
        state: `waiting`, `running`, `finished` or `failed`; `interrupted` where the zoo was stopped in it.
        error: why it failed.
    """

    model: str
    target: str
    folder: str
    state: str = "waiting"
    error: str = ""


def folder_of(content: Mapping[str, Any]) -> Path:
    """The folder that a zoo file names for its runs."""
    return Path(content.get("out") or ZOO_OUT)


def store_of(content: Mapping[str, Any]) -> Place | None:
    """The store that a zoo file names for its records; None: they are in files."""
    return place_of(str(content["store"])) if content.get("store") else None


def write_state(out: Path, entries: Sequence[EntryState]) -> None:
    """Write the entries beside their place and rename: a reader sees the old ones or the new ones."""
    part = out / f".{STATE}.part"
    part.write_text(json.dumps({"entries": [dataclasses.asdict(e) for e in entries]}, indent=1) + "\n")
    part.replace(out / STATE)


def is_tuned(out: Path) -> bool:
    """Whether a process tunes the zoo in this folder now."""
    return is_claimed(out / LOCK)


def read_state(out: Path) -> list[EntryState]:
    """The entries of the zoo in a folder; none if there is no zoo. Only the last part of a folder's name counts."""
    listed = read_json(out / STATE).get("entries")
    texts = [{k: str(v) for k, v in e.items()} for e in listed if isinstance(e, dict)] if listed else []
    names = [field.name for field in dataclasses.fields(EntryState)]
    known = [EntryState(**{name: e[name] for name in names}) for e in texts if e.keys() >= set(names)]
    going_on = is_tuned(out)
    return [
        dataclasses.replace(
            e,
            folder=Path(e.folder).name,
            state="interrupted" if e.state == "running" and not going_on else e.state,
        )
        for e in known
        if Path(e.folder).name
    ]
