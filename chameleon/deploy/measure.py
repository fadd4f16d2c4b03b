"""Building and timing candidates: the public names."""

from __future__ import annotations

from chameleon.deploy.builder import BuildConfig, WarmBuilder
from chameleon.deploy.remote import RemoteConfig, rpc_runner
from chameleon.deploy.runner import RunConfig, TimingConfig, WarmRunner
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
