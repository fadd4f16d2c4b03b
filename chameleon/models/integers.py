"""Keep the integers of a quantised network: products of 8-bit numbers instead of products of floats.

A quantised network in ONNX's QDQ form turns its integers into floats before each convolution and each matrix product,
and the result into integers again. With data x = s (q - z) and weights w = t p, for each output channel,

    sum x w  =  s t sum (q - z) p,

and the sum on the right is one of integers: exact, in 32 bits (Jacob et al., 2018, section 2.2). Here `dequantize` -
operator - `quantize` becomes the operator on integers, with a few element-wise steps around it. How q, z and p get
into a dot product of 8-bit numbers is the target's affair: `chameleon.kernels.dots`. Depthwise and grouped
convolutions stay products of floats.

ONNX's `MatMulInteger` is a sum of integers already, mostly with a zero point that is found when the network runs. It
gets the same form.

The data q are unsigned from here on: signed ones get 128 added, and so does their zero point. No value changes.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from chameleon.ir import bound_value, is_call, static_shape, with_main

_log = logging.getLogger(__name__)

SIGN = 128
"""What is added to signed 8-bit numbers to make them unsigned."""

LARGEST_SUM = 2**31 - 1
"""What a sum of products may reach."""

_PRODUCTS = ("relax.matmul", "relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.nn.conv3d")

_PICK_VALUES = (
    "relax.expand_dims",
    "relax.nn.max_pool2d",
    "relax.permute_dims",
    "relax.reshape",
    "relax.squeeze",
)
"""Operators whose results are some of the values that they are given, whatever a value stands for."""


@dataclass(frozen=True)
class _Weights:
    """Quantised weights.

    Attributes:
        values: int8, the zero point taken away.
        scale: of each output channel, or one for all, `[channels]` or `[1]`.
        axis: of the output channels; 0 if there is one scale for all.
    """

    values: NDArray[Any]
    scale: NDArray[Any]
    axis: int


def with_integer_products(mod: IRModule) -> IRModule:
    """The module with convolutions and matrix products of quantised tensors computed from integers.

    `mod` is as the importer leaves it: constants are not folded yet, since that would make floats of the weights.
    """
    main = mod["main"]
    if not _has_integers(main):
        return mod
    mod = with_main(mod, _Unsigned(mod).visit_expr(main))
    writer = _Integers(mod)
    mod = with_main(mod, writer.visit_expr(mod["main"]))
    if writer.left:
        _log.warning(
            "%d of %d quantised convolutions and matrix products are computed as floats: there are no integer kernels "
            "for %s",
            len(writer.left),
            writer.found,
            ", ".join(sorted(set(writer.left))),
        )
    return relax.transform.DeadCodeElimination()(mod)


def _has_integers(main: relax.Function) -> bool:
    found: list[Any] = []

    def visit(node: Any) -> None:
        if is_call(node, "relax.dequantize") or (is_call(node, "relax.matmul") and "int" in str(node.ty.dtype)):
            found.append(node)

    relax.analysis.post_order_visit(main, visit)
    return bool(found)


@mutator
class _Unsigned(PyExprMutator):
    """Makes the signed integers of a network unsigned, where all that reads them makes floats of them."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        main, self._bound = mod["main"], None
        values: dict[Any, Any] = dict(relax.analysis.get_var2val(main).items())
        readers: dict[Any, list[Any]] = defaultdict(list)
        for value in values.values():
            for operand in getattr(value, "args", ()):
                readers[operand].append(value)
        outputs = main.body.body
        self._shifted = {
            var
            for var, value in values.items()
            if is_call(value, "relax.quantize")
            and str(value.attrs.out_dtype) == "int8"
            and _zero_point(value) is not None
            and not var.same_as(outputs)
            and readers[var]
            and all(is_call(r, "relax.dequantize") and _zero_point(r) is not None for r in readers[var])
        }
        # a variable that a tuple holds, or the function returns, has readers that are no calls
        for value in (*values.values(), outputs):
            if isinstance(value, relax.Tuple):
                self._shifted -= set(value.fields)

    def visit_var_binding_(self, binding: Any) -> None:
        self._bound = binding.var
        super().visit_var_binding_(binding)

    def visit_call_(self, op: Call) -> relax.Expr:
        reads = is_call(op, "relax.dequantize") and op.args[0] in self._shifted
        if not reads and not (is_call(op, "relax.quantize") and self._bound in self._shifted):
            return super().visit_call_(op)
        return _shifted(op, self.visit_expr(op.args[0]), str(op.attrs.out_dtype) if reads else "uint8")


def _shifted(call: Call, data: relax.Expr, dtype: str) -> Call:
    """`quantize` or `dequantize` of integers that are larger by `SIGN`."""
    zero = _zero_point(call)
    assert zero is not None
    make = relax.op.quantize if is_call(call, "relax.quantize") else relax.op.dequantize
    return make(data, call.args[1], relax.const(np.array(zero + SIGN, "uint8")), int(call.attrs.axis), dtype)


def _numbers(operand: relax.Expr) -> NDArray[Any] | None:
    return operand.value.numpy() if isinstance(operand, GenericConst) else None


def _zero_point(call: Call) -> int | None:
    """The zero point of a `quantize` or `dequantize` that has one zero point and one scale; else None."""
    scale, zero = _numbers(call.args[1]), _numbers(call.args[2])
    return int(zero.reshape(())) if scale is not None and zero is not None and scale.size == zero.size == 1 else None


@mutator
class _Integers(PyExprMutator):
    """Replaces operators on dequantised tensors by operators on their integers.

    Attributes:
        found: how many convolutions and matrix products have quantised weights.
        left: what kinds of them stay products of floats, each as often as it occurs.
    """

    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self.found, self.left = 0, []

    def visit_call_(self, op: Call) -> relax.Expr:
        call = super().visit_call_(op)
        if is_call(call, "relax.quantize"):
            picked = self._picked(call)
            return call if picked is None else picked
        if is_call(call, "relax.matmul") and str(call.attrs.out_dtype) == "int32":
            product = self._product_of_integers(call)
            return call if product is None else product
        if not is_call(call, _PRODUCTS) or (weights := self._weights(call.args[1])) is None:
            return call
        self.found += 1
        if is_call(call, "relax.nn.conv2d"):
            made = self._convolution(call, weights)
        else:
            made = self._product(call, weights) if is_call(call, "relax.matmul") else None
        if made is None:
            grouped = "grouped " if int(getattr(call.attrs, "groups", 1)) > 1 else ""
            data = "" if is_call(bound_value(self, call.args[0]), "relax.dequantize") else " of floats"
            self.left.append(f"{grouped}{call.op.name.rpartition('.')[2]}{data}")
        return call if made is None else made

    def _picked(self, call: Call) -> relax.Expr | None:
        """What picks values may as well pick among the integers, if they stand for the same before and behind it."""
        pick = bound_value(self, call.args[0])
        if not is_call(pick, _PICK_VALUES):
            return None
        back = bound_value(self, pick.args[0])
        same = is_call(back, "relax.dequantize") and _zero_point(back) is not None
        if not same or _zero_point(call) != _zero_point(back) or str(back.args[0].ty.dtype) != call.attrs.out_dtype:
            return None
        if _numbers(call.args[1]) != _numbers(back.args[1]):
            return None
        return Call(pick.op, [back.args[0], *pick.args[1:]], pick.attrs)

    def _data(self, operand: relax.Expr) -> tuple[relax.Expr, float] | None:
        """The integers q - z of dequantised data, int16, and their scale."""
        back = bound_value(self, operand)
        if not is_call(back, "relax.dequantize") or (zero := _zero_point(back)) is None:
            return None
        data, scale = back.args[0], float(back.args[1].value.numpy().reshape(()))
        if str(back.attrs.out_dtype) != "float32" or str(data.ty.dtype) not in ("int8", "uint8"):
            return None
        data = self.builder_.emit(relax.op.astype(data, "int16"))
        return (self.builder_.emit(relax.op.subtract(data, relax.const(zero, "int16"))) if zero else data), scale

    def _weights(self, operand: relax.Expr) -> _Weights | None:
        """Constant weights that were dequantised, perhaps transposed behind that."""
        back, axes = bound_value(self, operand), None
        if is_call(back, "relax.permute_dims"):
            rank = len(back.args[0].ty.shape)
            axes = list(range(rank))[::-1] if back.attrs.axes is None else [int(a) % rank for a in back.attrs.axes]
            back = bound_value(self, back.args[0])
        if not is_call(back, "relax.dequantize"):
            return None
        values, scale, zero = (_numbers(bound_value(self, a)) for a in back.args[:3])
        if values is None or scale is None or zero is None or values.dtype not in (np.int8, np.uint8):
            return None
        axis = int(back.attrs.axis) % values.ndim
        spread = [-1 if i == axis else 1 for i in range(values.ndim)]
        centred = values.astype(np.int32) - (
            zero.astype(np.int32).reshape(spread) if zero.size > 1 else int(zero.reshape(()))
        )
        if centred.min(initial=0) < -SIGN or centred.max(initial=0) >= SIGN:
            return None
        if axes is not None:
            centred, axis = centred.transpose(axes), axes.index(axis)
        return _Weights(
            np.ascontiguousarray(centred.astype(np.int8)), scale.reshape(-1), axis if scale.size > 1 else 0
        )

    def _convolution(self, call: Call, weights: _Weights) -> relax.Expr | None:
        attrs = call.attrs
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout))
        if int(attrs.groups) != 1 or layouts != ("NCHW", "OIHW") or static_shape(call.ty) is None:
            return None
        if weights.axis != 0 or not _fits(weights.values[0].size):
            return None
        if (found := self._data(call.args[0])) is None:
            return None
        data, scale = found
        pads, strides, dilation = ([int(d) for d in each] for each in (attrs.padding, attrs.strides, attrs.dilation))
        total = relax.op.nn.conv2d(data, relax.const(weights.values), strides, pads, dilation, out_dtype="int32")
        return self._scaled(total, scale * weights.scale.astype(np.float64), (1, -1, 1, 1))

    def _product(self, call: Call, weights: _Weights) -> relax.Expr | None:
        if weights.values.ndim != 2 or static_shape(call.ty) is None:
            return None
        if (weights.scale.size > 1 and weights.axis != 1) or not _fits(weights.values.shape[0]):
            return None
        if len(call.args[0].ty.shape) < 2 or (found := self._data(call.args[0])) is None:
            return None
        data, scale = found
        total = relax.op.matmul(data, relax.const(weights.values), out_dtype="int32")
        return self._scaled(total, scale * weights.scale.astype(np.float64), (-1,))

    def _product_of_integers(self, call: Call) -> relax.Expr | None:
        """ONNX's `MatMulInteger`, (q - z) (p - v), whose z is often known only when the network runs:

        it is the product of q and the constant p - v, less z times the sums of its columns.
        """
        weights = self._constant(call.args[1])
        if weights is None or weights.ndim != 2 or static_shape(call.ty) is None or not _fits(len(weights)):
            return None
        if weights.min(initial=0) < -SIGN or weights.max(initial=0) >= SIGN:
            return None
        data, zero = bound_value(self, call.args[0]), None
        if is_call(data, "relax.subtract"):
            data, zero = bound_value(self, data.args[0]), data.args[1]
        if not is_call(data, "relax.astype") or str(data.args[0].ty.dtype) not in ("int8", "uint8"):
            return None
        emit, op, q = self.builder_.emit, relax.op, data.args[0]
        if str(q.ty.dtype) == "int8":
            q = emit(op.astype(emit(op.add(emit(op.astype(q, "int16")), relax.const(SIGN, "int16"))), "uint8"))
            sign = relax.const(SIGN, "int32")
            zero = sign if zero is None else emit(op.add(zero, sign))
        total = op.matmul(emit(op.astype(q, "int16")), relax.const(weights.astype(np.int8)), out_dtype="int32")
        if zero is None:
            return total
        sums = relax.const(weights.sum(0).astype(np.int32))
        return op.subtract(emit(total), emit(op.multiply(zero, sums)))

    def _constant(self, operand: relax.Expr) -> NDArray[Any] | None:
        """The value of constant weights less their zero point, int64; None if it is not known."""
        value = bound_value(self, operand)
        if isinstance(value, GenericConst):
            found = value.value.numpy()
            return found.astype(np.int64) if found.dtype.kind in "iu" else None
        if is_call(value, "relax.astype"):
            return self._constant(value.args[0])
        if is_call(value, "relax.expand_dims"):
            inner = self._constant(value.args[0])
            return None if inner is None else np.expand_dims(inner, [int(a) for a in value.attrs.axis])
        if is_call(value, "relax.subtract"):
            a, b = (self._constant(x) for x in value.args)
            return None if a is None or b is None else a - b
        return None

    def _scaled(self, total: relax.Expr, scale: NDArray[Any], shape: Sequence[int]) -> relax.Expr:
        """Sums of products of integers as the float32 that they stand for."""
        factor = scale.astype(np.float32)
        floats = self.builder_.emit(relax.op.astype(self.builder_.emit(total), "float32"))
        return relax.op.multiply(floats, relax.const(factor.reshape(shape) if factor.size > 1 else factor[0]))


def _fits(terms: int) -> bool:
    """Whether a sum of so many products stays within 32 bits, whatever the numbers are."""
    return math.prod((terms, 2 * SIGN - 1, SIGN)) <= LARGEST_SUM
