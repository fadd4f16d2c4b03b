"""Chooses the target whose records are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chameleon.errors import UsageError


def one_target(path: Path, found: Sequence[str], target: str | None) -> str:
    """The target whose records are taken: the one asked for, or the only one.

    Raises:
        UsageError: if there are several and none was asked for, or if there are none of the one asked for.
    """
    known = list(dict.fromkeys(found))
    if target is None and len(known) == 1:
        return known[0]
    if target in known:
        return str(target)
    raise UsageError(f"{path} holds records of the targets {'; '.join(known) or 'none'}; choose one with --target")
