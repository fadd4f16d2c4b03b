"""The errors that people see: the command line prints only their message and exits with their code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChameleonError(Exception):
    """Something cannot be done; the message says what was expected, what came instead and what to do."""

    exit_code = 1


class UsageError(ChameleonError):
    """What was asked for does not exist or does not fit together."""

    exit_code = 2


def unknown(what: str, name: str, names: Iterable[str], kind: type[UsageError] = UsageError) -> UsageError:
    """The error for a misspelt name; its message has the nearest known names."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else f"known: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
    )
    return kind(f"unknown {what} {name!r}; {hint}")
