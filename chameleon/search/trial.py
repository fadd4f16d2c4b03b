"""A trial: the outcome of measuring one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Status(str, Enum):
    """How a trial ended. Only a trial that ended `OK` has seconds."""

    OK = "ok"
    INVALID = "invalid"  # refused before anything was built: free
    BUILD_ERROR = "build_error"
    RUN_ERROR = "run_error"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Trial:
    """One measured (or refused) configuration.

    Attributes:
        config: the configuration's digits, one for each knob.
        status: how it ended.
        seconds: mean run time in seconds; given exactly when `status` is `OK`.
        message: why it failed, for people.
        timings: seconds spent on the trial's parts, such as `{"build": 0.2, "run": 0.3}`.
    """

    config: tuple[int, ...]
    status: Status
    seconds: float | None = None
    message: str = ""
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", tuple(int(d) for d in self.config))
        object.__setattr__(self, "status", Status(self.status))
        ok = self.status is Status.OK
        if ok and not (self.seconds is not None and 0 < self.seconds < float("inf")):
            raise ValueError(
                f"a trial with status 'ok' needs finite seconds > 0, got {self.seconds!r}; "
                "give a failed trial another status"
            )
        if not ok and self.seconds is not None:
            raise ValueError(f"a trial with status {self.status.value!r} has no seconds, got {self.seconds!r}")

    def to_json(self) -> dict[str, Any]:
        """The trial as it stands in one line of a records file (docs/records.md)."""
        line: dict[str, Any] = {"config": list(self.config), "status": self.status.value}
        if self.seconds is not None:
            line["seconds"] = self.seconds
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
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a trial: expected config, status and seconds, got {dict(line)!r:.200}") from error
