"""Building and timing candidates: the public names, and what the failures' messages mean."""

from __future__ import annotations

import re

from chameleon.deploy.builder import BuildConfig, WarmBuilder
from chameleon.deploy.remote import RemoteConfig, rpc_runner
from chameleon.deploy.runner import RunConfig, TimingConfig, WarmRunner
from chameleon.search.trial import Status

__all__ = [
    "BuildConfig",
    "RemoteConfig",
    "RunConfig",
    "TimingConfig",
    "WarmBuilder",
    "WarmRunner",
    "failure_reason",
    "failure_status",
    "rpc_runner",
]

REASONS = ("timeout", "out-of-memory", "crash", "build_error", "run_error")
_STOCK_TIMEOUT = re.compile(r"\btimeout, killed after|session has expired|TimeoutError", re.IGNORECASE)


def failure_reason(error_msg: str | None) -> str:
    """The reason a builder or runner gives: `timeout`, `out-of-memory`, `crash`, `build_error`, `run_error`; `ok` for none.

    Understands the messages of TVM's own builder and runners as well.
    """
    if error_msg is None:
        return "ok"
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
        building: whether it came from a builder, where the message does not tell (a crash).
    """
    reason = failure_reason(error_msg)
    if reason == "ok":
        return Status.OK
    if reason == "timeout":
        return Status.TIMEOUT
    if reason in ("build_error", "run_error"):
        return Status(reason)
    return Status.BUILD_ERROR if building or "LocalBuilder" in (error_msg or "") else Status.RUN_ERROR
