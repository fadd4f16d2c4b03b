"""Runs in the workers of a job: builds candidates, and the one that takes a ticket misbehaves as the ticket says.

The harness drops a ticket into the control folder. The candidate that is built next takes it, and keeps it: where the
builder tries the candidate again, it misbehaves again.
"""

# TVM's reflected attributes have no static types:
# pyright: reportArgumentType=false
from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import tvm
from tvm import te, tirx
from tvm_ffi import structural_hash

from chameleon.measure.builder import default_build

CONTROL = "FAULTS_CONTROL"
"""The variable that names the control folder."""
TICKET = "candidate-"
REASONS = {
    "build-segfault": "crash",
    "build-hang": "timeout",
    "build-memory": "out-of-memory",
    "run-segfault": "crash",
    "run-hang": "timeout",
}
"""What a candidate may do, and the reason that its trial must have."""


def build(mod: tvm.IRModule, target: Any, params: Any) -> Any:
    """Build a candidate, or what is in its place."""
    how = _taken(Path(os.environ[CONTROL]), f"{structural_hash(mod) & (2**64 - 1):016x}")
    if how == "build-segfault":
        ctypes.string_at(0)
    if how == "build-hang":
        ctypes.PyDLL(None).sleep(1000)
    if how == "build-memory":
        blocks = []
        while True:
            blocks.append(b"x" * (16 << 20))
    if how == "run-segfault":
        mod = _calling("raise", 11)
    if how == "run-hang":
        mod = _calling("sleep", 1000)
    return default_build(mod, target, params)


def _taken(control: Path, candidate: str) -> str:
    """What a candidate has to do; empty: nothing but its work."""
    for ticket in control.glob(f"{TICKET}*"):
        try:
            ticket.rename(control / f"taken-{candidate}-{ticket.name.removeprefix(TICKET)}")
        except FileNotFoundError:  # another candidate was faster
            continue
    taken = next(control.glob(f"taken-{candidate}-*"), None)
    return taken.name.removeprefix(f"taken-{candidate}-") if taken else ""


def matmul() -> tvm.IRModule:
    """The kernel that the jobs tune."""
    a, b = (te.placeholder((SIZE, SIZE), name=name) for name in "ab")
    k = te.reduce_axis((0, SIZE), "k")
    c = te.compute((SIZE, SIZE), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    return tvm.IRModule({"main": te.create_prim_func([a, b, c])})


SIZE = 64


def _calling(*extern: Any) -> tvm.IRModule:
    """A kernel with the arguments of `matmul` that calls a function of the C library."""
    a, b = (te.placeholder((SIZE, SIZE), name=name) for name in "ab")
    c = te.compute(
        (SIZE, SIZE), lambda i, j: a[i, j] + b[i, j] + tirx.call_extern("int32", *extern).astype("float32"), name="c"
    )
    return tvm.IRModule({"main": te.create_prim_func([a, b, c])})
