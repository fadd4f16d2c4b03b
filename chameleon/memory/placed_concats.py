"""Concatenations that copy nothing, in a module of kernels: parts are written at their place in the result.

`place_parts` changes every kernel that reads or writes a part: the kernel gets the whole tensor of the concatenation,
and its indices are moved (`chameleon.kernels.windows`). In the new module, the parts and the result are variables of
one shape **that must lie in one piece of memory**. So only a planner that knows this may plan the module. The kernel
of the concatenation notes which parts are concerned (`placed_inputs`).
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from tvm import relax
from tvm.ir import Call, GlobalVar, IRModule, TupleType
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.tirx import PrimFunc

from chameleon.ir import static_shape
from chameleon.kernels.inspect import names_elements_only
from chameleon.kernels.optional import if_possible
from chameleon.kernels.windows import Window, concat_kernel, windowed, without_copies
from chameleon.memory.workspaces import is_tir_call
from chameleon.serenity.rewrite.choose import NOT_POSSIBLE, Score, choose_sites

_ATTR = "chameleon.placed_inputs"


def placed_inputs(func: Any) -> tuple[int, ...]:
    """The positions of those inputs of a kernel that already lie in its output."""
    attrs = getattr(func, "attrs", None)
    return tuple(int(i) for i in attrs.get(_ATTR, ())) if attrs else ()


def placed_concats(mod: IRModule) -> list[str]:
    """The names of the variables of those concatenations in `main` that have at least one part in place."""
    return [name for name, call in _Calls(mod).by_name.items() if placed_inputs(call.func)]


def placeable_concats(mod: IRModule, kernels: str = "") -> dict[str, tuple[int, ...]]:
    """The concatenations of `main`, by name of the variable, with the positions of the parts that can be placed.

    A part can be placed, that is written in place, if a kernel makes it, only kernels read it, and it lies in no other
    concatenation.

    Args:
        kernels: only concatenations whose kernel has a name that begins like this; by default all.
    """
    calls = _Calls(mod)
    taken: set[Any] = set()
    found: dict[str, tuple[int, ...]] = {}
    for name, call in calls.by_name.items():
        if call.kernel.name_hint.startswith(kernels) and (parts := calls.placeable(call, taken)):
            found[name] = tuple(parts)
            taken.update(call.arguments[i] for i in parts)
    return found


def place_parts(mod: IRModule, concats: Collection[str]) -> IRModule:
    """Write the parts of these concatenations in place.

    Only a planner that knows which variables must share memory may plan the new module; see the top of this file.
    """
    calls = _Calls(mod)
    placed: dict[Any, tuple[int, ...]] = {}
    inside: dict[Any, tuple[Any, tuple[int, ...]]] = {}  # part -> the concatenation and the part's place in it
    for name in concats:
        call = calls.by_name[name]
        kernel = concat_kernel(call.func)
        parts = calls.placeable(call, inside)
        placed[call.var] = tuple(parts)
        for i in parts:
            starts = [0] * len(call.shape)
            starts[kernel.axis] = kernel.starts[i]
            inside[call.arguments[i]] = call.var, tuple(starts)
    windows = {var: _window(var, inside, calls) for var in inside}
    return _Placer(mod, calls, placed, windows).run() if inside else mod


def place_where_it_pays(
    mod: IRModule, score: Callable[[IRModule], Score], max_tries: int = 32, stop: Callable[[], bool] = lambda: False
) -> IRModule:
    """Write the parts of concatenations in place, for those concatenations where that lowers the peak.

    Args:
        score: gives the score of a module; its first number is the peak.
        max_tries: how many modules are scored at most.
        stop: says that no time is left to score another module.
    """
    needs: dict[str, frozenset[str]] = {
        name: frozenset() for name in if_possible("placing parts", "main", lambda: placeable_concats(mod), {})
    }
    if not needs:
        return mod

    def placed(chosen: Collection[str]) -> IRModule:
        return place_parts(mod, [name for name in needs if name in chosen])

    def evaluate(chosen: frozenset[str]) -> Score:
        if not chosen:
            return score(mod)
        return if_possible("placing parts", ", ".join(chosen), lambda: score(placed(chosen)), NOT_POSSIBLE)

    return placed(choose_sites(needs, evaluate, max_evaluations=max_tries, stop=stop).chosen)


def place_possible(mod: IRModule, concats: Collection[str]) -> IRModule:
    """Write the parts of those of these concatenations in place where that is possible."""
    if (
        placed := if_possible("placing parts", ", ".join(concats), lambda: place_parts(mod, concats), None)
    ) is not None:
        return placed
    kept: list[str] = []
    for name in concats:
        if if_possible("placing parts", name, lambda: place_parts(mod, [*kept, name]), None) is not None:  # noqa: B023
            kept.append(name)
    return place_parts(mod, kept)


@dataclass
class _Call:
    """A call of a kernel.

    `arguments` holds the variables behind the arguments of the call, and `None` for each argument that is not the
    result of a kernel.
    """

    var: Any
    kernel: GlobalVar
    func: PrimFunc
    arguments: list[Any]
    shape: tuple[int, ...]


@dataclass
class _Calls:
    """The kernel calls of `main`.

    `held` has those results that are used for something else than an argument of a kernel. `readers` has, for each
    result, the calls that read it.
    """

    mod: IRModule
    by_var: dict[Any, _Call] = field(default_factory=dict)
    by_name: dict[str, _Call] = field(default_factory=dict)
    held: set[Any] = field(default_factory=set)
    readers: dict[Any, list[_Call]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        main, self._behind = self.mod["main"], {}
        for block in main.body.blocks:
            for binding in block.bindings:
                self._read(binding)
        self._hold(main.body.body)

    def placeable(self, call: _Call, taken: Collection[Any]) -> list[int]:
        """The positions of those parts of a concatenation that can be written in place."""
        return if_possible("placing parts", call.var.name, lambda: self._placeable(call, taken), [])

    def _placeable(self, call: _Call, taken: Collection[Any]) -> list[int]:
        if concat_kernel(call.func) is None:
            return []
        return [
            i
            for i, part in enumerate(call.arguments)
            if part is not None
            and part not in taken
            and part not in self.held
            and call.arguments.count(part) == 1
            and all(names_elements_only(other.func) for other in (self.by_var[part], *self.readers[part]))
        ]

    def _read(self, binding: Any) -> None:
        value = getattr(binding, "value", None)
        if isinstance(value, Call) and is_tir_call(value) and isinstance(self.mod[value.args[0]], PrimFunc):
            self._call(binding.var, value)
        elif isinstance(value, relax.TupleGetItem) and value.index == 0 and value.tuple_value in self.by_var:
            self._behind[binding.var] = value.tuple_value
        elif isinstance(value, relax.Var) and value in self._behind:
            self._behind[binding.var] = self._behind[value]
        elif not isinstance(value, relax.TupleGetItem):  # elements of a tuple other than the first are workspaces
            self._hold(value)

    def _call(self, var: Any, value: Call) -> None:
        given = value.args[1].fields if isinstance(value.args[1], relax.Tuple) else []
        arguments = [self._behind.get(a) if isinstance(a, relax.Var) else None for a in given]
        first = var.ty.fields[0] if isinstance(var.ty, TupleType) else var.ty
        call = _Call(var, value.args[0], self.mod[value.args[0]], arguments, static_shape(first) or ())
        name, number = var.name, 1
        while name in self.by_name:
            name, number = f"{var.name}_{number}", number + 1
        self.by_var[var] = self.by_name[name] = call
        self._behind[var] = var
        for source in dict.fromkeys(a for a in arguments if a is not None):
            self.readers[source].append(call)

    def _hold(self, value: Any) -> None:
        """Note that the results in this expression cannot be placed.

        The expression is a view, a tuple or the output of the function.
        """
        if value is not None:
            self.held.update(self._behind[var] for var in relax.analysis.free_vars(value) if var in self._behind)


def _window(var: Any, inside: dict[Any, tuple[Any, tuple[int, ...]]], calls: _Calls) -> Window:
    """The place of a part in the outermost concatenation that holds it."""
    starts = [0] * len(calls.by_var[var].shape)
    while var in inside:
        var, moved = inside[var]
        starts = [a + b for a, b in zip(starts, moved, strict=True)]
    return Window(calls.by_var[var].shape, tuple(starts))


@mutator
class _Placer(PyExprMutator):
    """Replaces kernels by kernels that work on windows, and changes the types of their results accordingly."""

    def __init__(
        self, mod: IRModule, calls: _Calls, placed: dict[Any, tuple[int, ...]], windows: dict[Any, Window]
    ) -> None:
        super().__init__(mod)
        self.mod, self.calls, self.placed, self.windows = mod, calls, placed, windows
        self.made: dict[Any, GlobalVar] = {}

    def run(self) -> IRModule:
        main = next(var for var in self.mod.get_global_vars() if var.name_hint == "main")
        self.builder_.update_func(main, self.visit_expr(self.mod["main"]))
        return relax.transform.DeadCodeElimination()(self.builder_.get())

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call = self.calls.by_var.get(binding.var)
        windows = self._windows(call) if call else {}
        if call is None or (not windows and binding.var not in self.placed):
            super().visit_var_binding_(binding)
            return
        value = binding.value
        types = list(value.ty_args[0].fields) if isinstance(value.ty_args[0], TupleType) else [value.ty_args[0]]
        if binding.var in self.windows:
            types[0] = relax.TensorType(self.windows[binding.var].shape, types[0].dtype)
        arguments = relax.Tuple([self.visit_expr(a) for a in value.args[1].fields])
        made = relax.call_tir(self._kernel(call, windows), arguments, types if len(types) > 1 else types[0])
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(made, binding.var.name))

    def _windows(self, call: _Call) -> dict[int, Window]:
        """The parameters, by position, of a call's kernel that are windows; the output comes after the inputs."""
        tensors = [*call.arguments, call.var]
        return {i: self.windows[var] for i, var in enumerate(tensors) if var is not None and var in self.windows}

    def _kernel(self, call: _Call, windows: dict[int, Window]) -> GlobalVar:
        parts = self.placed.get(call.var, ())
        key = (call.kernel, parts, tuple(sorted(windows.items(), key=lambda item: item[0])))
        if key not in self.made:
            func = call.func
            if parts:
                func = without_copies(func, parts).with_attr(_ATTR, list(parts))
            self.made[key] = self.builder_.add_func(windowed(func, windows), f"{call.kernel.name_hint}_placed")
        return self.made[key]
