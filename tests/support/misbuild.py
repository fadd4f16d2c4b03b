"""A build function that misbehaves as the module asks; and kernels that misbehave when they run."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import tvm
from tvm import te, tirx

from chameleon.measure.builder import default_build


def build(mod: tvm.IRModule, target: Any, params: Any) -> Any:
    """Build, or fail the way the module's attribute `how` names."""
    how = str(mod.attrs["how"]) if mod.attrs and "how" in mod.attrs else "well"
    if how == "segfault":
        ctypes.string_at(0)
    if how == "hang":
        ctypes.PyDLL(None).sleep(1000)
    if how == "exit":
        os._exit(4)
    if how == "memory":
        blocks = []
        while True:
            blocks.append(b"x" * (16 << 20))
    return default_build(mod, target, params)


def kernel(*extern: Any) -> tvm.IRModule:
    """`b[i] = a[i] + f(...)` with a function of the C library, such as `("sleep", 1000)`."""
    a = te.placeholder((64,), name="a")
    b = te.compute((64,), lambda i: a[i] + tirx.call_extern("int32", *extern).astype("float32"), name="b")
    return tvm.IRModule({"main": te.create_prim_func([a, b])})


def doubling(how: str = "well") -> tvm.IRModule:
    """`b = 2 a` over 64 floats, to be built in the way named."""
    a = te.placeholder((64,), name="a")
    b = te.compute((64,), lambda i: a[i] * 2.0, name="b")
    return tvm.IRModule({"main": te.create_prim_func([a, b])}).with_attr("how", how)


def embedding(rows: int = 50) -> tvm.IRModule:
    """Rows of a table by int64 ids; an id outside the table makes the kernel never end, so that a test sees it."""
    ids, table = te.placeholder((64,), name="ids", dtype="int64"), te.placeholder((rows, 8), name="table")
    outside = tirx.call_extern("int32", "sleep", tirx.Select(tirx.any(ids[0] < 0, ids[0] >= rows), 1000, 0))
    rest = te.compute((64, 8), lambda i, j: table[ids[i], j] + outside.astype("float32"), name="rest")
    return tvm.IRModule({"main": te.create_prim_func([ids, table, rest])})


def repeated_sum(times: int) -> tvm.IRModule:
    """Sums of 256 rows of 256 numbers, each element added `times` over: slower the larger `times`, same arguments."""
    a = te.placeholder((256, 256), name="a")
    k, t = te.reduce_axis((0, 256), "k"), te.reduce_axis((0, times), "t")
    b = te.compute((256,), lambda i: te.sum(tirx.sqrt(a[i, k] + t.astype("float32")), axis=[t, k]), name="b")
    return tvm.IRModule({"main": te.create_prim_func([a, b])})
