"""How a broken promise is said."""

from __future__ import annotations

from collections.abc import Callable


class ContractError(AssertionError):
    """A searcher, a space or a host does not do what all of its kind promise."""


def expect(kept: object, promise: str) -> None:
    """Raises a `ContractError` with the promise, unless it was kept."""
    if not kept:
        raise ContractError(promise)


def expect_refusal(action: Callable[[], object], promise: str) -> None:
    """Raises a `ContractError` with the promise, unless the action raises a `ValueError`."""
    try:
        action()
    except ValueError:
        return
    raise ContractError(f"{promise}: expected a ValueError, got none")
