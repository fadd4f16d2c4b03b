"""A tiny kernel that everything should be able to build and run. Where it fails, no candidate is to blame."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import te
from tvm.s_tir import Schedule
from tvm.target import Target

N_ELEMENTS = 1024


def tiny_kernel(target: Target) -> tvm.IRModule:
    """A module whose `main` doubles 1024 floats, with threads where the target has a GPU's."""
    a: Any = te.placeholder((N_ELEMENTS,), name="a")
    b: Any = te.compute((N_ELEMENTS,), lambda i: a[i] * 2.0, name="b")
    mod = tvm.IRModule({"main": te.create_prim_func([a, b])})
    if "gpu" not in target.keys:
        return mod
    schedule = Schedule(mod)
    blocks, threads = schedule.split(schedule.get_loops(schedule.get_sblock("b"))[0], [None, 32])
    schedule.bind(blocks, "blockIdx.x")
    schedule.bind(threads, "threadIdx.x")
    return schedule.mod
