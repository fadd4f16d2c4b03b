"""Checks that files can be written, made before hours are spent on their content."""

from __future__ import annotations

from pathlib import Path

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
