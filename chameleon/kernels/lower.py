"""Lower a model to fused kernels, and find the kernels that are worth tuning."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, IRModule, Op
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target
from tvm.tirx import PrimFunc
from tvm_ffi import structural_equal, structural_hash

from chameleon.ir import has_call
from chameleon.kernels.axes import with_positive_axes
from chameleon.kernels.dots import with_dots
from chameleon.kernels.inspect import only_moves
from chameleon.kernels.movable import with_movable_operators
from chameleon.kernels.wide import with_wide_sums
from chameleon.models.errors import first_line
from chameleon.models.load import Model, ModelError
from chameleon.models.simplify import fold_exactly

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A kernel to tune.

    Attributes:
        name: the name of the kernel. If the network has several equal kernels, it is the name of the first.
        mod: a module with a single function, the PrimFunc `main`.
        weight: how often the network runs the kernel.
        flop: the number of floating-point operations of one run.
        key: a hash of the kernel's structure. It is the same in every process, and for equal kernels of any model.
    """

    name: str
    mod: IRModule = field(repr=False, compare=False)
    weight: int
    flop: float
    key: str


def lower(model: Model, target: Target) -> IRModule:
    """Lower a network to fused kernels, in the layout that suits the target.

    Tasks are extracted from this very module, and schedules are applied to this very module. A module that is fused
    again has other kernels, for which there are no records.

    Raises:
        ModelError: if TVM has no kernel for an operator.
    """
    return checked(in_target_layout(model, target)[1], model.name)


def in_target_layout(model: Model, target: Target) -> tuple[IRModule, IRModule]:
    """The operators of a network in the layout that suits the target, and their kernels.

    If some operator has no kernel in that layout, the network keeps its own layout. Even then some operators may have
    no kernel.
    """
    own = with_wide_sums(model.mod) if target.kind.name == "llvm" else model.mod
    moved = with_dots(to_target_layout(own, target), target)
    kernels = kernels_of(moved, target)
    if not operators_left(kernels):
        return moved, kernels
    kept = with_dots(own, target)
    return kept, kernels_of(kept, target)


def checked(lowered: IRModule, name: str) -> IRModule:
    """Check that all operators of the network `name` became kernels, and return the module.

    Raises:
        ModelError: if TVM has no kernel for an operator.
    """
    if left := operators_left(lowered):
        raise ModelError(f"{name}: TVM has no kernel for the operators {', '.join(left)} as they are used here")
    return lowered


def kernels_of(mod: IRModule, target: Target) -> IRModule:
    """Make fused kernels of the operators of a module; operators for which TVM has no kernel stay."""
    transform = relax.transform
    passes = [
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
        transform.CanonicalizeBindings(),
        # This lets the tuner choose the order in which a constant weight lies in memory.
        transform.AttachAttrLayoutFreeBuffers(),
    ]
    with target, tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(mod)


def operators_left(mod: IRModule) -> list[str]:
    """The sorted names of operators that should have become kernels and did not."""
    left: set[str] = set()

    def visit(node: object) -> None:
        if isinstance(node, Call) and isinstance(node.op, Op) and node.op.get_attr("FLegalize") is not None:
            left.add(node.op.name)

    for func in mod.functions.values():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func, visit)
    return sorted(left)


def extract_tasks(lowered: IRModule, target: Target) -> list[Task]:
    """The kernels of a lowered module as tasks, the costliest first; equal kernels make one task."""
    tasks = []
    for found in ms.relax_integration.extract_tasks(lowered, target):
        mod = found.dispatched[0]
        flop = float(tvm.s_tir.analysis.estimate_tir_flops(mod))
        tasks.append(Task(found.task_name, mod, int(found.weight), flop, task_key(mod)))
    return sorted(tasks, key=lambda t: (-t.flop * t.weight, t.name))


def task_key(mod: IRModule) -> str:
    """A hash of a kernel's structure; the names of its variables do not matter."""
    return f"{structural_hash(mod) & (2**64 - 1):016x}"


def kernel_tasks(lowered: IRModule) -> dict[str, str]:
    """For each kernel of a lowered module, by its name, the key of its task; equal kernels have one key."""
    kernels = {v.name_hint: f for v, f in lowered.functions_items() if isinstance(f, PrimFunc)}
    return {
        name: task_key(IRModule({"main": func.with_attr("global_symbol", "main")})) for name, func in kernels.items()
    }


def moving_kernels(lowered: IRModule) -> list[str]:
    """The names of the kernels that only move data, such as changes of the layout; sorted."""
    kernels = [(v.name_hint, f) for v, f in lowered.functions_items() if isinstance(f, PrimFunc)]
    return sorted(name for name, func in kernels if only_moves(func))


def build(mod: IRModule, target: Target) -> Any:
    """Build a module whose kernels are final, with a pipeline that leaves them as they are.

    The default pipeline of a target would fuse them again.
    """
    with tvm.transform.PassContext(opt_level=3):
        return tvm.compile(mod, target, relax_pipeline="default_build")


def to_target_layout(mod: IRModule, target: Target) -> IRModule:
    """Move a network from NCHW to the layout that tunes best on its target (docs/decisions/0006-nhwc-on-cpu.md).

    Operators that do not have this layout (transposed convolutions, dense layers) keep theirs, with transposes around
    them. The whole network keeps its layout where it has no convolutions, or where TVM cannot move it.
    """
    if target.kind.name != "llvm" or not has_call(mod, "relax.nn.conv2d"):
        return fold_exactly(mod) if target.kind.name == "llvm" else mod
    wanted = {"relax.nn.conv2d": ["NHWC", "HWIO"], "relax.nn.conv2d_transpose": ["NCHW", "IOHW"]}
    try:
        moved = fold_exactly(relax.transform.ConvertLayout(wanted)(with_movable_operators(with_positive_axes(mod))))
    except Exception as error:  # from TVM's checks to std::bad_alloc
        _log.warning("the network keeps its layout, because TVM cannot move it: %s", first_line(error))
        return fold_exactly(mod)
    if structural_equal(moved["main"].ret_ty, mod["main"].ret_ty):
        return moved
    _log.warning("the network keeps its layout, because TVM gives it other outputs when it moves it")
    return fold_exactly(mod)
