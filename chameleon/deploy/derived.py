"""What TVM's `derived_object` lacks."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def as_context(cls: type[T]) -> type[T]:
    """Make a derived TVM class usable in `with`: special methods are looked up on the class, where TVM does not forward."""

    def enter(self: Any) -> Any:
        return self

    def leave(self: Any, *_: object) -> None:
        self.close()

    cls.__enter__ = enter  # type: ignore[attr-defined]
    cls.__exit__ = leave  # type: ignore[attr-defined]
    return cls
