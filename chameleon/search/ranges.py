"""What settings may be: the type of a configuration's field says its range, as in `walkers: Count = 64`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from chameleon.errors import UsageError


@dataclass(frozen=True)
class Within:
    """A range of finite numbers, from `low` to `high`.

    Attributes:
        above: whether `low` itself is outside.
        whole: whether only integers are inside.
    """

    low: float
    high: float = math.inf
    above: bool = False
    whole: bool = False

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a number"
        low = "" if self.low == -math.inf else f" above {self.low}" if self.above else f" of at least {self.low}"
        return f"{kind}{low}{f' and at most {self.high}' if self.high < math.inf else ''}"

    def checked(self, what: str, value: Any) -> Any:
        """The value as a plain number.

        Raises:
            UsageError: if it is outside of the range; the message calls it `what`.
        """
        number: Any = value if isinstance(value, Integral if self.whole else Real) else math.nan
        inside = (number > self.low if self.above else number >= self.low) and number <= self.high
        if not inside or isinstance(value, bool) or math.isinf(number):
            raise UsageError(f"expected {what} to be {self}, got {value!r:.80}")
        return int(value) if isinstance(value, Integral) else float(value)


@dataclass(frozen=True)
class OneOf:
    """A few values, and no others."""

    values: tuple[Any, ...]

    def checked(self, what: str, value: Any) -> Any:
        """The value.

        Raises:
            UsageError: if it is none of these; the message calls it `what`.
        """
        if not any(type(value) is type(v) and value == v for v in self.values):
            raise UsageError(f"expected {what} to be {' or '.join(map(repr, self.values))}, got {value!r:.80}")
        return value


Whole = Annotated[int, Within(0, whole=True)]
Count = Annotated[int, Within(1, whole=True)]
Share = Annotated[float, Within(0, 1)]
SomeShare = Annotated[float, Within(0, 1, above=True)]
AtLeastZero = Annotated[float, Within(0)]
AboveZero = Annotated[float, Within(0, above=True)]
Finite = Annotated[float, Within(-math.inf)]


def check_ranges(config: Any) -> None:
    """Checks the settings of a dataclass whose fields have such types, and makes numpy's numbers plain.

    Raises:
        UsageError: on the first setting that is out of its range.
    """
    for name, within, may_be_none in _ranges(type(config)):
        value = getattr(config, name)
        if not (may_be_none and value is None):
            object.__setattr__(config, name, within.checked(f"{name} of {type(config).__name__}", value))


@cache
def _ranges(kind: type) -> list[tuple[str, Within | OneOf, bool]]:
    """The fields that have a range: their names, their ranges, and whether None is allowed as well."""
    found: list[tuple[str, Within | OneOf, bool]] = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        parts = (hint, *get_args(hint))
        ranges: list[Within | OneOf] = [m for p in parts for m in getattr(p, "__metadata__", ())]
        ranges += [OneOf(get_args(hint))] if get_origin(hint) is Literal else []
        ranges += [OneOf((False, True))] if hint is bool else []
        found += [(name, ranges[0], type(None) in parts)] if ranges else []
    return found
