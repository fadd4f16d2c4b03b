"""Memory that kernels allocate for themselves, which Relax does not see: padded copies, results before bias and activation.

`hoist_workspaces` makes what a kernel allocates once a run an argument of it, so that it is planned with everything else.
What a kernel allocates inside its loops (tiles, for each thread its own) stays; `scratch_bytes` says how much that is.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.ir import Call, GlobalVar, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx import Buffer, IntImm, PrimFunc
from tvm_ffi import structural_walk

STACK_BYTES = 1024
"""TVM's code generator puts smaller allocations of a kernel on the stack (`kMaxStackAlloca`)."""

PAGE_BYTES = 4096
"""The runtime's pool of workspaces rounds up to this."""

_ATTR = "chameleon.n_workspaces"


def n_workspaces(func: PrimFunc) -> int:
    """How many of a kernel's last parameters are workspaces."""
    return int(func.attrs.get(_ATTR, 0)) if func.attrs else 0


def hoist_workspaces(mod: IRModule) -> IRModule:
    """Let kernels get as arguments what they allocate outside of their loops.

    A workspace becomes one more output of its `call_tir`, which nobody reads: any pipeline can build the module.
    """
    hoisted = {}
    for var, func in mod.functions_items():
        if isinstance(func, PrimFunc) and not n_workspaces(func) and (buffers := _outer_buffers(func)):
            hoisted[var] = (_with_parameters(func, buffers), buffers)
    if not hoisted:
        return mod
    return relax.transform.CanonicalizeBindings()(_Hoister(mod, hoisted).run())


def scratch_bytes(mod: IRModule, threads: int) -> int:
    """What the runtime's pools hold for the allocations left inside kernels, at most.

    Each thread has a pool of its own that keeps its pages. Kernels run one after another, so the k-th largest page of a pool
    is the k-th largest of any kernel.
    """
    pools: list[list[int]] = [[], []]  # of the calling thread, of each thread of a parallel loop
    for func in mod.functions.values():
        if isinstance(func, PrimFunc):
            for number, sizes in enumerate(_scratch(func)):
                sizes = sorted((-(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes if size >= STACK_BYTES), reverse=True)
                pools[number] = [max(pair) for pair in zip_longest(pools[number], sizes, fillvalue=0)]
    return sum(pools[0]) + threads * sum(pools[1])


def _outer_buffers(func: PrimFunc) -> list[Buffer]:
    """Buffers that a kernel allocates once a run: no loop holds all accesses to them."""
    root = func.body.block if isinstance(func.body, SBlockRealize) else None
    if root is None or not root.alloc_buffers:
        return []
    places = s_tir.analysis.detect_buffer_access_lca(func)
    outside = [root, *_unit_loops(root.body)]
    outer = [b for b in root.alloc_buffers if b in places and any(places[b].same_as(place) for place in outside)]
    return [b for b in outer if b.scope() == "global" and (_size_bytes(b) or 0) >= STACK_BYTES]


def _unit_loops(body: Any) -> list[tirx.For]:
    """The outermost loops, as long as they run once."""
    found = []
    while isinstance(body, tirx.For) and isinstance(body.extent, IntImm) and int(body.extent) == 1:
        found.append(body)
        body = body.body
    return found


def _with_parameters(func: PrimFunc, buffers: list[Buffer]) -> PrimFunc:
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
    made: Any = PrimFunc([*func.params, *buffers], realize, func.ret_type, func.attrs)
    return made.with_attr(_ATTR, len(buffers))


@mutator
class _Hoister(PyExprMutator):
    """Replaces kernels and their calls."""

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
        kernel = isinstance(call.op, tvm.ir.Op) and call.op.name == "relax.call_tir" and len(call.args) == 2
        if not kernel or call.args[0] not in self.hoisted:
            return call
        _, buffers = self.hoisted[call.args[0]]
        outputs = list(call.ty_args[0].fields) if isinstance(call.ty_args[0], tvm.ir.TupleType) else [call.ty_args[0]]
        types = [relax.TensorType([int(d) for d in b.shape], str(b.dtype)) for b in buffers]
        made = self.builder_.emit(relax.call_tir(self.new[call.args[0]], call.args[1], [*outputs, *types]))
        items = [relax.TupleGetItem(made, i) for i in range(len(outputs))]
        return relax.Tuple(items) if isinstance(call.ty_args[0], tvm.ir.TupleType) else items[0]


def _scratch(func: PrimFunc) -> tuple[list[int], list[int]]:
    """Sizes of a kernel's allocations once it is lowered: outside of parallel loops, inside."""
    # Those of TVM's default pipeline for kernels that concern CPUs, as far as the one that merges allocations.
    passes = [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.AnnotateIrregularLoop(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(),
        tirx.transform.StorageRewrite(),
    ]
    lowered = tvm.transform.Sequential(passes)(IRModule({"main": func.with_attr("global_symbol", "main")}))["main"]
    everything, inside = _allocations(lowered.body), []

    def visit(loop: tirx.For) -> None:
        if int(loop.kind) == int(tirx.ForKind.PARALLEL):
            inside.extend(_allocations(loop.body))

    structural_walk(lowered.body, (tirx.For, visit))
    outside = list(everything)
    for size in inside:
        outside.remove(size)
    return outside, inside


def _allocations(body: Any) -> list[int]:
    found: list[int] = []
    structural_walk(body, (tirx.AllocBuffer, lambda a: found.append(_size_bytes(a.buffer) or 0)))
    return found


def _size_bytes(buffer: Buffer) -> int | None:
    """`None` if the shape is not static."""
    if not all(isinstance(d, IntImm) for d in buffer.shape):
        return None
    dtype = tvm.DataType(str(buffer.dtype))
    return math.prod(int(d) for d in buffer.shape) * ((int(dtype.bits) * int(dtype.lanes) + 7) // 8)
