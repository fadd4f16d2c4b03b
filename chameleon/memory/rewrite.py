"""Identity graph rewriting (Ahn 2020, sec. 3.3) on a relax module, before its operators become kernels.

`find_sites` names the places, `apply_sites` rewrites a chosen set of them; `chameleon.serenity.rewrite.identities` says what the kinds
are and does the rewriting, on the graph of `chameleon.memory.operator_graph`. `rewrite_module` keeps those that lower the peak of
the kernels that come of it, whose fusion changes what a rewrite saves.

Partial convolutions must not be fused with each other: TVM fuses a chain of sums into one kernel, for which all partial results
are alive at a time. So each of them, with its sum, becomes a function with the attribute `Primitive`, which is a kernel of its
own to `FuseOps` and `FuseTIR`. The last one of a sum stays with the operators, for the bias and the activation after it to join
it. A concatenation whose parts are to be written in place is such a function too, else the operators around it would join it.

The terms of a sum that was given (`accumulate`) are added up the same way, all those in one kernel between which nothing else
runs: that needs no more memory, and less traffic. Where this is so for all terms the operators stay as they were.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce

import numpy as np
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from chameleon.memory.operator_graph import ConcatGraph, concat_graph, constant_positions, without_inputs
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.order.contract import contracted
from chameleon.serenity.rewrite import identities
from chameleon.serenity.rewrite.choose import Choice, Score, choose_sites
from chameleon.serenity.rewrite.identities import KINDS, Site
from chameleon.serenity.rewrite.search import RewriteOptions, Solution, choices, kind_groups, neighbourhoods, rewrite
from chameleon.serenity.rewrite.sums import TERM, gathered, runs

GUESS_SOLVES = 48
"""Solves of the graph of operators that may be spent on a set of sites to start from."""

FIRST_TRIES = 8
"""Modules that are scored before the search gives up if none has a lower peak."""

OrderOf = Callable[[Graph], Sequence[str]]


def find_sites(mod: IRModule) -> dict[Site, frozenset[Site]]:
    """The places of `main` where an identity applies, in the order of the data; per site those that it needs.

    Sites name variables of `main`, so they mean the same in every copy of the module. There are none in a function with control
    flow or dynamic shapes.
    """
    read = concat_graph(mod)
    return {} if read is None else identities.find_sites(read.graph)


def apply_sites(
    mod: IRModule, sites: Collection[Site], order_of: OrderOf | None = None, *, gather: bool = True
) -> IRModule:
    """The module with these sites rewritten; outputs are the same but for rounding.

    Args:
        order_of: an order for the graph of the rewritten operators, such as `lambda g: schedule(g).order`. Operators are
            emitted in it, and partial results are added up in it: the order of a sum is fixed once it is made of kernels.
            Without it: as in the module, parts in the order of their concatenation.
        gather: let terms of a sum wait for the next one where no other step needs more by it, so that they are one kernel.
    """
    read = concat_graph(mod) if sites else None
    if read is None:
        return mod
    after = identities.apply_sites(read.graph, sites)
    counted = without_inputs(after)
    if order_of is None:
        order = [name for name in identities.data_order(after) if name not in after.inputs]
    else:
        short = contracted(counted)
        order = list(short.expanded(order_of(short.graph)))
    return _Emitter(mod, read, after).emit(gathered(counted, order) if gather else order)


@dataclass(frozen=True)
class RewrittenModule:
    """A module with the rewrites that lower its score.

    Attributes:
        mod: the module; the given one if nothing lowers its peak.
        choice: the sites, the scores before and after, how many sets of sites were tried.
    """

    mod: IRModule = field(repr=False)
    choice: Choice[Site]


def rewrite_module(
    mod: IRModule,
    score: Callable[[IRModule], Score],
    solve: Callable[[Graph], Solution],
    kinds: Collection[str] = KINDS,
    max_tries: int = 32,
) -> RewrittenModule:
    """The module with the sites rewritten that lower its peak.

    Args:
        score: of a rewritten module; its first number is the peak. To be right it makes kernels of the module and solves their
            graph, which takes time: so the search starts from what pays in the graph of the operators, which costs no kernels.
        solve: a solver for the graph of the operators; partial results are added up in the order that it finds.
        kinds: of sites that may be rewritten.
        max_tries: how many modules are scored at most.
    """
    read = concat_graph(mod)
    needs = {} if read is None else choices(identities.find_sites(read.graph), kinds)
    if read is None or not needs:
        before = score(mod)
        return RewrittenModule(mod, Choice((), before, before, 1, True))

    @cache
    def order_of(graph: Graph) -> Sequence[str]:
        return solve(graph).order

    groups, moves = kind_groups(needs), neighbourhoods(read.graph, needs)
    if len({frozenset([site]) | others for site, others in needs.items()}) > 1:  # else there is one set to try
        options = RewriteOptions(kinds=tuple(kinds), max_solves=GUESS_SOLVES)
        groups.insert(0, rewrite(read.graph, solve, options).applied)
    scores: dict[frozenset[Site], Score] = {}

    def evaluate(chosen: frozenset[Site]) -> Score:
        if chosen not in scores:
            scores[chosen] = score(apply_sites(mod, chosen, order_of))
        return scores[chosen]

    choice = choose_sites(needs, evaluate, groups, moves, min(max_tries, FIRST_TRIES))
    if choice.score[0] < choice.before[0]:  # else the peak is where no rewrite reaches, most likely
        choice = choose_sites(needs, evaluate, groups, moves, max_tries)
    return RewrittenModule(apply_sites(mod, choice.chosen, order_of), choice)


class _Emitter:
    """Writes the operators of a rewritten graph as a new `main`."""

    def __init__(self, mod: IRModule, read: ConcatGraph, after: Graph) -> None:
        main = mod.get_global_var("main")
        others = {var: func for var, func in mod.functions_items() if not var.same_as(main)}
        self.mod, self.read, self.after = mod, read, after
        self.builder = relax.BlockBuilder(IRModule(others, attrs=mod.attrs))
        self.made: dict[str, relax.Expr] = {}  # by node what holds its value
        self.totals: dict[str, relax.Expr] = {}  # by sum what has been added up so far
        self.waiting = {name: len(node.inputs) for name, node in after.by_name.items() if node.op == "sum"}
        self.runs: dict[str, list[list[str]]] = {}  # by sum its terms, those of one kernel in one list

    def emit(self, order: Sequence[str]) -> IRModule:
        main, builder = self.mod["main"], self.builder
        self.runs = runs(self.after, order)
        params = [relax.Var(param.name, param.ty) for param in main.params]
        self.made.update(zip(self.read.graph.inputs, params, strict=True))
        with builder.function("main", params, attrs=dict(main.attrs) if main.attrs else None):
            with builder.dataflow():
                for name in order:
                    self.made[name] = self._emit(self.after.by_name[name])
                result = builder.emit_output(self._renamed(main.body.body))
            builder.emit_func_output(result)
        return builder.get()

    def _emit(self, node: Node) -> relax.Expr:
        if node.op == "add_conv":
            return self._add(node)
        if node.op == TERM:
            return self._add_term(node)
        if node.op == "sum":
            return self.totals[node.name]
        if node.op == "concat":
            return self._concat(node)
        if "slice" in node.attrs:
            return self.builder.emit(self._part(node), node.name)
        return self._as_given(node.name)

    def _as_given(self, name: str) -> relax.Expr:
        var = self.read.variables[name]
        return self.builder.emit(self._renamed(self.read.values[var]), var.name)

    def _concat(self, node: Node) -> relax.Expr:
        parts = [self.made[part] for part in node.inputs]
        if "placed" not in node.attrs:
            return self.builder.emit(relax.op.concat(parts, self.read.axis), node.name)
        return self._kernel("concat_parts", parts, lambda _, *given: relax.op.concat(list(given), self.read.axis))

    def _add(self, node: Node) -> relax.Expr:
        """The next partial convolution of a sum, plus what has been added up."""
        (total,) = self.after.consumers[node.name]
        call = self._part(node)
        self.waiting[total] -= 1
        before = [self.totals[total]] if total in self.totals else []
        if self.waiting[total] == 0:
            conv = self.builder.emit(call, node.name)
            self.totals[total] = self.builder.emit(relax.op.add(conv, *before), total) if before else conv
        else:
            name = "conv2d_part_add" if before else "conv2d_part"
            self.totals[total] = self._kernel(
                name, [*call.args, *before], lambda inner, *given: _conv_add(inner, call, *given)
            )
        return self.totals[total]

    def _add_term(self, node: Node) -> relax.Expr:
        """The terms of a sum up to this one, if it is the last of its kernel."""
        (total,) = self.after.consumers[node.name]
        run = next(run for run in self.runs[total] if node.name in run)
        if node.name == run[-1]:
            self.totals[total] = self._run_added(total, run)
        return self.totals.get(total, self.made[node.inputs[0]])

    def _run_added(self, total: str, run: list[str]) -> relax.Expr:
        """The sum with some more terms: a kernel, or for the last ones operators."""
        known = self.runs[total]
        if len(known) == 1:
            for given in sorted(self.after.by_name[total].attrs["replaces"], key=self.read.graph.steps.index):
                self.made[given] = self._as_given(given)
            return self.made[total]
        terms = [self._term(name) for name in run]
        before = [self.totals[total]] if total in self.totals else []
        arguments = [*before, *(argument for term in terms for argument in term.arguments)]

        def added(builder: relax.BlockBuilder, *given: relax.Expr) -> relax.Expr:
            left = list(given)
            values = [left.pop(0) for _ in before]
            values += [term.on(builder, *(left.pop(0) for _ in term.arguments)) for term in terms]
            return reduce(lambda x, y: builder.emit(relax.op.add(x, y)), values)

        if not before and len(terms) == 1 and not terms[0].calls:  # the first term alone, as it is
            return terms[0].source
        if run is known[-1]:
            return added(self.builder, *arguments)
        return self._kernel("sum_part_add" if before else "sum_part", arguments, added)

    def _term(self, name: str) -> _Term:
        node = self.after.by_name[name]
        calls = [self.read.values[self.read.variables[step["of"]]] for step in node.attrs["through"]]
        return _Term(self.made[node.inputs[0]], calls)

    def _part(self, node: Node) -> relax.Expr:
        """What operator `of` does to some channels of its input, which are the node's only input."""
        call = self.read.values[self.read.variables[node.attrs["of"]]]
        (data,) = (self.made[source] for source in node.inputs)
        start, stop = node.attrs["slice"]
        if node.op == "depthwise":
            return _depthwise_part(call, data, start, stop)
        if node.op == "add_conv":
            kernel = _sliced(call.args[1], call.attrs.kernel_layout.index("I"), start, stop)
            return Call(call.op, [data, kernel], call.attrs)
        arguments = [self._argument(a, call, data, start, stop) for a in call.args]
        return Call(call.op, arguments, call.attrs, call.ty_args)

    def _argument(self, argument: relax.Expr, call: Call, data: relax.Expr, start: int, stop: int) -> relax.Expr:
        if isinstance(argument, relax.Var):
            return data
        if not isinstance(argument, GenericConst):
            return argument
        rank = len(argument.value.shape)
        axis = self.read.axis - (len(call.ty.shape) - rank)  # shorter shapes lack the outer axes
        return argument if axis < 0 or int(argument.value.shape[axis]) == 1 else _sliced(argument, axis, start, stop)

    def _renamed(self, value: relax.Expr) -> relax.Expr:
        return _Renamer(self.read, self.made).visit_expr(value)

    def _kernel(self, name: str, arguments: Sequence[relax.Expr], body: Callable[..., relax.Expr]) -> relax.Expr:
        """Call a new function that becomes one kernel; like functions are one."""
        inner = relax.BlockBuilder()
        params = [relax.Var(f"p{i}", argument.ty) for i, argument in enumerate(arguments)]
        with inner.function(name, params, attrs={"Primitive": 1}, private=True):
            with inner.dataflow():
                result = inner.emit_output(body(inner, *params))
            inner.emit_func_output(result)
        kernel = self.builder.add_func(inner.get()[name], name)
        return self.builder.emit(Call(kernel, list(arguments)), name)


@mutator
class _Renamer(PyExprMutator):
    """Replaces the variables of the given function by those of the new one; tuples are written where they are read."""

    def __init__(self, read: ConcatGraph, made: dict[str, relax.Expr]) -> None:
        super().__init__()
        self._values = read.values
        self._made = {var: made[name] for name, var in read.variables.items() if name in made}

    def visit_var_(self, op: relax.Var) -> relax.Expr:
        return self._made[op] if op in self._made else self.visit_expr(self._values[op])

    def visit_dataflow_var_(self, op: relax.Var) -> relax.Expr:
        return self.visit_var_(op)


@dataclass(frozen=True)
class _Term:
    """A term of a sum: a tensor, and calls of one variable argument, each done to the result of the one before."""

    source: relax.Expr
    calls: list[Call]

    @property
    def arguments(self) -> list[relax.Expr]:
        """The tensor and all constants: what a kernel gets, so that terms of other constants have the same one."""
        return [self.source, *(call.args[i] for call in self.calls for i in constant_positions(call))]

    def on(self, builder: relax.BlockBuilder, value: relax.Expr, *constants: relax.Expr) -> relax.Expr:
        """The term's value for such arguments."""
        left = list(constants)
        for call in self.calls:
            arguments = [
                value if isinstance(a, relax.Var) else left.pop(0) if isinstance(a, GenericConst) else a
                for a in call.args
            ]
            value = builder.emit(Call(call.op, arguments, call.attrs, call.ty_args))
        return value


def _conv_add(
    inner: relax.BlockBuilder, call: Call, data: relax.Expr, kernel: relax.Expr, *total: relax.Expr
) -> relax.Expr:
    conv = inner.emit(Call(call.op, [data, kernel], call.attrs))
    return relax.op.add(conv, *total) if total else conv


def _depthwise_part(call: Call, data: relax.Expr, start: int, stop: int) -> relax.Expr:
    """A depthwise convolution on some channels, whose outputs come one after the other as well."""
    attrs, kernel = call.attrs, call.args[1]
    axis = attrs.kernel_layout.index("O")
    multiplier = int(kernel.value.shape[axis]) // int(attrs.groups)
    return relax.op.nn.conv2d(
        data,
        _sliced(kernel, axis, start * multiplier, stop * multiplier),
        strides=[int(s) for s in attrs.strides],
        padding=[int(p) for p in attrs.padding],
        dilation=[int(d) for d in attrs.dilation],
        groups=stop - start,
        data_layout=attrs.data_layout,
        kernel_layout=attrs.kernel_layout,
        out_layout=attrs.out_layout,
        out_dtype=attrs.out_dtype,
    )


def _sliced(constant: GenericConst, axis: int, start: int, stop: int) -> GenericConst:
    index = [slice(None)] * len(constant.value.shape)
    index[axis] = slice(start, stop)
    return relax.const(np.ascontiguousarray(constant.value.numpy()[tuple(index)]))
