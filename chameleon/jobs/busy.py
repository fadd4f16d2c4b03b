"""Finds out whether something else used the machine while times were measured."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from chameleon.cores import allowed_cores
from chameleon.wording import range_text


@dataclass(frozen=True)
class BusyLimits:
    """From when on people are warned that measured times may be off."""

    others: float = 0.15  # share of the cores' time that other programs used
    stolen: float = 0.03  # share of the cores' time that the host gave to other virtual machines
    load: float = 1.5  # load average for each core; counts only where the cores' times cannot be read
    spread: float = 0.25  # distance of the quartiles of a latency, relative to its median
    shortest_s: float = 0.5  # the system's clocks tick too slowly for anything shorter


@dataclass(frozen=True)
class Activity:
    """What the cores that this process may use have done so far, in seconds of one core."""

    wall_s: float
    busy_s: float
    stolen_s: float
    own_s: float  # this process and those that it started
    load: float  # the load average of the last minute
    cores: int


def activity() -> Activity:
    """Read the system's clocks."""
    cores = allowed_cores()
    times = [t for core, t in enumerate(psutil.cpu_times(percpu=True)) if core in cores]
    return Activity(
        wall_s=time.monotonic(),
        busy_s=sum(sum(getattr(t, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq")) for t in times),
        stolen_s=sum(getattr(t, "steal", 0.0) for t in times),
        own_s=_own_s(),
        load=os.getloadavg()[0],
        cores=len(cores),
    )


def _own_s() -> float:
    """Processor time of this process and of all that it started, those that have ended included."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended; its parent counts its time
            total += sum(process.cpu_times()[:4])
    return total


def busy_warnings(what: str, before: Activity, after: Activity, limits: BusyLimits = BusyLimits()) -> list[str]:
    """What disturbed a measurement between two readings, a sentence each.

    Args:
        what: what was measured, such as `tuning`.
    """
    available_s = (after.wall_s - before.wall_s) * after.cores
    if after.wall_s - before.wall_s < limits.shortest_s:
        return []
    if after.busy_s <= before.busy_s:  # this system does not show its cores' times
        if after.load <= limits.load * after.cores:
            return []
        return [f"the machine was busy during {what}: load average {after.load:.1f} on {after.cores} cores"]
    found = []
    others = (after.busy_s - before.busy_s - (after.own_s - before.own_s)) / available_s
    if others > limits.others:
        found.append(f"the machine was busy during {what}: other programs used {min(others, 1):.0%} of the cores")
    stolen = (after.stolen_s - before.stolen_s) / available_s
    if stolen > limits.stolen:
        found.append(f"during {what} the host took {stolen:.0%} of the cores away from this virtual machine")
    return found


def spread_warnings(
    quartiles_ms: Mapping[str, tuple[float, float, float]], limits: BusyLimits = BusyLimits()
) -> list[str]:
    """Which latencies cannot be relied on, a sentence each.

    Args:
        quartiles_ms: for each name the lower quartile, the median and the upper quartile in milliseconds.
    """
    return [
        f"the latency of the {name} network spreads by {(high - low) / median:.0%} of its median "
        f"(quartiles {range_text(low, high)})"
        for name, (low, median, high) in quartiles_ms.items()
        if high - low > limits.spread * median
    ]
