"""Builds a network with the best schedules that were found."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target
from tvm.tirx import PrimFunc

from chameleon.kernels.alternatives import with_alternatives
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.loops import is_scheduled
from chameleon.kernels.lower import build
from chameleon.measure.link import OBJECTS, Toolchain
from chameleon.memory.plan import MemoryOptions, MemoryPlan, Solve, plan_memory


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
    *,
    plain: Collection[str] = (),
) -> Compiled:
    """Build a module that `lower` made with the database's schedules; kernels without one get a default.

    Args:
        solve: finds an order of the network that needs little memory, such as
            `chameleon.serenity.order.schedule.schedule`; None: TVM plans the memory. An order changes no kernel, so
            tuning does not depend on it. But the schedules bring workspaces with them, so the order is found after
            they are applied.
        options: for that planning of memory.
        plain: the names of kernels that keep their plain loops where they have no schedule; on CPUs only.
    """
    transform = relax.transform
    with target, database, tvm.transform.PassContext(opt_level=3):
        mod = transform.MetaScheduleApplyDatabase()(with_alternatives(lowered, database))
        untuned = tuple(sorted(_unscheduled(mod)))
        if solve is None:
            mod = _with_defaults(mod, target, plain)
        # Weights whose order in memory was tuned are rewritten now, not at every run.
        mod = transform.SplitLayoutRewritePreproc()(mod)
        mod = tvm.transform.Sequential([transform.FoldConstant(), transform.CanonicalizeBindings()])(mod)
        plan = None
        if solve is not None:
            mod, plan = plan_memory(_with_defaults(mod, target, plain, lean=True), solve, options)
    return Compiled(build(mod, target), untuned, plan)


def _with_defaults(mod: IRModule, target: Target, plain: Collection[str], *, lean: bool = False) -> IRModule:
    """The module with default schedules: lean ones, or else those that pack weights; none for the kernels `plain`."""
    loops = {v: f for v, f in mod.functions_items() if v.name_hint in plain}
    mod = schedule_defaults(mod, target, lean=lean, packed=not lean)
    return IRModule({**dict(mod.functions_items()), **loops}, attrs=mod.attrs) if loops else mod


def _unscheduled(mod: IRModule) -> list[str]:
    return [v.name_hint for v, f in mod.functions_items() if isinstance(f, PrimFunc) and not is_scheduled(f)]
