"""The errors that people see: the command line prints only their message and exits with their code."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


class ChameleonError(Exception):
    """Something cannot be done; the message says what was expected, what came instead and what to do."""

    exit_code = 1


class UsageError(ChameleonError):
    """What was asked for does not exist or does not fit together."""

    exit_code = 2


class UnforeseenError(ChameleonError):
    """Something failed that no check foresaw: in TVM, the linker, numpy, PyTorch or a worker. Its cause is that error.

    Attributes:
        folder: where to leave the traceback; None: in the folder for temporary files.
    """

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


@contextlib.contextmanager
def doing(what: str, folder: Path | None = None) -> Iterator[None]:
    """Turn an error that no check foresaw into a message that says what was being done.

    Errors that have a message for people pass, and so do those of the system (a full disk, a missing file).

    Args:
        what: such as `compiling resnet18`.
        folder: the folder of the run, for the traceback.

    Raises:
        UnforeseenError: in place of any other error.
    """
    try:
        yield
    except (ChameleonError, OSError):
        raise
    except Exception as error:
        raise UnforeseenError(f"{what} failed: {described(error)}", folder) from error


def described(error: BaseException) -> str:
    """An error in one line: its kind, and the first line of its text."""
    text, kind = first_line(error), type(error).__name__
    return text if text == kind else f"{kind}: {text}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty, at most 300 characters; operators of TVM by name only."""
    text = re.sub(r'ir\.Op\(.*?name="([^"]+)".*?support_level=\d+\)', r"\1", str(error), flags=re.DOTALL)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def unknown(what: str, name: str, names: Iterable[str], kind: type[UsageError] = UsageError) -> UsageError:
    """The error for a misspelt name; its message has the nearest known names."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else f"known: {', '.join(known[:20]) or 'none'}{', ...' if len(known) > 20 else ''}"
    )
    return kind(f"unknown {what} {name!r}; {hint}")
