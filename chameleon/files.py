"""Checks that files can be written before hours are spent on their content; reads JSON, and what a run left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from chameleon.errors import UsageError


def check_writable(path: Path | None) -> None:
    """Make sure that a file can be written before hours are spent on its content.

    Raises:
        UsageError: if it cannot.
    """
    if path is None:
        return
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); give another path") from error
    if new:
        path.unlink()


def check_picture(path: Path) -> None:
    """Make sure that a file's extension names a picture format.

    Raises:
        UsageError: if it does not.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in known:
        raise UsageError(f"cannot draw {path}: expected an extension out of {', '.join(known)}, got {path.suffix!r}")


def read_bytes(path: Path, give: str) -> bytes:
    """What a file holds.

    Args:
        give: what to give in its place, for the message.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give {give}") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, which may come from anywhere.

    Raises:
        JSONDecodeError: if it is not JSON, or nested so deeply that it cannot be read.
        UnicodeDecodeError: if bytes are no text.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that an earlier run wrote, empty if it is missing or was cut off."""
    try:
        content = parse_json(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def slug(text: str) -> str:
    """Turn a text into one that may be part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
