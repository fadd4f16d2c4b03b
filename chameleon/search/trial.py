"""What came of measuring one configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Status(str, Enum):
    """How a trial ended. Everything but `OK` carries no seconds."""

    OK = "ok"
    INVALID = "invalid"  # refused before anything was built: free
    BUILD_ERROR = "build_error"
    RUN_ERROR = "run_error"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Trial:
    """One measured (or refused) configuration.

    Attributes:
        config: the configuration's digits, one per knob.
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
            raise ValueError(f"an ok trial needs finite seconds > 0, got {self.seconds!r}; a failure has another status")
        if not ok and self.seconds is not None:
            raise ValueError(f"a trial with status {self.status.value!r} has no seconds, got {self.seconds!r}")
