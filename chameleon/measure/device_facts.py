"""Asks a device at a tracker what it is: its processor, threads and memory. Nothing is taken from this machine.

A server that has the whole of TVM answers by TVM's own functions. The memory and the number of processors are asked by
a kernel of one element that calls the C library there. A server with the runtime only, such as the app for Android,
does not know its processor: then the target has to be named.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx
from tvm.target import Target

from chameleon.errors import UsageError
from chameleon.measure.builder import default_build
from chameleon.measure.remote import CONNECT_S, connect
from chameleon.measure.tracker import Grant, Tracker, TrackerError, next_device
from chameleon.target import TVM_WITHOUT, machine_of
from chameleon.workers.faults import EnvironmentFault, last_line
from chameleon.workers.pool import PoolConfig, WorkerPool

SESSION_S = 30
"""Seconds that a device may take to answer everything."""

_SYSCONF = {"linux": (84, 85, 30), "android": (97, 98, 39)}
"""The numbers of the C library for processors that are on, pages of memory, and the bytes of a page, by system."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says of itself.

    Attributes:
        threads: that TVM's kernels use there.
        triple: its architecture and system, such as `aarch64-unknown-linux-gnu`; None if it does not know.
        cpu: its processor by LLVM's name, which stands for its vector instructions; None if it does not know.
        processors: those that are on; None if it was not found out.
        memory_bytes: of the whole device; None if it was not found out.
    """

    device: str
    threads: int
    triple: str | None = None
    cpu: str | None = None
    processors: int | None = None
    memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def target(self) -> str | None:
        """The target of its CPU as JSON; None if the device does not know its processor.

        The triple is left out where it is this machine's: so the target is the same as that of a run here.
        """
        if self.triple is None or not self.cpu:
            return None
        options: dict[str, Any] = {"kind": "llvm"}
        if machine_of(self.triple) != machine_of(str(tvm.target.codegen.llvm_get_system_triple())):
            options["mtriple"] = self.triple
        return json.dumps({**options, "mcpu": self.cpu, "num-cores": self.threads})

    def __str__(self) -> str:
        parts = [self.cpu or "an unknown processor", *([self.triple] if self.triple else [])]
        parts.append(f"{self.threads} threads")
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes / 2**30:.1f} GiB of memory")
        return ", ".join(parts)

    @property
    def advice(self) -> str:
        """What to change on the device; empty if nothing."""
        if self.processors is None or self.threads >= self.processors:
            return ""
        return (
            f"TVM uses {self.threads} of the {self.processors} processors of {self.device}; to use all of them, start "
            f"its server with TVM_NUM_THREADS={self.processors}"
        )


def ask_device(tracker: str, key: str, wait_s: float = 60.0) -> DeviceFacts:
    """Ask the next free device of a key what it is.

    Args:
        wait_s: how long to wait for it.

    Raises:
        EnvironmentFault: if no device becomes free, or the one that does breaks off.
    """
    asked, until_s = Tracker(tracker), time.monotonic() + wait_s
    try:
        grant = next_device(asked, key, lambda: time.monotonic() < until_s)
    except TrackerError as error:
        raise EnvironmentFault(f"cannot ask for a device: {error}") from error
    finally:
        asked.close()
    if grant is None:
        raise EnvironmentFault(
            f"no device with the key {key!r} became free at the tracker {tracker} in {wait_s:g} s; check that nobody "
            "else holds it"
        )
    timeout_s = CONNECT_S + SESSION_S + 5.0
    config = PoolConfig(
        "chameleon.measure.device_facts:ask", timeout_s=timeout_s, retry_crash=False, without=TVM_WITHOUT
    )
    with WorkerPool(config) as pool:
        (outcome,) = pool.map([grant])
    if not outcome.ok:
        raise EnvironmentFault(
            f"the device {grant.device} does not say what it is ({last_line(outcome.message)}); is it well?"
        )
    return outcome.value


def needs_target(facts: DeviceFacts) -> UsageError:
    """The error where a device does not know its processor."""
    return UsageError(
        f"the device {facts.device} cannot be asked for its processor (its server has TVM's runtime only), so its "
        f'--target is needed, for instance --target \'{{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": '
        f'"cortex-a72", "num-cores": {facts.threads}}}\''
    )


# --- inside a worker ---


def ask(grant: Grant) -> DeviceFacts:
    """Ask a device, by functions of TVM that it may or may not have."""
    session = connect(grant, SESSION_S)
    facts = DeviceFacts(
        grant.device,
        int(session.get_function("runtime.NumThreads")()),
        _answer(session, "tvm.codegen.llvm.GetProcessTriple"),
        _answer(session, "target.llvm_get_system_cpu"),
    )
    try:
        processors, memory_bytes = _size(session, facts)
    except Exception:  # another system, no compiler there, no such function: none of it is needed
        return facts
    return dataclasses.replace(facts, processors=processors, memory_bytes=memory_bytes)


def _answer(session: Any, name: str) -> str | None:
    try:
        return str(session.get_function(name)()) or None
    except Exception:  # its TVM has no such function
        return None


def _sysconf(one: Any, number: int) -> Any:
    return te.compute((1,), lambda i: one[i] * tirx.call_extern("int64", "sysconf", number))


def _size(session: Any, facts: DeviceFacts) -> tuple[int, int]:
    """The processors and the bytes of memory of a device, from its C library."""
    target = facts.target()
    assert target is not None  # the caller takes whatever this raises
    options = json.loads(target)
    numbers = _SYSCONF[machine_of(facts.triple or "")[1]]
    one: Any = te.placeholder((1,), dtype="int64", name="one")
    asked = [_sysconf(one, number) for number in numbers]
    mod = tvm.IRModule({"main": te.create_prim_func([one, *asked])})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ask.tar"
        default_build(mod, Target(options)).export_library(str(path))
        session.upload(str(path))
    kernel = session.load_module("ask.tar")
    device = session.cpu(0)
    tensors = [tvm.runtime.tensor(np.ones(1, dtype="int64"), device) for _ in range(4)]
    kernel["main"](*tensors)
    processors, pages, page_bytes = (int(tensor.numpy()[0]) for tensor in tensors[1:])
    if min(processors, pages, page_bytes) < 1:
        raise ValueError("the C library does not know")
    return processors, pages * page_bytes
