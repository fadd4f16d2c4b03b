"""Convolutions and matrix products of 8-bit integers, by the dot products of the processor.

Processors multiply short vectors of small integers and add the products up in one instruction. `vpdpbusd` (AVX-512
VNNI, AVX-VNNI) adds four products of an unsigned and a signed byte to a sum of 32 bits, `vpmaddwd` (AVX2, AVX-512BW)
makes a sum of two products of 16 bits. A compiler does not find them in a loop nest, so a schedule has to name them (a
tensor intrinsic, as TVM calls it). And the weights have to lie as it reads them, in blocks of n sums with g products
each:

    weights[k / n, ry, rx, c / g, k % n, c % g]

`with_dots` writes the products of integers that `chameleon.models.integers` leaves in a network as kernels of this
kind. `chameleon.kernels.registers` has their design space. Where there is no such instruction, or the channels do not
fill a vector, the product is computed as one of floats. That is exact up to 2^24.

TVM's own intrinsics of this kind are not used: those of version 0.27 do not compile with the LLVM 22 that it has.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportUndefinedVariable=false, reportInvalidTypeForm=false
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import Call, GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.target import Target, codegen

from chameleon.ir import bound_value, is_call, static_shape
from chameleon.kernels.intrinsics import frames_know_their_modules
from chameleon.kernels.loops import long_extent

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dot:
    """An instruction that adds products of small integers to a vector of 32-bit sums.

    Attributes:
        instruction: its name in LLVM.
        lanes: how many sums it makes.
        group: how many products it adds to each sum.
        data: the type of the first factors, which are the same in all lanes.
        weight: the type of the second factors.
    """

    instruction: str
    lanes: int
    group: int
    data: str
    weight: str

    @property
    def name(self) -> str:
        """The name of its tensor intrinsic."""
        return f"chameleon.{self.instruction}"


def _vnni(bits: int) -> Dot:
    return Dot(f"llvm.x86.avx512.vpdpbusd.{bits}", bits // 32, 4, "uint8", "int8")


DOTS = (
    (("avx512vnni",), (_vnni(512), _vnni(256))),
    (("avxvnni",), (_vnni(256),)),
    (
        ("avx512bw",),
        (
            Dot("llvm.x86.avx512.pmaddw.d.512", 16, 2, "int16", "int16"),
            Dot("llvm.x86.avx2.pmadd.wd", 8, 2, "int16", "int16"),
        ),
    ),
    (("avx2",), (Dot("llvm.x86.avx2.pmadd.wd", 8, 2, "int16", "int16"),)),
)
"""The instructions by the features of a processor that they need; the best first, the widest first."""


def takes_bytes() -> bool:
    """Whether VNNI's instructions take vectors of 8 bits, as since LLVM 22; before, the same in vectors of 32 bits."""
    return (codegen.llvm_version_major() or 0) >= 22


def dots_of(target: Target) -> tuple[Dot, ...]:
    """The instructions of a target's processor; the widest first."""
    if target.kind.name != "llvm":
        return ()
    return next((dots for need, dots in DOTS if all(codegen.target_has_features(f, target) for f in need)), ())


def dot_for(channels: int, dots: Sequence[Dot]) -> Dot | None:
    """The widest instruction whose lanes the output channels fill."""
    return next((dot for dot in dots if channels % dot.lanes == 0), None)


def dot_of_block(block: Any, dots: Sequence[Dot]) -> Dot | None:
    """The instruction for a block that adds products of two tensors up, if the second lies as it takes it."""
    data, weight = block.reads
    shape = static_shape(weight.source)
    if str(block.writes[0].source.dtype) != "int32" or shape is None or len(shape) < 2:
        return None
    *_, lanes, group = shape
    found = str(data.source.dtype), str(weight.source.dtype), lanes, group
    return next((dot for dot in dots if (dot.data, dot.weight, dot.lanes, dot.group) == found), None)


def _register(dot: Dot) -> None:
    """Let schedules name the instruction."""
    n, g, width = dot.lanes, dot.group, dot.lanes * dot.group

    @T.prim_func(s_tir=True)
    def meaning(
        A: T.Buffer((g,), dot.data, offset_factor=1),
        B: T.Buffer((n, g), dot.weight, offset_factor=1),
        C: T.Buffer((n,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:n], A[0:g], B[0:n, 0:g])
            T.writes(C[0:n])
            for i in T.serial(0, n):
                for k in T.serial(0, g):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def instruction(
        A: T.Buffer((g,), dot.data, offset_factor=1),
        B: T.Buffer((n, g), dot.weight, offset_factor=1),
        C: T.Buffer((n,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:n], A[0:g], B[0:n, 0:g])
            T.writes(C[0:n])
            C[T.ramp(0, 1, n)] = _added(dot, C[T.ramp(0, 1, n)], A[T.ramp(0, 1, g)], B[0, T.ramp(0, 1, width)])

    TensorIntrin.register(dot.name, meaning, instruction, override=True)


def _added(dot: Dot, sums: Any, data: Any, weights: Any) -> Any:
    """The instruction on vectors: sums of 32 bits, as many data as are in a group, weights for all lanes."""
    kind = f"{dot.weight}x{dot.lanes * dot.group}"
    same = tirx.reinterpret(kind, tirx.Broadcast(tirx.reinterpret("int32", data), dot.lanes))
    call = partial(tirx.call_llvm_pure_intrin, f"int32x{dot.lanes}", dot.instruction)
    if dot.group == 2:
        return sums + call(same, weights)
    if not takes_bytes():
        same, weights = (tirx.reinterpret(f"int32x{dot.lanes}", x) for x in (same, weights))
    return call(sums, same, weights)


with frames_know_their_modules():
    for _dots in DOTS:
        for _dot in _dots[1]:
            _register(_dot)


def with_dots(mod: IRModule, target: Target) -> IRModule:
    """The module with each product of integers of `main` written as a kernel for the target, or as one of floats.

    Args:
        mod: convolutions are in the layouts NHWC and HWIO, or they become products of floats.
    """
    found: list[Any] = []
    relax.analysis.post_order_visit(mod["main"], lambda e: found.append(e) if _of_integers(e) else None)
    if not found:
        return mod
    writer = _Writer(mod, dots_of(target))
    written = relax.transform.CanonicalizeBindings()(writer.run())
    if left := writer.left:
        because = ", ".join(f"{n} {reason}" for reason, n in sorted(left.items()))
        n, of = left.total(), len(found)
        _log.warning("%d of %d products of 8-bit integers are computed as floats: %s", n, of, because)
    return relax.transform.DeadCodeElimination()(written)


def _of_integers(call: Any) -> bool:
    """Whether an operator multiplies data of 16 bits, as `chameleon.models.integers` leaves them, with weights."""
    if not is_call(call, ("relax.nn.conv2d", "relax.matmul")) or str(call.attrs.out_dtype) != "int32":
        return False
    return [str(a.ty.dtype) for a in call.args] == ["int16", "int8"] and isinstance(call.args[1], GenericConst)


@dataclass(frozen=True)
class _Data:
    """The 8-bit numbers that centred data were made from, and their zero point."""

    numbers: relax.Expr
    zero: int


@mutator
class _Writer(PyExprMutator):
    """Writes products of integers as kernels for some instructions, or as products of floats.

    Attributes:
        left: how many became products of floats, by the reason.
    """

    def __init__(self, mod: IRModule, dots: Sequence[Dot]) -> None:
        super().__init__(mod)
        self._mod, self._dots = mod, dots
        self.left: Counter[str] = Counter()

    def run(self) -> IRModule:
        self.builder_.update_func(self._mod.get_global_var("main"), self.visit_expr(self._mod["main"]))
        return self.builder_.get()

    def visit_call_(self, op: Call) -> relax.Expr:
        call = super().visit_call_(op)
        if not _of_integers(op):
            return call
        if isinstance(call.args[1], relax.Var):
            call = Call(call.op, [call.args[0], op.args[1]], call.attrs)
        convolution = is_call(call, "relax.nn.conv2d")
        weights = call.args[1].value.numpy()
        known = not convolution or _layouts(call) == ("NHWC", "HWIO", "NHWC")
        dot = dot_for(weights.shape[-1], self._dots) if known else None
        data = self._data(call.args[0])
        if dot is None or data is None:
            self.left[self._reason(known, dot)] += 1
            return self._as_floats(call)
        packed = relax.const(packed_weights(weights, dot))
        if convolution:
            write = partial(_convolution, dot=dot, zero=data.zero, numbers=_numbers(call))
        else:
            write = partial(_product, dot=dot, zero=data.zero)
        name = f"{'conv2d' if convolution else 'matmul'}_{dot.data}"
        total = self.builder_.emit(self.builder_.call_te(write, data.numbers, packed, primfunc_name_hint=name))
        less = data.zero * weights.astype(np.int64).sum(tuple(range(weights.ndim - 1)))
        if dot.data == "int16" or not less.any():
            return total
        shape = [1] * (len(call.ty.shape) - 1) + [-1]
        return relax.op.subtract(total, relax.const(less.astype(np.int32).reshape(shape)))

    def _reason(self, known: bool, dot: Dot | None) -> str:
        if not self._dots:
            return "for which the target has no dot product that is known here"
        if not known:
            return "whose layout is not NHWC"
        return "whose channels do not fill a vector" if dot is None else "whose data are of unknown origin"

    def _data(self, operand: relax.Expr) -> _Data | None:
        """The unsigned numbers q behind the centred data q - z, in the layout of these."""
        zero, moves, value = 0, [], bound_value(self, operand)
        while not is_call(value, "relax.astype"):
            if is_call(value, "relax.permute_dims"):
                moves.append(value)
            elif is_call(value, "relax.subtract") and isinstance(value.args[1], GenericConst) and not zero:
                zero = int(value.args[1].value.numpy().reshape(()))
            else:
                return None
            value = bound_value(self, value.args[0])
        numbers = value.args[0]
        if str(numbers.ty.dtype) != "uint8" or static_shape(numbers.ty) is None:
            return None
        for move in reversed(moves):
            numbers = self.builder_.emit(Call(move.op, [numbers], move.attrs))
        return _Data(numbers, zero)

    def _as_floats(self, call: Call) -> relax.Expr:
        """The same product of floats; what the weights become is computed here."""
        data = self.builder_.emit(relax.op.astype(call.args[0], "float32"))
        weights = relax.const(call.args[1].value.numpy().astype(np.float32))
        if is_call(call, "relax.matmul"):
            total = relax.op.matmul(data, weights, out_dtype="float32")
        else:
            total = relax.op.nn.conv2d(data, weights, *_numbers(call), 1, *_layouts(call), "float32")
        return relax.op.astype(self.builder_.emit(total), "int32")


def _layouts(call: Call) -> tuple[str, str, str]:
    """The layouts of a convolution's data, weights and output."""
    return str(call.attrs.data_layout), str(call.attrs.kernel_layout), str(call.attrs.out_layout)


def _numbers(call: Call) -> list[list[int]]:
    """The strides, padding and dilation of a convolution."""
    return [[int(d) for d in each] for each in (call.attrs.strides, call.attrs.padding, call.attrs.dilation)]


def packed_weights(weights: NDArray[Any], dot: Dot) -> NDArray[Any]:
    """Weights `[..., c, k]` as the instruction reads them, `[k / n, ..., ceil(c / g), n, g]`.

    Channels that only fill the last group are zeros.
    """
    *outer, c, k = weights.shape
    chunks = -(-c // dot.group)
    filled = np.zeros((*outer, chunks * dot.group, k), dot.weight)
    filled[..., :c, :] = weights
    blocks = filled.reshape(*outer, chunks, dot.group, k // dot.lanes, dot.lanes)
    at = len(outer)
    return np.ascontiguousarray(blocks.transpose(at + 2, *range(at), at, at + 3, at + 1))


def _axis(extent: Any, name: str) -> Any:
    return te.reduce_axis((long_extent(0), long_extent(extent)), name=name)


def _staged(data: Any, dot: Dot, zero: int, before: Sequence[int], after: Sequence[int]) -> Any:
    """The data as the instruction takes them: padded with what stands for zero, whole groups of channels.

    Nothing is copied where that is not needed. Numbers of 16 bits have their zero point taken away.
    """
    shape = [int(d) for d in data.shape]
    centre = zero if dot.data == "int16" else 0
    fill = -shape[-1] % dot.group
    if not any((*before, *after, fill)) and dot.data == "uint8":
        return data
    starts, ends = [*before, 0], [*after, fill]

    def value(*index: Any) -> Any:
        inner = [i - start if start else i for i, start in zip(index, starts, strict=True)]
        number = data(*inner)
        if dot.data == "int16":
            number = number.astype("int16") - tirx.const(centre, "int16")
        inside = [
            test
            for i, start, size, end in zip(index, starts, shape, ends, strict=True)
            for test, needed in ((i >= start, start), (i < size + start, end))
            if needed
        ]
        return tirx.if_then_else(tirx.all(*inside), number, tirx.const(zero - centre, dot.data)) if inside else number

    sizes = [long_extent(b + s + a) for b, s, a in zip(starts, shape, ends, strict=True)]
    return te.compute(sizes, value, name="staged")


def _convolution(data: Any, weights: Any, *, dot: Dot, zero: int, numbers: Sequence[Sequence[int]]) -> Any:
    """A convolution of data `[n, y, x, c]` with packed weights, `[n, y, x, k]` of int32."""
    (sy, sx), (top, left, bottom, right), (dy, dx) = numbers
    x = _staged(data, dot, zero, (0, top, left), (0, bottom, right))
    n, height, width, _ = (int(d) for d in x.shape)
    blocks, rows, columns, chunks, lanes, group = (int(d) for d in weights.shape)
    ry, rx, rc, rg = _axis(rows, "ry"), _axis(columns, "rx"), _axis(chunks, "rc"), _axis(group, "rg")
    shape = (n, (height - (rows - 1) * dy - 1) // sy + 1, (width - (columns - 1) * dx - 1) // sx + 1, blocks * lanes)

    def value(b: Any, i: Any, j: Any, o: Any) -> Any:
        number = x[b, i * sy + ry * dy, j * sx + rx * dx, rc * group + rg]
        weight = weights[o // lanes, ry, rx, rc, o % lanes, rg]
        return te.sum(number.astype("int32") * weight.astype("int32"), axis=[ry, rx, rc, rg])

    return te.compute([long_extent(d) for d in shape], value, name="dots")


def _product(data: Any, weights: Any, *, dot: Dot, zero: int) -> Any:
    """A product of data `[..., m, c]` and packed weights, `[..., m, k]` of int32."""
    axes = [0] * (len(data.shape) - 1)
    x = _staged(data, dot, zero, axes, axes)
    blocks, chunks, lanes, group = (int(d) for d in weights.shape)
    rc, rg = _axis(chunks, "rc"), _axis(group, "rg")

    def value(*index: Any) -> Any:
        *rows, o = index
        number, weight = x[(*rows, rc * group + rg)], weights[o // lanes, rc, o % lanes, rg]
        return te.sum(number.astype("int32") * weight.astype("int32"), axis=[rc, rg])

    return te.compute([*x.shape[:-1], long_extent(blocks * lanes)], value, name="dots")
