"""Other ways to compute a kernel, which the tuner chooses among by measuring them.

One kind of alternative is the kernel itself with another generator of design spaces. Another kind is a kernel of its
own, with its own design spaces. It takes the same tensors, except for the weights: these are transformed once, at
compile time. The space of a task has the design spaces of all its alternatives (`tuners.trace_space`), so one search
decides between algorithms and schedules.

A kernel of its own says in its attributes which kernel it may replace. So a database of schedules is all that is
needed to put the algorithms that won into a network: see `with_alternatives`.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tvm_ffi
from tvm import relax
from tvm.ir import Call, IRModule, Op
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target
from tvm.tirx import PrimFunc

from chameleon.kernels.lower import task_key
from chameleon.kernels.optional import if_possible
from chameleon.kernels.registers import register_space
from chameleon.kernels.winograd import Convolution, find_convolution, transformed_weights, winograd_form
from chameleon.kernels.winograd_schedules import winograd_space

ALGORITHM, REPLACES, WEIGHT = "chameleon.algorithm", "chameleon.replaces", "chameleon.weight"
"""Attributes of an alternative: its name, the key of the kernel that it replaces, the position of its weights."""

WINOGRAD: Mapping[str, int] = {"winograd2": 2, "winograd4": 4}
"""The sizes m of a tile of outputs, by the name of the algorithm."""

REGISTERS = "registers"
"""The kernel itself, with the design spaces of `chameleon.kernels.registers`."""

EXACT = (REGISTERS,)
"""The names of the alternatives that compute what the kernel computes, only in another order."""

ALGORITHMS = (*EXACT, *WINOGRAD)
"""The names of all alternatives."""

DOTS = "dots"
"""How products of integers are computed: with the processor's instruction (`chameleon.kernels.dots`), the only way."""


@dataclass(frozen=True)
class Alternative:
    """Another way to compute a kernel.

    Attributes:
        name: one of `ALGORITHMS`.
        mod: a module with a single function, the PrimFunc `main`.
        space: generates its design spaces.
    """

    name: str
    mod: IRModule = field(repr=False, compare=False)
    space: ms.SpaceGenerator = field(repr=False, compare=False)


def alternatives_of(mod: IRModule, target: Target, names: Collection[str] = ALGORITHMS) -> list[Alternative]:
    """The other ways to compute the kernel `main` of a module, in the order of `ALGORITHMS`; on CPUs only.

    Args:
        names: which of them may be used.
    """
    if target.kind.name != "llvm" or not names:
        return []
    found = []
    if REGISTERS in names:
        space = if_possible(REGISTERS, "a kernel", partial(register_space, mod, target), None)
        found += [] if space is None else [Alternative(REGISTERS, mod, space)]
    return [*found, *_winograd_forms(mod, target, names)]


def _winograd_forms(mod: IRModule, target: Target, names: Collection[str]) -> list[Alternative]:
    convolution = if_possible("finding its convolution", "a kernel", partial(find_convolution, mod["main"]), None)
    if convolution is None:
        return []
    found = []
    for name, m in WINOGRAD.items():
        make = partial(_winograd, mod, convolution, name, m)
        other = if_possible(name, "a kernel", make, None) if name in names else None
        if other is not None:
            found.append(Alternative(name, other, winograd_space(m, target)))
    return found


def _winograd(mod: IRModule, convolution: Convolution, name: str, m: int) -> IRModule | None:
    other = winograd_form(mod, convolution, m)
    if other is None:
        return None
    marks = {ALGORITHM: name, REPLACES: task_key(mod), WEIGHT: convolution.weight}
    return IRModule({"main": other["main"].with_attrs(marks)})


def algorithm_of(mod: IRModule) -> str | None:
    """The name of the algorithm of the kernel `main`; None if it is the one that TVM made of the operator."""
    name = (mod["main"].attrs or {}).get(ALGORITHM)
    return None if name is None else str(name)


def replaced_by(mod: IRModule) -> str | None:
    """The key of the kernel that the kernel `main` may replace; None if it is no alternative."""
    key = (mod["main"].attrs or {}).get(REPLACES)
    return None if key is None else str(key)


def with_alternatives(lowered: IRModule, database: ms.database.Database) -> IRModule:
    """Put the alternatives into a network for which a database has schedules, and transform their weights.

    Args:
        lowered: as `chameleon.kernels.lower.lower` makes it.
    """
    mods = [record.workload.mod for record in database.get_all_tuning_records()]
    found = {key: m["main"] for m in mods if (key := replaced_by(m)) is not None}
    if not found:
        return lowered
    chosen: dict[Any, PrimFunc] = {}
    for var, func in lowered.functions_items():
        other = found.get(task_key(_as_task(func))) if isinstance(func, PrimFunc) else None
        if other is not None:
            chosen[var] = _named_as(func, other)
    return _Exchange(lowered, chosen).run() if chosen else lowered


def _named_as(func: PrimFunc, other: PrimFunc) -> PrimFunc:
    """Another kernel under the symbol that the kernel has; an inner kernel of a network has none."""
    symbol = (func.attrs or {}).get("global_symbol")
    named: Any = other.without_attr("global_symbol") if symbol is None else other.with_attr("global_symbol", symbol)
    return named


def _as_task(func: PrimFunc) -> IRModule:
    """A module with a kernel as its `main`, as MetaSchedule's tasks have it."""
    return tvm_ffi.get_global_func("tvm.s_tir.meta_schedule.normalize_mod")(func)


@mutator
class _Exchange(PyExprMutator):
    """Puts alternatives into the place of kernels, and transforms the constant weights in their calls."""

    def __init__(self, mod: IRModule, chosen: Mapping[Any, PrimFunc]) -> None:
        super().__init__(IRModule({v: f for v, f in mod.functions_items() if v not in chosen}, attrs=mod.attrs))
        self._mod, self._chosen = mod, chosen
        self._new = {var: self.builder_.add_func(func, var.name_hint) for var, func in chosen.items()}
        self._weights: dict[Any, Any] = {}  # equal ones are transformed once

    def run(self) -> IRModule:
        for var, func in self._mod.functions_items():
            if isinstance(func, relax.Function):
                self.builder_.update_func(var, self.visit_expr(func))
        return self.builder_.get()

    def visit_call_(self, call: Call) -> Any:
        if call.op != Op.get("relax.call_tir") or call.args[0] not in self._chosen:
            return super().visit_call_(call)
        kernel, inputs, *rest = call.args
        attrs = self._chosen[kernel].attrs
        position, m = int(attrs[WEIGHT]), WINOGRAD[str(attrs[ALGORITHM])]
        fields = [self.visit_expr(x) for x in inputs.fields]
        old = inputs.fields[position]
        if (m, old) not in self._weights:
            self._weights[m, old] = relax.const(transformed_weights(old.value.numpy(), m))
        fields[position] = self._weights[m, old]
        return Call(call.op, [self._new[kernel], relax.Tuple(fields), *rest], call.attrs, call.ty_args, call.span)
