"""Workspaces: memory that kernels allocate for themselves and Relax does not see.

Examples are padded copies, and results before bias and activation. `hoist_workspaces` makes such memory an argument of
the kernel, so that it is planned with everything else. It does so for memory that a kernel allocates once in a run,
and also for memory that a kernel allocates inside its loops (`chameleon.kernels.scratch`).
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.ir import Call, GlobalVar, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.s_tir import SBlock, SBlockRealize
from tvm.target import Target
from tvm.tirx import Buffer, IntImm, PrimFunc

from chameleon.ir import is_call
from chameleon.kernels.inspect import takes_heap
from chameleon.kernels.optional import if_possible
from chameleon.kernels.scratch import scratch_buffers, takes_scratch, with_scratch

_ATTR = "chameleon.n_workspaces"


def n_workspaces(func: PrimFunc) -> int:
    """How many of a kernel's last parameters are workspaces."""
    return int(func.attrs.get(_ATTR, 0)) if func.attrs else 0


def threads_of_target() -> int | None:
    """How many threads run a kernel of the current target: `None` if the target does not say, 0 if it is not a CPU.

    Devices that are not CPUs keep their tiles in memory of their own.
    """
    target = Target.current(allow_none=True)
    if target is None:
        return None
    if "cpu" not in target.keys:
        return 0
    return int(target.attrs["num-cores"]) if "num-cores" in target.attrs else None


def is_tir_call(call: Call) -> bool:
    """Whether a call runs a kernel that TVM made, and has no symbolic arguments."""
    return is_call(call, "relax.call_tir") and len(call.args) == 2


def hoist_workspaces(mod: IRModule) -> IRModule:
    """Give kernels, as arguments, the memory that they would allocate.

    A workspace becomes one more output of its `call_tir`, which nobody reads. So any pipeline can build the module.
    Memory that kernels allocate inside their loops becomes a workspace only if the current target says how many
    threads it has.
    """
    hoisted, threads = {}, threads_of_target()
    for var, func in mod.functions_items():
        if not isinstance(func, PrimFunc) or n_workspaces(func):
            continue
        found = if_possible("hoisting all workspaces", var.name_hint, partial(_hoisted, func, threads or 0), None)
        found = found or if_possible("hoisting outer workspaces", var.name_hint, partial(_hoisted, func, 0), None)
        if found is not None and found[1]:
            hoisted[var] = found
    if not hoisted:
        return mod
    return relax.transform.CanonicalizeBindings()(_Hoister(mod, hoisted).run())


def _hoisted(func: PrimFunc, threads: int) -> tuple[PrimFunc, list[Buffer]]:
    """The kernel that gets its workspaces as arguments, and these; with 0 threads only those outside of its loops."""
    outer = _outer_buffers(func)
    inner = scratch_buffers(_with_parameters(func, outer), threads) if threads else []
    made = _with_parameters(func, outer, inner)
    if inner:
        made = takes_scratch(made, len(inner), threads)
        with_scratch(made)  # raises if the kernel cannot use them in the end
    return made, [*outer, *inner]


def _outer_buffers(func: PrimFunc) -> list[Buffer]:
    """The buffers that a kernel allocates once in a run: there is no loop that holds all accesses to them."""
    root = func.body.block if isinstance(func.body, SBlockRealize) else None
    if root is None or not root.alloc_buffers:
        return []
    places = s_tir.analysis.detect_buffer_access_lca(func)
    outside = [root, *_unit_loops(root.body)]
    outer = [b for b in root.alloc_buffers if b in places and any(places[b].same_as(place) for place in outside)]
    return [b for b in outer if b.scope() == "global" and takes_heap(b)]


def _unit_loops(body: Any) -> list[tirx.For]:
    """The outermost loops that run only once, up to the first loop that runs more often."""
    found = []
    while isinstance(body, tirx.For) and isinstance(body.extent, IntImm) and int(body.extent) == 1:
        found.append(body)
        body = body.body
    return found


def _with_parameters(func: PrimFunc, buffers: list[Buffer], unused: Sequence[Buffer] = ()) -> PrimFunc:
    """The kernel with new parameters: for these buffers, which it allocated at its root, and for `unused` ones."""
    if not buffers and not unused:
        return func
    root = func.body.block
    kept = [b for b in root.alloc_buffers if not any(b.same_as(out) for out in buffers)]
    block = SBlock(
        root.iter_vars,
        root.reads,
        root.writes,
        root.name_hint,
        root.body,
        root.init,
        kept,
        root.match_buffers,
        root.annotations,
    )
    realize = SBlockRealize(func.body.iter_values, func.body.predicate, block)
    made: Any = PrimFunc([*func.params, *buffers, *unused], realize, func.ret_type, func.attrs)
    return made.with_attr(_ATTR, len(buffers) + len(unused))


@mutator
class _Hoister(PyExprMutator):
    """Replaces kernels by those that get their workspaces as arguments, and changes their calls accordingly."""

    def __init__(self, mod: IRModule, hoisted: dict[GlobalVar, tuple[PrimFunc, list[Buffer]]]) -> None:
        super().__init__(IRModule({v: f for v, f in mod.functions_items() if v not in hoisted}, attrs=mod.attrs))
        self.mod, self.hoisted = mod, hoisted
        self.new = {var: self.builder_.add_func(func, var.name_hint) for var, (func, _) in hoisted.items()}

    def run(self) -> IRModule:
        for var, func in self.mod.functions_items():
            if isinstance(func, relax.Function):
                self.builder_.update_func(var, self.visit_expr(func))
        return self.builder_.get()

    def visit_call_(self, op: Call) -> relax.Expr:
        call: Any = super().visit_call_(op)
        if not is_tir_call(call) or call.args[0] not in self.hoisted:
            return call
        _, buffers = self.hoisted[call.args[0]]
        outputs = list(call.ty_args[0].fields) if isinstance(call.ty_args[0], tvm.ir.TupleType) else [call.ty_args[0]]
        types = [relax.TensorType([int(d) for d in b.shape], str(b.dtype)) for b in buffers]
        made = self.builder_.emit(relax.call_tir(self.new[call.args[0]], call.args[1], [*outputs, *types]))
        items = [relax.TupleGetItem(made, i) for i in range(len(outputs))]
        return relax.Tuple(items) if isinstance(call.ty_args[0], tvm.ir.TupleType) else items[0]
