"""What settings may be: the type of a configuration's field says its range, as in `walkers: Count = 64`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, get_args, get_type_hints

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
def _ranges(kind: type) -> list[tuple[str, Within, bool]]:
    """The fields that have a range: their names, their ranges, and whether None is allowed as well."""
    found = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        parts = (hint, *get_args(hint))
        ranges = [w for part in parts for w in getattr(part, "__metadata__", ()) if isinstance(w, Within)]
        found += [(name, ranges[0], type(None) in parts)] if ranges else []
    return found
