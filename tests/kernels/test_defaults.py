"""Default schedules: an equal kernel is scheduled once, another one anew."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

import tvm
from tvm import te
from tvm.ir import IRModule

from chameleon.kernels import defaults
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.registers import Machine
from chameleon.target import parse_target

pytestmark = pytest.mark.tvm

CPU = parse_target("llvm -num-cores=2")


def product(n: int) -> IRModule:
    """A matrix product, made anew in each call."""
    a, b = te.placeholder((n, 32), name="a"), te.placeholder((32, n), name="b")
    k = te.reduce_axis((0, 32), "k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    return IRModule({"main": te.create_prim_func([a, b, c])})


def test_an_equal_kernel_is_scheduled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults._scheduled_once.cache_clear()
    made = []
    usual = defaults._scheduled
    monkeypatch.setattr(defaults, "_scheduled", lambda *given: made.append(given[1:]) or usual(*given))
    first, again = (schedule_defaults(product(16), CPU)["main"] for _ in range(2))
    tvm.ir.assert_structural_equal(first, again)
    assert len(made) == 1
    lean, other = schedule_defaults(product(16), CPU, lean=True)["main"], schedule_defaults(product(24), CPU)["main"]
    assert len(made) == 3
    for func, n, is_lean in ((lean, 16, True), (other, 24, False)):
        tvm.ir.assert_structural_equal(func, usual(product(n)["main"], is_lean, False, Machine.of(CPU)))
