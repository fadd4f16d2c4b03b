"""Identity graph rewriting (Ahn 2020, sec. 3.3) on a Relax module, before its operators become kernels.

`find_sites` finds the places that can be rewritten, and `apply_sites` rewrites a chosen set of them. The rewriting
itself, and what the kinds of sites are, is in `chameleon.serenity.rewrite.identities`; it works on the graph of
`chameleon.memory.operator_graph`. `rewrite_module` keeps those rewrites that lower the peak of the resulting kernels.
It looks at the kernels, because their fusion changes how much a rewrite saves.

**Partial convolutions** must not be fused with each other: TVM would fuse a chain of sums into one kernel, and all
partial results would be alive at a time. So each partial convolution, together with its sum, becomes a function with
the attribute `Primitive`. `FuseOps` and `FuseTIR` treat such a function as a kernel of its own. The last partial
convolution of a sum stays with the other operators, so that the bias and the activation after it can be fused with it.
A concatenation whose parts are to be written in place becomes such a function too; otherwise the operators around it
would be fused with it.

**Terms of a sum** that the network already has (`accumulate`) are added up in the same way. Terms between which
nothing else runs are added by one kernel: that needs no more memory, and less traffic. If nothing runs between any of
the terms, the operators stay as they were.
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

from chameleon.kernels.optional import if_possible
from chameleon.memory.deadline import Deadline
from chameleon.memory.operator_graph import ConcatGraph, concat_graph, constant_positions, without_inputs
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.order.contract import contracted
from chameleon.serenity.rewrite import identities
from chameleon.serenity.rewrite.choose import NOT_POSSIBLE, Choice, Score, choose_sites
from chameleon.serenity.rewrite.identities import KINDS, Site
from chameleon.serenity.rewrite.search import RewriteOptions, Solution, choices, kind_groups, neighbourhoods, rewrite
from chameleon.serenity.rewrite.sums import TERM, gathered, runs

GUESS_SOLVES = 48
"""How often the graph of operators may be solved to find a set of sites to start from."""

GUESS_SHARE = 0.3
"""The part of the time that is left which that may take."""

FIRST_TRIES = 8
"""The search gives up after it has scored this many modules, if none of them has a lower peak."""

OrderOf = Callable[[Graph], Sequence[str]]


def find_sites(mod: IRModule) -> dict[Site, frozenset[Site]]:
    """Find the places of `main` where an identity applies, in the order in which the data flows.

    Sites name variables of `main`, so they mean the same in every copy of the module. A function with control flow or
    dynamic shapes has no sites.

    Returns:
        For each site, the sites that it needs: it exists only if they are rewritten.
    """
    return _read(mod)[1]


def _read(mod: IRModule) -> tuple[ConcatGraph | None, dict[Site, frozenset[Site]]]:
    """The graph of `main` and its sites; `None` and no sites if it has no such graph."""

    def read() -> tuple[ConcatGraph | None, dict[Site, frozenset[Site]]]:
        found = concat_graph(mod)
        return found, {} if found is None else identities.find_sites(found.graph)

    return if_possible("rewriting", "main", read, (None, {}))


def apply_sites(
    mod: IRModule, sites: Collection[Site], order_of: OrderOf | None = None, *, gather: bool = True
) -> IRModule:
    """Rewrite these sites of a module; the outputs stay the same except for rounding.

    Args:
        order_of: gives an order for the graph of the rewritten operators, such as `lambda g: schedule(g).order`.
            Operators are emitted in this order, and partial results are added up in this order: once a sum is made of
            kernels, its order is fixed. Without `order_of`, operators have the order of the module, and parts the
            order of their concatenation.
        gather: let a term of a sum wait for the next term of the same sum, so that one kernel adds both. This is done
            only where no other step needs more memory because of it.
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
        mod: the rewritten module; the given module if nothing lowers its peak.
        choice: the sites, the scores before and after, and how many sets of sites were tried.
        order: what `order_of` of `apply_sites` gave for the module.
    """

    mod: IRModule = field(repr=False)
    choice: Choice[Site]
    order: tuple[str, ...] = ()


def rewrite_module(
    mod: IRModule,
    score: Callable[[IRModule], Score],
    solve: Callable[[Graph], Solution],
    kinds: Collection[str] = KINDS,
    max_tries: int = 32,
    deadline: Deadline | None = None,
) -> RewrittenModule:
    """Rewrite those sites of a module that lower its peak.

    Args:
        score: gives the score of a rewritten module; its first number is the peak. To be exact it has to make kernels
            of the module and solve their graph, which takes time. So the search starts from the sites that pay in the
            graph of the operators, which needs no kernels.
        solve: a solver for the graph of the operators. Partial results are added up in the order that it finds.
        kinds: the kinds of sites that may be rewritten.
        max_tries: how many modules are scored at most.
        deadline: after it no further module is scored; by default there is none.
    """
    deadline = deadline or Deadline()
    read, sites = _read(mod)
    needs = _possible(mod, choices(sites, kinds))
    if read is None or not needs:
        before = score(mod)
        return RewrittenModule(mod, Choice((), before, before, 1, True))

    @cache
    def order_of(graph: Graph) -> Sequence[str]:
        return solve(graph).order

    groups, moves = kind_groups(needs), neighbourhoods(read.graph, needs)
    if len({frozenset([site]) | others for site, others in needs.items()}) > 1:  # otherwise there is one set to try
        stop, graph = deadline.part(GUESS_SHARE).passed, read.graph
        options = RewriteOptions(kinds=tuple(kinds), max_solves=GUESS_SOLVES, stop=stop)
        groups.insert(0, if_possible("guessing sites", "main", lambda: rewrite(graph, solve, options).applied, ()))
    scores: dict[frozenset[Site], Score] = {}

    def evaluate(chosen: frozenset[Site]) -> Score:
        if not chosen:
            return scores.get(chosen) or scores.setdefault(chosen, score(mod))
        if chosen not in scores:
            place = ", ".join(map(str, sorted(chosen)))
            scores[chosen] = if_possible(
                "rewriting", place, lambda: score(apply_sites(mod, chosen, order_of)), NOT_POSSIBLE
            )
        return scores[chosen]

    choice = choose_sites(needs, evaluate, groups, moves, min(max_tries, FIRST_TRIES), deadline.passed)
    if choice.score[0] < choice.before[0]:  # otherwise the peak is most likely at a place that no rewrite can change
        choice = choose_sites(needs, evaluate, groups, moves, max_tries, deadline.passed)
    return _chosen(mod, choice, order_of)


def _chosen(mod: IRModule, choice: Choice[Site], order_of: OrderOf) -> RewrittenModule:
    given: list[str] = []

    def noted(graph: Graph) -> Sequence[str]:
        given[:] = order_of(graph)
        return given

    return RewrittenModule(apply_sites(mod, choice.chosen, noted), choice, tuple(given))


def _possible(mod: IRModule, needs: dict[Site, frozenset[Site]]) -> dict[Site, frozenset[Site]]:
    """The sites without those that cannot be rewritten, and without those that need one of these."""

    def works(place: object, sites: Collection[Site]) -> bool:
        return if_possible("rewriting", place, lambda: apply_sites(mod, sites), None) is not None

    if works("all sites", needs):
        return needs
    bad = {site for site, others in needs.items() if not works(site, {site} | others)}
    return {site: others for site, others in needs.items() if site not in bad and not others & bad}


class _Emitter:
    """Writes the operators of a rewritten graph as a new `main`."""

    def __init__(self, mod: IRModule, read: ConcatGraph, after: Graph) -> None:
        main = mod.get_global_var("main")
        others = {var: func for var, func in mod.functions_items() if not var.same_as(main)}
        self.mod, self.read, self.after = mod, read, after
        self.builder = relax.BlockBuilder(IRModule(others, attrs=mod.attrs))
        self.made: dict[str, relax.Expr] = {}  # for each node, the expression that holds its value
        self.totals: dict[str, relax.Expr] = {}  # for each sum, what has been added up so far
        self.waiting = {name: len(node.inputs) for name, node in after.by_name.items() if node.op == "sum"}
        self.runs: dict[str, list[list[str]]] = {}  # for each sum, its terms; those of one kernel are in one list

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
        """The next partial convolution of a sum, plus what has been added up so far."""
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
        """Add the terms of a sum up to this one, if it is the last of its kernel; otherwise the sum stays as it is."""
        (total,) = self.after.consumers[node.name]
        run = next(run for run in self.runs[total] if node.name in run)
        if node.name == run[-1]:
            self.totals[total] = self._run_added(total, run)
        return self.totals.get(total, self.made[node.inputs[0]])

    def _run_added(self, total: str, run: list[str]) -> relax.Expr:
        """Add some more terms to a sum: by a kernel, or by plain operators for the last terms of the sum."""
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
        """The work of the operator that the node's attribute `of` names, on some of the channels that it reads.

        These channels are the only input of the node.
        """
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
        """Call a new function that becomes one kernel; functions that are equal are added only once."""
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
    """Replaces the variables of the given function by those of the new one.

    A variable that the new function does not have, such as one of a tuple, is replaced by its value.
    """

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
    """A term of a sum: a tensor, and a chain of calls, each applied to the result of the one before.

    Each call has one argument that is a variable; its other arguments are constants.
    """

    source: relax.Expr
    calls: list[Call]

    @property
    def arguments(self) -> list[relax.Expr]:
        """The tensor and all constants: a kernel gets them as arguments.

        So terms that differ only in their constants can use the same kernel.
        """
        return [self.source, *(call.args[i] for call in self.calls for i in constant_positions(call))]

    def on(self, builder: relax.BlockBuilder, value: relax.Expr, *constants: relax.Expr) -> relax.Expr:
        """The value of the term for this tensor and these constants."""
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
    """A depthwise convolution on some adjacent channels; their outputs are adjacent channels as well."""
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
