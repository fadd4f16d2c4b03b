"""Options that several scripts have."""

from __future__ import annotations

from collections.abc import Collection

from chameleon.errors import UsageError, unknown


def names_of(text: str, what: str, known: Collection[str]) -> list[str]:
    """Split a list of names at its commas.

    Args:
        what: one of them is, for the messages.
        known: the names that there are.

    Raises:
        UsageError: if one does not exist, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise unknown(what, name, known)
    if not names:
        raise UsageError(f"expected the name of a {what}, or several separated by commas, got {text!r}")
    return names
