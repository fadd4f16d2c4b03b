"""Default schedules for kernels that nobody tuned: far from the best, but many times faster than the plain loops."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from tvm import relax
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import dlight as dl
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.target import Target
from tvm.tirx import PrimFunc
from tvm_ffi import StructuralKey

from chameleon.kernels.in_place import with_rolling
from chameleon.kernels.lean import lean_schedule, rolling_schedule
from chameleon.kernels.loops import inlined, is_scheduled, schedule_block
from chameleon.kernels.optional import if_possible
from chameleon.kernels.registers import Machine, register_schedule
from chameleon.kernels.scratch import lowered_to_allocations


def schedule_defaults(mod: IRModule, target: Target, *, lean: bool = False, packed: bool = False) -> IRModule:
    """Give a schedule to each kernel that has none; a kernel that cannot be scheduled stays as it is.

    Args:
        lean: make schedules that need little memory, on CPUs only. They keep no padded copy of the input, and no
            tensor between a reduction and what follows it.
        packed: make schedules that begin by packing constant weights, on CPUs only. TVM's `SplitLayoutRewritePreproc`
            has to follow, so that this is done once, at compile time.
    """
    if target.kind.name != "llvm":
        gpu = dl.gpu
        rules = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()]
        with target:
            return dl.ApplyDefaultSchedule(*rules)(mod)
    scheduled, machine = dict(mod.functions_items()), Machine.of(target)
    for var, func in scheduled.items():
        if isinstance(func, PrimFunc) and not is_scheduled(func):
            scheduled[var] = _scheduled_once(StructuralKey(func), lean, packed, machine)
    return relax.transform.DeadCodeElimination()(IRModule(scheduled, attrs=mod.attrs))


@lru_cache(maxsize=1024)
def _scheduled_once(kernel: StructuralKey, lean: bool, packed: bool, machine: Machine) -> PrimFunc:
    """The schedule of a kernel, the same for equal ones: a search of rewrites meets most kernels many times."""
    return _scheduled(kernel.key, lean, packed, machine)


def _scheduled(func: PrimFunc, lean: bool, packed: bool, machine: Machine) -> PrimFunc:
    def scheduled(what: str, schedule: Callable[[PrimFunc], PrimFunc | None]) -> PrimFunc | None:
        return if_possible(what, "a kernel", lambda: _that_lowers(schedule(func)), None)

    if lean:
        found = scheduled("a lean schedule", lean_schedule)
    else:
        found = scheduled("a tile of registers", partial(register_schedule, machine=machine, packed=packed))
    found = found or scheduled("a default schedule", _cpu_schedule) or func
    rolling = scheduled("a row-by-row schedule", rolling_schedule) if lean else None
    return found if rolling is None else with_rolling(found, rolling)


def _that_lowers(func: PrimFunc | None) -> PrimFunc | None:
    """The kernel itself; raises if it cannot be lowered: not every schedule that can be made can be built."""
    if func is not None:
        lowered_to_allocations(func)
    return func


def _cpu_schedule(func: PrimFunc) -> PrimFunc:
    """A simple schedule for CPUs.

    Element-wise producers are inlined. Outer loops run in parallel. The innermost spatial loop is vectorised and
    stands inside the reduction loops.

    Raises:
        Exception: if the kernel cannot be scheduled like this.
    """
    sch = Schedule(func)
    blocks = normalize_prim_func(sch)
    if not blocks:
        return func
    kept = [b for b in blocks if not inlined(sch, b)]
    for block in kept:
        schedule_block(sch, block)
    return sch.mod["main"].with_attr("tirx.is_scheduled", True)
