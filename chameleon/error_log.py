"""Leaves the traceback of an error in a file, for whoever wants to know more than its message."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import chameleon
from chameleon.store.place import word_without_password


def write_log(text: str, argv: Sequence[str], folder: Path | None) -> Path | None:
    """Write a traceback, with the command that led to it.

    Args:
        folder: where; None, or a folder that cannot be written to: the folder for temporary files.

    Returns:
        The file; None if it could not be written anywhere.
    """
    now = datetime.now(timezone.utc)
    head = f"chameleon-tvm {chameleon.__version__}, Python {platform.python_version()}, {now.isoformat()}"
    content = f"{head}\n{' '.join((Path(sys.argv[0]).name, *map(word_without_password, argv)))}\n\n{text}"
    for place, prefix in ((folder, "error-"), (Path(tempfile.gettempdir()), "chameleon-error-")):
        if place is None or not place.is_dir():
            continue
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=place, prefix=f"{prefix}{now:%Y%m%d-%H%M%S}-", suffix=".log", delete=False
            ) as file:
                file.write(content)
        except OSError:
            continue
        return Path(file.name)
    return None
