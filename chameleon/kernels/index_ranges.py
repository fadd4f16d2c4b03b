"""Which integers a kernel may be given: the ids of an embedding must lie inside its table.

A kernel that is timed with random integers reads and writes anywhere. It crashes, or its caches see an access pattern
that no network has. Here the integers that are used as indices get the largest range with which every access stays
inside its tensor. The expression of each index is evaluated over intervals, so casts, offsets, strides and the usual
treatment of negative ids need no rules of their own.

Where nothing tells how an integer is used (a call into a library, say), it is 0 or 1. These are ids of every table
that has two rows, masks, and small counts. An integer that others are divided by is 1.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm.ir import Range, TensorLoad
from tvm.s_tir import SBlock
from tvm.sym import Analyzer
from tvm.tirx import Bind, BufferStore, Div, FloorDiv, FloorMod, For, IntImm, Let, Mod, PrimFunc, Var
from tvm.tirx.buffer import is_buffer_var
from tvm_ffi import structural_map, structural_walk

IntegerRange = tuple[int, int]
"""Smallest and largest value."""

UNKNOWN: IntegerRange = (0, 1)
_DIVISOR: IntegerRange = (1, 1)
_WIDEST: IntegerRange = (0, 2**31 - 2)
_ROUNDS = 8  # the longest chain of buffers through which an integer is followed
_DIVISIONS = (Div, FloorDiv, Mod, FloorMod)


def is_integer(dtype: str) -> bool:
    """Whether a data type has only whole numbers; truth values count as such."""
    return dtype.startswith(("int", "uint", "bool"))


def argument_ranges(func: PrimFunc) -> list[IntegerRange | None]:
    """For each argument of a kernel the integers that it may hold; None for an argument of another type."""
    found = _Accesses.of(func).ranges()
    return [
        _cut(found.get(param, UNKNOWN), str(param.dtype))
        if is_buffer_var(param) and is_integer(str(param.dtype))
        else None
        for param in func.params
    ]


def _cut(allowed: IntegerRange, dtype: str) -> IntegerRange:
    """The range without what the data type cannot hold."""
    known = tvm.DataType(dtype)
    bits = int(known.bits) - (0 if dtype.startswith("uint") else 1)
    largest = 1 if dtype.startswith("bool") else 2**bits - 2  # TVM writes the number after the last one as well
    return min(allowed[0], largest), min(allowed[1], largest)


@dataclass
class _Accesses:
    """What a kernel's body says about its integers.

    Attributes:
        domains: the range of each loop and block variable.
        lets: the values of named expressions.
        needs: expressions with the range that their value must stay in.
        stores: what is stored into each integer buffer, to follow integers through copies.
        divisors: expressions that others are divided by.
    """

    domains: list[tuple[Var, Range]] = field(default_factory=list)
    lets: list[tuple[Var, Any]] = field(default_factory=list)
    needs: list[tuple[Any, IntegerRange]] = field(default_factory=list)
    stores: list[tuple[Any, Any]] = field(default_factory=list)
    divisors: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, func: PrimFunc) -> _Accesses:
        """Collect them from the body of a kernel."""
        found = cls()
        handlers = [
            (For, lambda loop: found.domains.append((loop.loop_var, Range.from_min_extent(loop.min, loop.extent)))),
            (SBlock, found._block),
            (Bind, lambda bind: found.lets.append((bind.var, bind.value))),
            (Let, lambda let: found.lets.append((let.var, let.value))),
            (TensorLoad, lambda load: found._access(load.source, load.indices)),
            (BufferStore, found._store),
            (_DIVISIONS, lambda node: found.divisors.append(node.b)),
        ]
        structural_walk(func.body, handlers)
        return found

    def _block(self, block: SBlock) -> None:
        self.domains += [(axis.var, axis.dom) for axis in block.iter_vars if axis.dom is not None]
        for match in block.match_buffers:  # another name for a part of a buffer
            self.stores.append((match.buffer, _first_element(match.source.source)))

    def _access(self, buffer: Any, indices: Any) -> None:
        for index, extent in zip(indices, buffer.shape, strict=False):
            if isinstance(extent, IntImm):
                self.needs.append((index, (0, int(extent) - 1)))

    def _store(self, store: BufferStore) -> None:
        self._access(store.buffer, store.indices)
        if is_integer(str(store.buffer.dtype)):
            self.stores.append((store.buffer, store.value))

    def ranges(self) -> dict[Any, IntegerRange]:
        """The range of each integer buffer that something is known of."""
        safe: dict[Any, IntegerRange] = {}  # with these every access stays inside its tensor
        enough: dict[Any, int] = {}  # a largest value above this one reaches no more elements
        for expression in self.divisors:
            safe.update({load.source: _DIVISOR for load in _integer_loads(self._inlined(expression))})
        needs, known = list(self.needs), dict(safe)
        for _ in range(_ROUNDS):
            before = known
            for expression, allowed in needs:
                self._narrow(safe, enough, self._inlined(expression), allowed)
            known = {buffer: (a, max(a, min(b, enough.get(buffer, b)))) for buffer, (a, b) in safe.items()}
            needs = [(value, known[buffer]) for buffer, value in self.stores if buffer in known]
            if known == before:
                break
        return known

    def _inlined(self, expression: Any) -> Any:
        """The expression with the values of named expressions in place of their names."""
        values = dict(self.lets)
        for _ in range(_ROUNDS if values else 0):
            expression = structural_map(expression, (Var, lambda var: values.get(var, var)))
        return expression

    def _narrow(
        self, safe: dict[Any, IntegerRange], enough: dict[Any, int], expression: Any, allowed: IntegerRange
    ) -> None:
        """Narrow the ranges of the buffers that an expression loads, so that its value stays where it is allowed.

        The buffers get the same smallest and largest value, within what is safe for each.
        """
        buffers = list(dict.fromkeys(load.source for load in _integer_loads(expression)))
        if not buffers:
            return
        stands_for = {buffer: Var(f"id{i}", buffer.dtype) for i, buffer in enumerate(buffers)}
        plain = structural_map(expression, (TensorLoad, lambda load: stands_for.get(load.source, load)), order="pre")
        limits = {buffer: safe.get(buffer, _cut(_WIDEST, str(buffer.dtype))) for buffer in buffers}

        def cut(low: int, high: int) -> dict[Any, IntegerRange]:
            return {v: (max(low, min(a, high)), max(low, min(b, high))) for v, (a, b) in limits.items()}

        def largest(low: int, high: int) -> int | None:
            ends = self._bounds(plain, {stands_for[v]: ends for v, ends in cut(low, high).items()})
            return ends[1] if allowed[0] <= ends[0] and ends[1] <= allowed[1] else None

        low = next((low for low in (0, 1) if largest(low, low) is not None), None)
        if low is None:
            safe.update(dict.fromkeys(buffers, UNKNOWN))
            return
        widest = max(b for _, b in limits.values())
        high = _last(lambda h: largest(low, h) is not None, low, widest, [allowed[1], allowed[1] + 1])
        most = largest(low, high)
        short = _last(lambda h: largest(low, h) != most, low - 1, high - 1, [allowed[1] - 1, allowed[1]])
        safe.update(cut(low, high))
        enough.update({buffer: max(short + 1, enough.get(buffer, 0)) for buffer in buffers})

    def _bounds(self, plain: Any, ranges: dict[Var, IntegerRange]) -> IntegerRange:
        """The smallest and the largest value of an expression whose variables stay in these ranges."""
        analyzer = Analyzer()
        for var, domain in self.domains:
            analyzer.bind(var, domain)
        for var, (low, high) in ranges.items():
            dtype = str(var.ty.dtype)
            analyzer.bind(var, Range(IntImm(dtype, low), IntImm(dtype, high + 1)))
        bound = analyzer.const_int_bound(analyzer.simplify(plain))
        return int(bound.min_value), int(bound.max_value)


def _last(holds: Callable[[int], bool], first: int, last: int, guesses: Sequence[int]) -> int:
    """The last number for which a property holds that holds for `first` and, once lost, is lost for good.

    Args:
        guesses: where it probably is; trying these first makes the search short.
    """
    good, bad = first, last + 1
    for guess in guesses:
        if good < guess < bad:
            good, bad = (guess, bad) if holds(guess) else (good, guess)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def _integer_loads(expression: Any) -> list[TensorLoad]:
    """The outermost loads of integers in an expression, not those inside their indices."""
    found: list[TensorLoad] = []
    structural_walk(expression, (TensorLoad, found.append))
    inner: list[TensorLoad] = []
    for load in found:
        structural_walk(list(load.indices), (TensorLoad, inner.append))
    return [load for load in found if _is_number(load.source) and not any(load.same_as(other) for other in inner)]


def _is_number(buffer: Any) -> bool:
    return is_integer(str(buffer.dtype)) and not str(buffer.dtype).startswith("bool")


def _first_element(buffer: Any) -> Any:
    return tvm.tirx.BufferLoad(buffer, [0] * len(buffer.shape))
