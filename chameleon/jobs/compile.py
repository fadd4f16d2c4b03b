"""`chameleon compile`: builds a network with the best schedules that were found."""

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

from chameleon.errors import UsageError
from chameleon.jobs.run_folder import JobSpec, export, open_job, recorded_database, target_of
from chameleon.jobs.stages import Say, stage
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.loops import is_scheduled
from chameleon.kernels.lower import build
from chameleon.measure.link import OBJECTS, Toolchain, find_compiler
from chameleon.memory.deadline import Deadline
from chameleon.memory.plan import MemoryOptions, MemoryPlan, Solve, plan_memory
from chameleon.target import runs_here


@dataclass(frozen=True)
class Compiled:
    """A compiled network, ready to run.

    Attributes:
        executable: for `relax.VirtualMachine`.
        untuned: the kernels for which the database has no schedule, sorted.
        memory: the order of its kernels and its arena; None if TVM planned its memory.
    """

    executable: Any = field(repr=False)
    untuned: tuple[str, ...]
    memory: MemoryPlan | None = None

    def export(self, path: str | Path, toolchain: Toolchain | None = None) -> None:
        """Write one shared library with the weights inside.

        `tvm.runtime.load_module` and `relax.VirtualMachine` run it. With the extension `.tar` the objects are written
        instead, which need no compiler here; TVM links them where it loads the file.

        Args:
            toolchain: links it for another machine; None: this machine's compiler does.

        Raises:
            EnvironmentFault: if there is no compiler.
        """
        if Path(path).suffix == OBJECTS:
            self.executable.export_library(str(path))
        else:
            self.executable.export_library(str(path), fcompile=(toolchain or Toolchain()).linker())


def compile_model(
    lowered: IRModule,
    target: Target,
    database: ms.database.Database,
    solve: Solve | None = None,
    options: MemoryOptions | None = None,
) -> Compiled:
    """Build a module that `lower` made with the database's schedules; kernels without one get a default.

    Args:
        solve: finds an order of the network that needs little memory, such as
            `chameleon.serenity.order.schedule.schedule`; None: TVM plans the memory. An order changes no kernel, so
            tuning does not depend on it. But the schedules bring workspaces with them, so the order is found after
            they are applied.
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
        memory_aware: order the network for the least memory, counting the workspaces of these schedules, and put all
            its tensors into one arena.

    Raises:
        ChameleonError: if there are no records, or they belong to another model or target.
    """
    _check_output(spec, output)
    job = open_job(spec, say)
    database, deadline = recorded_database(job, spec), Deadline(spec.time_limit_s)
    solve = deadline.solver(spec.time_limit_s / 2) if memory_aware else None
    options = MemoryOptions(name=job.model.name, deadline=deadline)
    with stage(say, "compiling with the best schedules"):
        compiled = compile_model(job.lowered, job.target, database, solve, options)
        export(compiled, output, spec.toolchain)
    if memory_aware and deadline.passed():
        say(f"the time limit of {spec.time_limit_s:g} s is over: order and arena are the best found until then")
    return compiled


def _check_output(spec: JobSpec, output: Path) -> None:
    """Check that the library can be linked, before the model is loaded.

    Raises:
        UsageError: if it is for another architecture and no compiler for that was given.
        EnvironmentFault: if it is for this machine, which has no compiler.
    """
    spec.toolchain.check()
    if output.suffix == OBJECTS or spec.toolchain.compiler is not None:
        return
    target = target_of(spec)
    if not runs_here(target):
        raise UsageError(
            f"linking {output.name} for {target.attrs.get('mtriple', target)} needs a compiler for that machine: "
            f"--cc aarch64-linux-gnu-g++, for instance; or write its objects, -o {output.stem}.tar, which TVM links "
            "where it loads them"
        )
    find_compiler()
