"""Building and timing candidates: the public names."""

from __future__ import annotations

from chameleon.measure.builder import BuildConfig, WarmBuilder
from chameleon.measure.remote import RemoteConfig, rpc_runner
from chameleon.measure.runner import RunConfig, TimingConfig, WarmRunner
from tuners.outcomes import failure_reason, failure_status

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
