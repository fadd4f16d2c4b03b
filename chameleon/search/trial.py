"""A trial: the outcome of measuring one configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from numbers import Real
from typing import Any


class Status(str, Enum):
    """How a trial ended. Only a trial that ended `OK` has seconds, or a score."""

    OK = "ok"
    INVALID = "invalid"  # refused before anything was built: free
    BUILD_ERROR = "build_error"
    RUN_ERROR = "run_error"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Trial:
    """One measured (or refused) configuration.

    A search makes the seconds small. To make something else large, such as operations a second, give it as the
    `score` of every trial in place of seconds; to make it small, give its negative.

    Attributes:
        config: the configuration's digits, one for each knob.
        status: how it ended.
        seconds: mean run time in seconds. `OK` trials have seconds > 0 or a score, others have neither.
        message: why it failed, for people.
        timings: seconds spent on the trial's parts, such as `{"build": 0.2, "run": 0.3}`.
        score: any finite number; more is better.

    Raises:
        ValueError: if a digit is not an integer, or seconds and score do not fit the status.
    """

    config: tuple[int, ...]
    status: Status
    seconds: float | None = None
    message: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    score: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", _digits(self.config))
        object.__setattr__(self, "status", Status(self.status))
        for name in ("seconds", "score"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        object.__setattr__(self, "timings", {str(k): _number(f"timing {k}", v) for k, v in self.timings.items()})
        given = (self.seconds is not None) + (self.score is not None)
        if self.status is not Status.OK:
            if given:
                raise ValueError(
                    f"a trial with status {self.status.value!r} has no seconds and no score, got seconds="
                    f"{self.seconds!r} and score={self.score!r}"
                )
            return
        seconds_fit = self.seconds is None or 0 < self.seconds < math.inf
        if given != 1 or not seconds_fit or not math.isfinite(self.score or 0.0):
            raise ValueError(
                f"a trial with status 'ok' needs finite seconds > 0, or a finite score in place of them, got seconds="
                f"{self.seconds!r} and score={self.score!r}; give a failed trial another status"
            )

    @property
    def cost(self) -> float:
        """What a search makes small: the seconds, or minus the score; infinity if the trial failed."""
        if self.score is not None:
            return -self.score
        return math.inf if self.seconds is None else self.seconds

    def to_json(self) -> dict[str, Any]:
        """The trial as it stands in one line of a records file (docs/records.md)."""
        line: dict[str, Any] = {"config": list(self.config), "status": self.status.value}
        if self.seconds is not None:
            line["seconds"] = self.seconds
        if self.score is not None:
            line["score"] = self.score
        if self.message:
            line["message"] = self.message
        if self.timings:
            line["timings"] = self.timings
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Trial:
        """The inverse of `to_json`; other fields of the line are ignored.

        Raises:
            ValueError: if the line is not a trial: a field is missing or has a wrong type.
        """
        try:
            return cls(
                config=tuple(line["config"]),
                status=Status(line["status"]),
                seconds=line.get("seconds"),
                message=str(line.get("message", "")),
                timings=dict(line.get("timings", {})),
                score=line.get("score"),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a trial: expected config, status and seconds, got {dict(line)!r:.200}") from error


def _digits(config: Any) -> tuple[int, ...]:
    """The digits as plain integers; numpy's are taken, and floats that are whole."""
    try:
        digits = tuple(int(d) for d in config)
        whole = all(d == given for d, given in zip(digits, config, strict=True))
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(
            "expected a configuration as a row of integer digits, such as the rows that `ask` returns, "
            f"got {config!r:.80}"
        )
    return digits


def _number(name: str, value: Any) -> float | None:
    """A plain number of what was given: a number of any library, or an array that holds just one."""
    try:
        return None if value is None else float(value if isinstance(value, Real) else value.item())
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"expected a number of at most 1.8e308 as {name} of a trial, got {value!r:.80}") from error
