"""What every store holds: lines, which are JSON objects. `docs/records.md` has their kinds and fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from chameleon.errors import ChameleonError
from chameleon.files import parse_json
from chameleon.store.place import Place

FORMAT = 1
UNKNOWN = "unknown"
"""The environment of what another tool measured, or of records of earlier versions that were put beside others."""
Line = dict[str, Any]


class RecordsError(ChameleonError):
    """Records cannot be used; the message says why and what to do."""


class StoreGone(RecordsError):
    """A database was there and does not answer any more; what was to be written is not in it."""


class Store(Protocol):
    """Lines of one target. Several processes may write at the same time; readers wait for none of them.

    A line is on disk when `append` or `extend` returns.
    """

    def read(self) -> list[tuple[int, Line]]:
        """The lines that were not read before, with their numbers; what this object appended is left out.

        Raises:
            RecordsError: if there is something else than lines.
        """
        ...

    def append(self, line: Line) -> None:
        """Write a new line.

        Raises:
            StoreGone: if the database does not come back in time.
            OSError: if the disk is full.
        """
        ...

    def extend(self, lines: Sequence[Line]) -> int:
        """Write those of the lines that are not there yet, all or none; returns how many. They count as not read."""
        ...

    def close(self) -> None: ...


def identity(line: Mapping[str, Any]) -> str:
    """What makes two lines the same: all that is in them. Measured twice is not the same as written twice."""
    return hashlib.sha256(canonical(line).encode()).hexdigest()[:32]


def canonical(value: Any) -> str:
    """A value as JSON, the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def tuning_header(target: str, environment: str | None = None) -> Line:
    """The first line.

    Args:
        environment: in which that was measured whose lines do not tell; None: where it is gone on with.
    """
    more = {} if environment is None else {"environment": environment}
    return {"chameleon": FORMAT, "kind": "tuning", "target": target, **more}


def parse_lines(place: Place, whole: bytes, first: int = 1) -> Iterator[Line]:
    """The objects of complete lines.

    Args:
        first: the number of the first line, for messages.

    Raises:
        RecordsError: if a line holds anything else.
    """
    for number, text in enumerate(whole.splitlines(), start=first):
        try:
            line = parse_json(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise RecordsError(
                f"{place}:{number}: expected a JSON object, got {text[:80]!r}; remove the line or the file"
            )
        yield line


def is_of(line: Mapping[str, Any], workloads: Collection[str] | None) -> bool:
    """Whether a line is about one of these workloads, or about none at all; None: all of them."""
    return workloads is None or line.get("task") is None or line["task"] in workloads
