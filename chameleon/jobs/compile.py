"""Build a network with the best schedules found."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target
from tvm.tirx import PrimFunc

from chameleon.jobs.run_folder import JobSpec, Say, export, open_job, recorded_database
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.loops import is_scheduled
from chameleon.kernels.lower import build
from chameleon.memory.deadline import Deadline
from chameleon.memory.plan import MemoryOptions, MemoryPlan, Solve, plan_memory


@dataclass(frozen=True)
class Compiled:
    """A network that runs.

    Attributes:
        executable: for `relax.VirtualMachine`.
        untuned: the kernels for which the database has no schedule, sorted.
        memory: its order and arena; none if TVM planned its memory.
    """

    executable: Any = field(repr=False)
    untuned: tuple[str, ...]
    memory: MemoryPlan | None = None

    def export(self, path: str | Path) -> None:
        """Write one shared library, weights inside; `tvm.runtime.load_module` and `relax.VirtualMachine` run it."""
        self.executable.export_library(str(path))


def compile_model(
    lowered: IRModule,
    target: Target,
    database: ms.database.Database,
    solve: Solve | None = None,
    options: MemoryOptions | None = None,
) -> Compiled:
    """Build a module of `lower` with the database's schedules; kernels without one get a default.

    Args:
        solve: orders the network for little memory, such as `chameleon.serenity.order.schedule.schedule`. An order changes no kernel,
            so tuning does not depend on it; but the schedules bring workspaces along, so it is found with them applied.
        options: for that planning of memory.
    """
    transform = relax.transform
    with target, database, tvm.transform.PassContext(opt_level=3):
        mod = transform.MetaScheduleApplyDatabase()(lowered)
        untuned = tuple(sorted(_unscheduled(mod)))
        # Weights whose order in memory was tuned are rewritten now, not at every run.
        mod = transform.SplitLayoutRewritePreproc()(mod)
        mod = tvm.transform.Sequential([transform.FoldConstant(), transform.CanonicalizeBindings()])(mod)
        mod = schedule_defaults(mod, target, lean=solve is not None)
        plan = None
        if solve is not None:
            mod, plan = plan_memory(mod, solve, options)
    return Compiled(build(mod, target), untuned, plan)


def _unscheduled(mod: IRModule) -> list[str]:
    return [v.name_hint for v, f in mod.functions_items() if isinstance(f, PrimFunc) and not is_scheduled(f)]


def compile_tuned(spec: JobSpec, output: Path, say: Say, *, memory_aware: bool = False) -> Compiled:
    """Build the network with the best schedules in the folder's records and write it.

    Args:
        memory_aware: order it for the least memory, with these schedules' workspaces, in one arena.

    Raises:
        ChameleonError: if there are no records, or they belong to another model or target.
    """
    job = open_job(spec, say)
    database, deadline = recorded_database(job, spec), Deadline(spec.time_limit_s)
    solve, options = (
        (deadline.solver(spec.time_limit_s / 2) if memory_aware else None),
        MemoryOptions(name=job.model.name, deadline=deadline),
    )
    compiled = compile_model(job.lowered, job.target, database, solve, options)
    if memory_aware and deadline.passed():
        say(f"the time limit of {spec.time_limit_s:g} s is over: order and arena are the best found until then")
    export(compiled, output)
    return compiled
