"""Turns the answers of MetaSchedule's builders and runners into trials. Nothing here imports TVM."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from chameleon.search import Status, Trial
from chameleon.workers.faults import ENVIRONMENT, cause_in

FAILED_S = 1e9
"""Run times from this on, in seconds, mean a failure.

MetaSchedule writes a failure into its database as a run time of 1e10 seconds; nothing real takes this long.
"""

MESSAGE_LENGTH = 2000
"""Characters of a failure's message that are kept."""

REASONS = ("timeout", "out-of-memory", "crash", "build_error", "run_error", "wrong_values")
_STOCK_TIMEOUT = re.compile(r"\btimeout, killed after|session has expired|TimeoutError", re.IGNORECASE)


def environment_cause(error_msg: str | None) -> str | None:
    """What is wrong with the environment, from the message of a builder or runner; None if the candidate failed.

    Such a failure says nothing about the candidate: it is no trial (see `chameleon.workers.faults`).
    """
    if error_msg is None:
        return None
    word, _, rest = error_msg.strip().partition(":")
    return rest.strip() if word == ENVIRONMENT else cause_in(error_msg)


def failure_reason(error_msg: str | None) -> str:
    """Why a candidate failed, from the message of its builder or runner.

    The result is one of `REASONS`, or `ok` where there is no message. It is `environment` where no candidate would
    have succeeded. The messages of TVM's own builder and runners are understood as well.
    """
    if error_msg is None:
        return "ok"
    if environment_cause(error_msg) is not None:
        return ENVIRONMENT
    text = re.sub(r"^\w+: An exception occurred\s*", "", error_msg.strip())
    word = text.partition(":")[0]
    if word in REASONS:
        return word
    if _STOCK_TIMEOUT.search(error_msg):
        return "timeout"
    if "Subprocess terminated" in text:
        return "crash"
    return "build_error" if error_msg.startswith("LocalBuilder") else "run_error"


def failure_status(error_msg: str | None, *, building: bool = False) -> Status:
    """The status of a trial with that message.

    Args:
        error_msg: `BuilderResult.error_msg` or `RunnerResult.error_msg`.
        building: whether the message came from a builder; it counts where the message does not tell (a crash).
    """
    reason = failure_reason(error_msg)
    if reason == "ok":
        return Status.OK
    if reason == "timeout":
        return Status.TIMEOUT
    if reason in ("build_error", "run_error"):
        return Status(reason)
    return Status.BUILD_ERROR if building or "LocalBuilder" in (error_msg or "") else Status.RUN_ERROR


def failed_trial(
    config: tuple[int, ...], error_msg: str, timings: Mapping[str, float] | None = None, *, building: bool = False
) -> Trial:
    """The trial of a candidate that was not built or not run."""
    status = failure_status(error_msg, building=building)
    return Trial(config, status, message=error_msg.strip()[:MESSAGE_LENGTH], timings=dict(timings or {}))


def timed_trial(
    config: tuple[int, ...], run_secs: Sequence[float], timings: Mapping[str, float] | None = None
) -> Trial:
    """A trial with the mean of its run times in seconds; a failed trial if that mean is not a usable time."""
    mean = float(np.mean(run_secs)) if len(run_secs) else 0.0
    if not 0 < mean < FAILED_S:
        return failed_trial(config, f"run_error: no usable run time: {list(run_secs)}", timings)
    return Trial(config, Status.OK, seconds=mean, timings=dict(timings or {}))


def measured_trial(
    config: tuple[int, ...],
    run_secs: Sequence[float] | None,
    error_msg: str | None,
    timings: Mapping[str, float] | None = None,
) -> Trial:
    """The trial of a `RunnerResult`, given by its two fields."""
    if error_msg is not None:
        return failed_trial(config, str(error_msg), timings)
    return timed_trial(config, [float(s) for s in run_secs or ()], timings)
