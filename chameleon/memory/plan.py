"""`MemoryAware`: a TVM pass that orders a network for the least memory and gives all its tensors one arena.

    passes = tvm.transform.Sequential([..., relax.transform.FuseTIR(), MemoryAware()])
    with target:
        executable = tvm.compile(passes(mod), target, relax_pipeline="default_build")

The memory of the resulting function is final: there is one storage, every tensor has its offset in it, and all the
rest are calls of kernels. TVM's default pipeline runs its own planner afterwards, `StaticPlanBlockMemory`, which finds
nothing left to plan. TVM's planner alone would take up to twice the memory that a schedule needs, because it reuses
whole storages only, each for tensors of one type.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.tirx import PrimFunc

from chameleon.errors import ChameleonError
from chameleon.ir import is_call, static_dims
from chameleon.kernels.in_place import overwriting
from chameleon.kernels.optional import if_possible
from chameleon.kernels.scratch import scratch_bytes, with_scratch
from chameleon.memory.deadline import Deadline
from chameleon.memory.graph import ALIGNMENT, WAY_OUT, Extracted, TensorType, extract_graph, symbolic_dims
from chameleon.memory.placed_concats import place_where_it_pays
from chameleon.memory.rolling_calls import roll_where_it_pays, without_alternatives
from chameleon.memory.workspaces import hoist_workspaces, threads_of_target
from chameleon.serenity.accounting import Buffer, footprint, lifetimes
from chameleon.serenity.arena.plan import Arena, plan_arena
from chameleon.serenity.graph import Graph, GraphError
from chameleon.serenity.order.schedule import Schedule, schedule
from chameleon.serenity.rewrite.choose import Score

Solve = Callable[[Graph], Schedule]


@dataclass(frozen=True)
class MemoryOptions:
    """What the pass may do."""

    arena_limit_s: float = 10.0  # time for the search of the arena's offsets, in seconds
    name: str = "main"  # the network's name, for messages
    hoist: bool = True  # the workspaces of kernels lie in the arena as well
    in_place: bool = True  # kernels may write over an input that nothing else needs any more
    rewrite_kernels: bool = True  # kernels may be changed, see `rewritten_kernels`
    deadline: Deadline = field(default_factory=Deadline)  # of all searches


@dataclass(frozen=True)
class MemoryPlan:
    """What the pass decided.

    Attributes:
        graph: the graph that was ordered, with sizes as they are in the arena: multiples of `ALIGNMENT` bytes.
        schedule: the order, its liveness bound `peak_bytes`, and a lower bound that holds for every order.
        arena: the offsets and the size. The size exceeds `schedule.peak_bytes` by the cost of fragmentation.
        scratch_bytes: the memory, in all threads of the target, that kernels still allocate themselves and that is not
            in the arena (see `chameleon.kernels.scratch`).
        unplanned: the variables of tensors that are not in the arena, because only a run tells their shape, or because
            a packed function allocates them.
    """

    graph: Graph = field(repr=False)
    schedule: Schedule
    arena: Arena
    scratch_bytes: int
    unplanned: tuple[str, ...] = ()


def prepare(mod: IRModule, *, hoist: bool = True) -> IRModule:
    """Bring a module into the form that is planned.

    Sorting and the like are calls of kernels, reshapes are views, and workspaces of kernels are arguments.
    """
    dispatch = tvm.transform.Sequential([relax.backend.DispatchSampling(), relax.backend.DispatchSortScan()])
    mod = if_possible("dispatching sorts", "main", lambda: dispatch(mod), mod)
    mod = if_possible("views instead of reshapes", "main", lambda: relax.transform.RewriteDataflowReshape()(mod), mod)
    return if_possible("hoisting workspaces", "main", lambda: hoist_workspaces(mod), mod) if hoist else mod


def plan_memory(
    mod: IRModule, solve: Solve = schedule, options: MemoryOptions | None = None
) -> tuple[IRModule, MemoryPlan]:
    """Order the function `main` and place its tensors in one arena.

    Args:
        mod: a module of fused kernels, scheduled or not, such as `chameleon.kernels.lower.lower` makes.
        solve: finds the order of a graph.

    Returns:
        The module with its memory planned, and the plan.

    Raises:
        GraphError: if the function has dynamic shapes, control flow, or calls of something that is not a kernel.
    """
    options = options or MemoryOptions()
    extract_graph(prepare(mod, hoist=False), options.name)  # raises if the module cannot be planned in any way
    *more, least = _simpler(options)
    for tried in more:
        found = if_possible(f"planning with {tried}", options.name, partial(_planned, mod, solve, tried), None)
        if found is not None:
            return found
    try:
        return _planned(mod, solve, least)
    except ChameleonError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise GraphError(
            f"{options.name}: its kernels cannot be lowered with planned memory: {reason}. {WAY_OUT}"
        ) from error


def _simpler(options: MemoryOptions) -> list[MemoryOptions]:
    """What is tried in turn: all that may be done, then less and less."""
    found = [options]
    for without in ("rewrite_kernels", "in_place", "hoist"):
        if getattr(found[-1], without):
            found.append(dataclasses.replace(found[-1], **{without: False}))
    return found


def _planned(mod: IRModule, solve: Solve, options: MemoryOptions) -> tuple[IRModule, MemoryPlan]:
    mod = prepare(mod, hoist=options.hoist)
    if options.rewrite_kernels:
        mod = rewritten_kernels(mod, solve, options)
    mod = without_alternatives(mod)
    extracted, graph = _graph_of(mod, options)
    found = solve(graph)
    buffers = lifetimes(graph, found.order)
    arena_s = min(options.arena_limit_s, options.deadline.left_s)
    arena = plan_arena(buffers, alignment=ALIGNMENT, time_limit_s=arena_s)
    mod = _in_order(mod, extracted, found.order, buffers)
    mod = _final_kernels(_lowered(mod, _places(extracted, found.order, buffers, arena), arena.size_bytes))
    threads = threads_of_target()
    left = 0 if threads == 0 else scratch_bytes(mod, threads or 1)
    return mod, MemoryPlan(graph, found, arena, left, extracted.unplanned)


def rewritten_kernels(mod: IRModule, solve: Solve, options: MemoryOptions, max_tries: int = 32) -> IRModule:
    """Change the kernels of a prepared module where that lowers the peak.

    There are two changes: parts of a concatenation are written at their place in it, and convolutions are computed row
    by row and overwrite their input.

    Args:
        max_tries: how many sets of concatenations are solved at most.
    """
    mod = place_where_it_pays(
        mod, lambda placed: peak_score(placed, solve, options), max_tries, options.deadline.passed
    )
    if not options.in_place or options.deadline.passed():
        return mod

    def rolled() -> IRModule:
        return roll_where_it_pays(mod, lambda changed: _graph_of(changed, options)[1], solve)

    return if_possible("computing row by row", options.name, rolled, mod)


def peak_score(mod: IRModule, solve: Solve, options: MemoryOptions) -> Score:
    """The score of a prepared module, for the search of rewrites.

    It is the peak of the order that `solve` finds, and how many steps reach this peak.
    """
    _, graph = _graph_of(mod, options)
    use = footprint(graph, solve(graph).order)
    return use.peak_bytes, int((use.during == use.peak_bytes).sum())


def _graph_of(mod: IRModule, options: MemoryOptions) -> tuple[Extracted, Graph]:
    """The graph to order; its sizes are those that tensors have in the arena."""
    extracted = extract_graph(mod, options.name)
    graph = extracted.graph.aligned(ALIGNMENT)
    return extracted, graph if options.in_place else without_in_place(graph)


@tvm.transform.module_pass(opt_level=0, name="MemoryAware")
class MemoryAware:
    """Order a network for the least memory, and place its tensors in one arena; the pass belongs after `FuseTIR`.

    `plan` is the `MemoryPlan` of the last module that the pass transformed.
    """

    def __init__(self, solve: Solve = schedule, options: MemoryOptions | None = None) -> None:
        self.solve, self.options = solve, options
        self.plan: MemoryPlan | None = None

    def transform_module(self, mod: IRModule, _: tvm.transform.PassContext) -> IRModule:
        """Plan the memory of a module; TVM calls this."""
        mod, self.plan = plan_memory(mod, self.solve, self.options)
        return mod


def without_in_place(graph: Graph) -> Graph:
    """The graph in which no kernel overwrites an input."""
    return dataclasses.replace(graph, nodes=tuple(dataclasses.replace(node, in_place="") for node in graph.nodes))


def stock_plan_bytes(mod: IRModule) -> int:
    """Bytes that a module of fused kernels takes with TVM's own planner.

    They are the storages of the planner, and the outputs, which the planner does not plan.
    """
    transform = relax.transform
    passes = [
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
    ]
    main = tvm.transform.Sequential(passes)(mod)["main"]
    sizes: list[int] = []

    def visit(node: Any) -> None:
        if is_call(node, "relax.memory.alloc_storage"):
            sizes.append(int(node.args[0].values[0]))
        elif is_call(node, "relax.builtin.alloc_tensor") and (dims := static_dims(node.args[0])) is not None:
            sizes.append(TensorType(dims, str(node.args[1].value)).size_bytes)

    relax.analysis.post_order_visit(main, visit)
    return sum(sizes)


def _in_order(mod: IRModule, extracted: Extracted, order: Sequence[str], buffers: Sequence[Buffer]) -> IRModule:
    """The module with its bindings in this order, and kernels that overwrite an input where the schedule says so."""
    mod, replaced = _overwriting_kernels(mod, extracted, buffers)
    bindings = [replaced.get(b.var, b) for b in _ordered(extracted, order)]

    @relax.transform.dataflowblock_pass(opt_level=0, name="MemoryAwareOrder")
    def reorder(block: relax.DataflowBlock, _mod: IRModule, _ctx: Any) -> relax.DataflowBlock:
        return relax.DataflowBlock(bindings) if block.same_as(extracted.block) else block

    return relax.transform.DeadCodeElimination()(reorder(mod))


def _ordered(extracted: Extracted, order: Sequence[str]) -> Iterator[Any]:
    """The bindings of the block: kernels in this order, and each view right before the first binding that needs it."""
    by_var = {binding.var: binding for binding in extracted.block.bindings}
    tells = {
        size: binding
        for binding in extracted.block.bindings
        if isinstance(binding, relax.MatchCast)
        for size in symbolic_dims(binding)
    }
    done: set[Any] = set()

    def emit(binding: Any) -> Iterator[Any]:
        if binding.var in done:
            return
        done.add(binding.var)
        needed = [by_var[var] for var in relax.analysis.free_vars(binding.value) if var in by_var]
        for other in (*needed, *(tells[size] for size in symbolic_dims(binding) if size in tells)):
            yield from emit(other)
        yield binding

    for name in order:
        yield from emit(extracted.calls[name].binding)
    for binding in extracted.block.bindings:
        yield from emit(binding)


def _overwriting_kernels(
    mod: IRModule, extracted: Extracted, buffers: Sequence[Buffer]
) -> tuple[IRModule, dict[Any, relax.VarBinding]]:
    """Make kernels that overwrite an input, and the bindings that call them.

    They are made for the nodes that share a buffer with that input.
    """
    graph = extracted.graph
    mod, replaced, made = IRModule(dict(mod.functions_items()), attrs=mod.attrs), {}, {}
    for buffer in buffers:
        for name in buffer.tensors:
            node = graph.by_name[name]
            if not node.in_place or node.in_place not in buffer.tensors:
                continue
            binding = extracted.calls[name].binding
            call, position = binding.value, extracted.argument(name, node.in_place)
            key = (call.args[0], position)
            if key not in made:
                func = overwriting(mod[call.args[0]], position, len(call.args[1].fields))
                made[key] = tvm.ir.GlobalVar(f"{call.args[0].name_hint}_over_{position}")
                relax.expr._update_type(made[key], call.args[0].ty)
                mod[made[key]] = func.with_attr("global_symbol", made[key].name_hint) if _has_symbol(func) else func
            args = [made[key], *call.args[1:]]
            replaced[binding.var] = relax.VarBinding(binding.var, Call(call.op, args, call.attrs, call.ty_args))
    return mod, replaced


def _has_symbol(func: Any) -> bool:
    return bool(func.attrs) and "global_symbol" in func.attrs


def _places(
    extracted: Extracted, order: Sequence[str], buffers: Sequence[Buffer], arena: Arena
) -> list[tuple[int, TensorType]]:
    """The offset and type of every tensor that the calls allocate, in the order of the calls."""
    begin = {name: arena.offsets[b.name] for b in buffers for name in b.tensors}
    begin |= {b.name: arena.offsets[b.name] for b in buffers if not b.tensors}
    places: list[tuple[int, TensorType]] = []
    for name in order:
        call = extracted.calls[name]
        parts = [
            (begin.get(name, 0), call.offsets, call.outputs),
            (begin.get(extracted.graph.by_name[name].workspace_name, 0), call.workspace_offsets, call.workspaces),
        ]
        for base, offsets, types in parts:
            places += [(base + offset, ty) for offset, ty in zip(offsets, types, strict=True)]
    return places


def _lowered(mod: IRModule, places: Sequence[tuple[int, TensorType]], size_bytes: int) -> IRModule:
    """The module whose kernels get their outputs as arguments, and where all these outputs lie in one storage."""
    transform = relax.transform
    passes = [transform.ToNonDataflow(), transform.RemovePurityChecking(), transform.CallTIRRewrite()]
    mod = tvm.transform.Sequential(passes)(mod)
    return _Placer(mod, places, size_bytes).run()


@mutator
class _Placer(PyExprMutator):
    """Puts the allocations of `main` at their places in the arena.

    `places` has the places in the order in which the allocations stand in `main`.
    """

    def __init__(self, mod: IRModule, places: Sequence[tuple[int, TensorType]], size_bytes: int) -> None:
        super().__init__(mod)
        self.mod, self.places, self.size_bytes = mod, list(places)[::-1], size_bytes
        self.arena: relax.Var | None = None

    def run(self) -> IRModule:
        main = next(var for var in self.mod.get_global_vars() if var.name_hint == "main")
        self.builder_.update_func(main, self.visit_expr(self.mod["main"]))
        if self.places:
            raise GraphError(
                f"{len(self.places)} tensors of the plan were not found in the function; this is a bug of MemoryAware"
            )
        return self.builder_.get()

    def visit_call_(self, op: Call) -> relax.Expr:
        call: Any = super().visit_call_(op)
        if is_call(call, "relax.builtin.alloc_tensor") and static_dims(call.args[0]) is not None:
            return self._placed(call)
        if is_call(call, "relax.reshape"):
            # Call the runtime's reshape, which copies nothing. The default pipeline would make a kernel that copies.
            return Call(relax.ExternFunc("vm.builtin.reshape"), call.args, None, [call.ty])
        return call

    def _placed(self, call: Any) -> relax.Expr:
        memory = relax.op.memory
        offset, ty = self.places.pop()
        dims = tuple(int(d) for d in call.args[0].values)
        if dims != ty.shape:
            raise GraphError(f"expected an allocation of shape {ty.shape}, got {dims}; this is a bug of MemoryAware")
        if self.arena is None:
            size = relax.ShapeExpr([max(self.size_bytes, 1)])
            self.arena = self.builder_.emit(memory.alloc_storage(size, 0, "global", "uint8"), "arena")
        tensor = self.builder_.emit(memory.alloc_tensor(self.arena, offset, call.args[0], call.args[1]))
        # The tensor's data pointer is that of the storage, and the offset is in a field of its own. Kernels refuse
        # such tensors. So make a view whose pointer includes the offset; this copies nothing.
        return memory.ensure_zero_offset(tensor)


def _final_kernels(mod: IRModule) -> IRModule:
    """Give every kernel its final form, which uses its scratch workspaces; after that it can no longer be analysed."""
    functions = {var: with_scratch(f) if isinstance(f, PrimFunc) else f for var, f in mod.functions_items()}
    return IRModule(functions, attrs=mod.attrs)
