"""Compute convolutions row by row, so that they can overwrite their input, where that lowers the peak.

This costs time: one thread computes one row after the other, and every row is copied. So `roll_where_it_pays` does it
only for the calls that need it.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from tvm import relax
from tvm.ir import Call, GlobalVar, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.tirx import PrimFunc

from chameleon.kernels.in_place import rolling_of, without_rolling
from chameleon.memory.graph import is_kernel_call
from chameleon.memory.workspaces import hoist_workspaces, n_workspaces
from chameleon.serenity.accounting import peak_bytes
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.order.schedule import Schedule


def roll_where_it_pays(
    mod: IRModule, graph_of: Callable[[IRModule], Graph], solve: Callable[[Graph], Schedule]
) -> IRModule:
    """Compute calls row by row, but only those without which the peak would be higher.

    First, all calls that can be computed row by row are changed. If that does not lower the peak, the module stays as
    it is. Otherwise the order of the steps is kept, and each call goes back to its usual kernel unless that raises the
    peak of this order.

    Args:
        mod: a prepared module of kernels (see `chameleon.memory.plan.prepare`). Some kernels bring along a second
            kernel that computes the same row by row.
        graph_of: gives the graph of a module; the nodes of its calls have the order of `main`.
        solve: finds the order of a graph.
    """
    calls = _kernel_calls(mod)
    chosen = {
        i
        for i, func in enumerate(calls)
        if func is not None and rolling_of(func) is not None and not n_workspaces(func)
    }
    if not chosen:
        return mod
    usual, rolled = graph_of(mod), graph_of(_rolled(mod, chosen))
    found = solve(rolled)
    if found.peak_bytes >= solve(usual).peak_bytes:
        return mod
    names = dict(zip(usual.by_name, rolled.by_name, strict=True))
    for i in sorted(chosen):
        node = usual.by_name[usual.steps[i]]
        back = _with_node(rolled, rolled.steps[i], node.workspace_bytes, names.get(node.in_place, ""))
        if peak_bytes(back, found.order) <= found.peak_bytes:
            rolled = back
            chosen.remove(i)
    return _rolled(mod, chosen)


def without_alternatives(mod: IRModule) -> IRModule:
    """Remove the row-by-row kernels that were not used, once no call will be changed any more."""
    functions = {v: without_rolling(f) if isinstance(f, PrimFunc) else f for v, f in mod.functions_items()}
    return IRModule(functions, attrs=mod.attrs)


def _with_node(graph: Graph, name: str, workspace_bytes: int, in_place: str) -> Graph:
    """The graph in which one node has this workspace and overwrites this input."""

    def changed(node: Node) -> Node:
        return (
            dataclasses.replace(node, workspace_bytes=workspace_bytes, in_place=in_place)
            if node.name == name
            else node
        )

    return dataclasses.replace(graph, nodes=tuple(map(changed, graph.nodes)))


def _kernel_calls(mod: IRModule) -> list[Any]:
    """The kernels that `main` calls, in the order of the graph's steps; `None` for a kernel that TVM did not make."""
    bindings = [binding for block in mod["main"].body.blocks for binding in block.bindings]
    callees = [binding.value.args[0] for binding in bindings if is_kernel_call(binding.value)]
    return [mod[callee] if isinstance(callee, GlobalVar) else None for callee in callees]


def _rolled(mod: IRModule, chosen: Collection[int]) -> IRModule:
    """The module with the calls at these positions computed row by row."""
    return hoist_workspaces(relax.transform.DeadCodeElimination()(_Roller(mod, chosen).run())) if chosen else mod


@mutator
class _Roller(PyExprMutator):
    """Replaces the kernels of the chosen calls by those that compute row by row."""

    def __init__(self, mod: IRModule, chosen: Collection[int]) -> None:
        super().__init__(mod)
        self.mod, self.chosen, self.met = mod, chosen, 0
        self.made: dict[GlobalVar, GlobalVar] = {}

    def run(self) -> IRModule:
        main = next(var for var in self.mod.get_global_vars() if var.name_hint == "main")
        self.builder_.update_func(main, self.visit_expr(self.mod["main"]))
        return self.builder_.get()

    def visit_call_(self, op: Call) -> relax.Expr:
        call: Any = super().visit_call_(op)
        if not is_kernel_call(call):
            return call
        self.met += 1
        if self.met - 1 not in self.chosen:
            return call
        kernel = call.args[0]
        if kernel not in self.made:
            self.made[kernel] = self.builder_.add_func(rolling_of(self.mod[kernel]), f"{kernel.name_hint}_rolling")
        return Call(call.op, [self.made[kernel], *call.args[1:]], call.attrs, call.ty_args)
