"""The space of a task of a network: its own design spaces and those of the other algorithms for it."""

# pyright: reportArgumentType=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

from collections.abc import Collection, Sequence

from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.kernels.alternatives import ALGORITHMS, DOTS, alternatives_of
from chameleon.kernels.registers import dot_space
from tuners.meta_schedule import args_info_of
from tuners.trace_space import TraceSpace


def task_space(
    mod: IRModule, target: Target, names: Collection[str] = ALGORITHMS, *, seed: int = 0
) -> tuple[TraceSpace, dict[str, list[int]]]:
    """Make the space of a task, and say which of its sketches belong to which other algorithm.

    A product of integers has only the space that names the processor's instruction for it. MetaSchedule's rules would
    leave that to the compiler, which does not find it.

    Args:
        mod: a module with one function, `main`, as MetaSchedule's tasks have it.
        names: which algorithms may take the place of the operator as it is written.
        seed: of the generator's own sampling; it does not change the space.

    Raises:
        Exception: in many ways, if TVM's rules fail on the workload.
    """
    if (space := dot_space(mod, target)) is not None:
        traces = TraceSpace(mod, target, space_generator=space, seed=seed)
        return traces, {DOTS: list(range(len(traces.forms)))}
    others = alternatives_of(mod, target, names)
    traces = TraceSpace(mod, target, seed=seed, alternatives=[(other.mod, other.space) for other in others])
    forms = enumerate((other.name for other in others), start=1)
    return traces, {name: [i for i, f in enumerate(traces.forms) if f == form] for form, name in forms}


def commit_schedule(
    database: ms.database.Database, traces: TraceSpace, config: Sequence[int], seconds: float, target: Target
) -> None:
    """Commit the schedule of a configuration `[n_knobs]` to a database, with its time.

    Raises:
        Refused: if the replay or a post-processor refuses it.
    """
    schedule = traces.schedule(config)
    workload, arguments = database.commit_workload(traces.workload(config)), args_info_of(schedule)
    database.commit_tuning_record(ms.database.TuningRecord(schedule.trace, workload, [seconds], target, arguments))
