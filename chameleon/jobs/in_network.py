"""Where the time of a compiled network goes: its kernels inside the virtual machine, allocation, and calls.

TVM's virtual machine calls a function before and after each instruction. The clock is read there. A kernel's time in
the network is compared with its time alone, and so the network's latency with the sum of its kernels.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from chameleon.models.load import Model, input_arrays
from chameleon.target import set_threads, usable_cores

Event = tuple[str, bool, int]
"""The name of what is called, whether it begins, and the nanoseconds of the clock."""

_BUILTIN = "vm.builtin."
_ALLOCATION = tuple(
    _BUILTIN + name for name in ("alloc_storage", "alloc_tensor", "kill_object", "null_value", "ensure_zero_offset")
)

_PREPACKED = "_prepacked"
"""What TVM appends to the name of a kernel whose weights it has put into another order when the network was built."""


@dataclass(frozen=True)
class ProfileConfig:
    """How long a network is watched."""

    rounds: int = 5  # plain and watched runs take turns so many times
    runs: int = 4  # runs of each in a round, after one that is not counted
    limit_s: float = 5.0  # no round begins after this time, the first one excepted


@dataclass(frozen=True)
class Profile:
    """One run of a network: medians over the runs that were watched.

    Attributes:
        network_s: seconds of a run that was not watched.
        kernels_s: by kernel the seconds of all its calls in a run.
        calls: by kernel how often a run calls it.
        allocation_s: seconds of making and giving back storages and tensors.
    """

    network_s: float
    kernels_s: Mapping[str, float]
    calls: Mapping[str, int]
    allocation_s: float


@dataclass(frozen=True)
class Alone:
    """A kernel as it was timed alone.

    Attributes:
        task: the name of its task.
        hot_s: seconds of a run that follows others of the same kernel.
        cold_s: the same with cold caches; None if it was not timed so.
    """

    task: str
    hot_s: float
    cold_s: float | None = None


@dataclass(frozen=True)
class KernelTime:
    """One kernel in the network: microseconds of one call, and its time alone where that is known."""

    name: str
    task: str | None
    calls: int
    network_us: float
    alone_us: float | None
    cold_us: float | None


@dataclass(frozen=True)
class Breakdown:
    """Where the latency of a network goes, in milliseconds.

    The latency is the sum of `alone_ms`, `cold_ms`, `slower_ms`, `untimed_ms`, `allocation_ms` and `calls_ms`. The
    kernels' time in the network, `kernels_ms`, is the sum of the first four.

    Attributes:
        network_ms: the latency.
        alone_ms: the kernels as they were timed alone.
        cold_ms: what cold caches add to that; 0 where no kernel was timed with cold caches.
        slower_ms: what the same kernels take longer in the network, for reasons that are not known.
        untimed_ms: kernels that were never timed alone, such as those without a schedule of their own.
        allocation_ms: making and giving back storages and tensors.
        calls_ms: the rest: what the virtual machine takes for its calls and checks. Two measurements are compared, so
            it may be below zero.
        layout_ms: the part of `kernels_ms` that only moves data to other places.
        kernels: one entry for each kernel, those that take most first.
    """

    network_ms: float
    alone_ms: float
    cold_ms: float
    slower_ms: float
    untimed_ms: float
    allocation_ms: float
    calls_ms: float
    kernels_ms: float
    layout_ms: float
    kernels: list[KernelTime] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the report of a run."""
        return dataclasses.asdict(self)


def breakdown(profile: Profile, alone: Mapping[str, Alone], moves: Collection[str] = ()) -> Breakdown:
    """Compare the kernels in the network with their times alone.

    Args:
        alone: by kernel, for those that were timed alone.
        moves: the kernels that only move data.
    """
    timed = [name for name in profile.kernels_s if name in alone]
    hot_s = sum(profile.calls[n] * alone[n].hot_s for n in timed)
    cold_s = sum(profile.calls[n] * ((alone[n].cold_s or alone[n].hot_s) - alone[n].hot_s) for n in timed)
    timed_s = sum(profile.kernels_s[n] for n in timed)
    kernels_s = sum(profile.kernels_s.values())
    seconds = {
        "network_ms": profile.network_s,
        "alone_ms": hot_s,
        "cold_ms": cold_s,
        "slower_ms": timed_s - hot_s - cold_s,
        "untimed_ms": kernels_s - timed_s,
        "allocation_ms": profile.allocation_s,
        "calls_ms": profile.network_s - kernels_s - profile.allocation_s,
        "kernels_ms": kernels_s,
        "layout_ms": sum(s for name, s in profile.kernels_s.items() if name in moves),
    }
    largest = sorted(profile.kernels_s, key=lambda name: -profile.kernels_s[name])
    return Breakdown(
        **{name: value * 1e3 for name, value in seconds.items()},
        kernels=[_kernel_time(name, profile, alone.get(name)) for name in largest],
    )


def _kernel_time(name: str, profile: Profile, alone: Alone | None) -> KernelTime:
    calls = profile.calls[name]
    network_us = profile.kernels_s[name] / calls * 1e6
    if alone is None:
        return KernelTime(name, None, calls, network_us, None, None)
    cold_us = None if alone.cold_s is None else alone.cold_s * 1e6
    return KernelTime(name, alone.task, calls, network_us, alone.hot_s * 1e6, cold_us)


def profile_network(
    model: Model, target: Target, executable: Any, config: ProfileConfig | None = None, *, seed: int = 0
) -> Profile:
    """Run a compiled network for the CPU, plain and watched in turns, and see where its time goes."""
    with ThreadPoolExecutor(1) as fresh:  # a new thread for the reason given in `bench_model`
        return fresh.submit(_profile, model, target, executable, config or ProfileConfig(), seed).result()


def _profile(model: Model, target: Target, executable: Any, config: ProfileConfig, seed: int) -> Profile:
    set_threads(int(target.attrs.get("num-cores", usable_cores())))
    inputs = [tvm.runtime.tensor(x) for x in input_arrays(model, np.random.default_rng(seed))]
    plain, watched = (relax.VirtualMachine(executable, tvm.cpu()) for _ in range(2))
    events: list[Event] = []

    def note(_function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> None:
        events.append((name.removesuffix(_PREPACKED), before, time.perf_counter_ns()))

    watched.set_instrument(note)
    network_s: list[float] = []
    found: list[dict[str, tuple[float, int]]] = []
    begin_s = time.monotonic()
    for number in range(config.rounds):
        if number and time.monotonic() - begin_s > config.limit_s:
            break
        plain["main"](*inputs)
        for _ in range(config.runs):
            start_s = time.perf_counter()
            plain["main"](*inputs)
            network_s.append(time.perf_counter() - start_s)
        watched["main"](*inputs)
        for _ in range(config.runs):
            events.clear()
            watched["main"](*inputs)
            found.append(spent(events))
    return summary(network_s, found)


def spent(events: Sequence[Event]) -> dict[str, tuple[float, int]]:
    """The seconds and the number of calls of everything that was called in one run, by name.

    What a call calls in turn counts for that only. The shortest of all calls does nothing, so its time is the
    instrument's own: it is taken off each call.
    """
    calls: list[tuple[str, int]] = []
    open_calls: list[tuple[int, int]] = []  # when each began, and what the calls inside it took
    for name, before, now in events:
        if before:
            open_calls.append((now, 0))
            continue
        begin, inside = open_calls.pop()
        calls.append((name, now - begin - inside))
        if open_calls:
            outer, so_far = open_calls[-1]
            open_calls[-1] = (outer, so_far + now - begin)
    own = min((ns for _, ns in calls), default=0)
    nanoseconds: Counter[str] = Counter()
    for name, ns in calls:
        nanoseconds[name] += ns - own
    counts = Counter(name for name, _ in calls)
    return {name: (nanoseconds[name] * 1e-9, n) for name, n in counts.items()}


def summary(network_s: Sequence[float], found: Sequence[Mapping[str, tuple[float, int]]]) -> Profile:
    """The medians over several runs, given what `spent` found in each."""
    names = list(dict.fromkeys(name for run in found for name in run))
    seconds = {name: statistics.median(run.get(name, (0.0, 0))[0] for run in found) for name in names}
    kernels = [name for name in names if not name.startswith(_BUILTIN)]
    return Profile(
        statistics.median(network_s),
        {name: seconds[name] for name in kernels},
        {name: max(run.get(name, (0.0, 0))[1] for run in found) for name in kernels},
        sum(seconds.get(name, 0.0) for name in _ALLOCATION),
    )
