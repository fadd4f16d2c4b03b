"""Bring an imported network into inference form.

Batch norms are folded into convolutions, dropouts are removed, and constants are folded.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from chameleon.ir import bound_value, is_call, static_dims, static_shape, with_main
from chameleon.models.integers import with_integer_products


def inference_form(mod: IRModule) -> IRModule:
    """Remove from `main` what only training needs; weights stay constants in `main`.

    Batch norms are folded here in numpy, and not by TVM's passes, for three reasons. Those passes fold only
    convolutions without bias. They duplicate a convolution that has other readers. And they compile one kernel for
    each constant expression (36 s on a DenseNet).
    """
    fold = relax.transform.FoldConstant()
    clean = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
    mod = tvm.transform.Sequential([fold, *clean])(fold_exactly(with_integer_products(mod)))
    mod = _fold_batch_norms(mod)
    return tvm.transform.Sequential([relax.transform.DecomposeOpsForInference(), fold, *clean])(mod)


def fold_exactly(mod: IRModule) -> IRModule:
    """Compute with numpy what needs no rounding: the shapes and indices of an ONNX file, and moved weights.

    `FoldConstant` would compile a kernel for each operator.
    """
    main = _ExactFolder(mod).visit_expr(mod["main"])
    return relax.transform.CanonicalizeBindings()(with_main(mod, main))


@mutator
class _ExactFolder(PyExprMutator):
    def visit_call_(self, op: Call) -> relax.Expr:
        call = super().visit_call_(op)
        if is_call(call, "relax.shape_to_tensor"):
            dims = static_dims(getattr(call.args[0].ty, "values", None))
            return call if dims is None else relax.const(np.array(dims, dtype="int64"), "int64")
        shape = static_shape(call.ty)
        if shape is None or not is_call(call, _EXACT):
            return call
        operands = [self._value(a) for a in call.args if not isinstance(a.ty, relax.ShapeType)]
        if any(x is None for x in operands):
            return call
        found = _EXACT[call.op.name](call.attrs, *operands)
        if found is None or str(found.dtype) != str(call.ty.dtype):
            return call
        return relax.const(np.ascontiguousarray(found).reshape(shape), str(found.dtype))

    def _value(self, operand: relax.Expr) -> NDArray[Any] | None:
        value = bound_value(self, operand)
        return value.value.numpy() if isinstance(value, GenericConst) else None


def _of_integers(function: Callable[..., NDArray[Any]]) -> Callable[..., NDArray[Any] | None]:
    return lambda _, *operands: function(*operands) if all(x.dtype.kind in "ib" for x in operands) else None


def _permuted(attrs: Any, x: NDArray[Any]) -> NDArray[Any]:
    return x.transpose(None if attrs.axes is None else [int(a) for a in attrs.axes])


def _taken(attrs: Any, x: NDArray[Any], indices: NDArray[Any]) -> NDArray[Any] | None:
    axis = 0 if attrs.axis is None else int(attrs.axis)
    if x.dtype.kind not in "ib" or x.ndim == 0 or not ((indices >= 0) & (indices < x.shape[axis])).all():
        return None
    return x.take(indices, axis)


_EXACT: dict[str, Callable[..., NDArray[Any] | None]] = {
    "relax.add": _of_integers(np.add),
    "relax.less": _of_integers(np.less),
    "relax.permute_dims": _permuted,
    "relax.reshape": lambda _, x: x,  # all results take the shape that the operator's has
    "relax.take": _taken,
    "relax.where": _of_integers(np.where),
}
"""By operator, a function of its attributes and operands; it returns None for operands that are left to TVM."""


def _fold_batch_norms(mod: IRModule) -> IRModule:
    return relax.transform.DeadCodeElimination()(with_main(mod, _Folder(mod["main"], mod).visit_expr(mod["main"])))


@mutator
class _Folder(PyExprMutator):
    """Replaces `batch_norm(x)[0]` by a scaled convolution plus a constant, and `dropout(x)[0]` by `x`.

    A batch norm in training mode becomes the arithmetic that it is.
    """

    def __init__(self, func: relax.Function, mod: IRModule) -> None:
        super().__init__(mod)
        self._values: dict[Any, Any] = dict(relax.analysis.get_var2val(func).items())
        self._readers = _count_readers(func)

    def visit_tuple_getitem_(self, op: relax.TupleGetItem) -> relax.Expr:
        call = self._values.get(op.tuple_value, op.tuple_value)
        if op.index == 0 and is_call(call, "relax.nn.dropout"):
            return self.visit_expr(call.args[0])
        if op.index == 0 and is_call(call, "relax.nn.batch_norm"):
            if call.attrs.training:
                return self._normalised(call)
            if all(isinstance(a, GenericConst) for a in call.args[1:]):
                return self._folded(call)
        return super().visit_tuple_getitem_(op)

    def _normalised(self, call: Call) -> relax.Expr:
        """A batch norm in training mode: by the mean and the variance of its input, not by the running ones.

        TVM's passes take every batch norm for one in inference.
        """
        x, gamma, beta = (self.visit_expr(a) for a in call.args[:3])
        axis, rank, dtype = int(call.attrs.axis), len(x.ty.shape), str(x.ty.dtype)
        axes = [i for i in range(rank) if i != axis % rank]
        emit, op = self.builder_.emit, relax.op
        centred = emit(op.subtract(x, emit(op.mean(x, axes, keepdims=True))))
        variance = emit(op.mean(emit(op.multiply(centred, centred)), axes, keepdims=True))
        deviation = emit(op.sqrt(emit(op.add(variance, relax.const(float(call.attrs.epsilon), dtype)))))
        result = emit(op.divide(centred, deviation))
        shape = [-1 if i == axis % rank else 1 for i in range(rank)]
        if call.attrs.scale:
            result = emit(op.multiply(result, emit(op.reshape(gamma, shape))))
        return op.add(result, emit(op.reshape(beta, shape))) if call.attrs.center else result

    def _folded(self, call: Call) -> relax.Expr:
        """A batch norm of `x` as `x * scale + shift`.

        If `x` is the result of a convolution that can be changed, the scale goes into the weights of the convolution.
        """
        scale, shift = _scale_and_shift(call)
        conv, bias = self._convolution(call.args[0], call.attrs.axis)
        if conv is None:
            x = self.visit_expr(call.args[0])
            axis = int(call.attrs.axis)
            shape = [len(scale) if i == axis else 1 for i in range(len(x.ty.shape))]
            product = self.builder_.emit(relax.op.multiply(x, relax.const(scale.reshape(shape))))
            return relax.op.add(product, relax.const(shift.reshape(shape)))
        weight = conv.args[1].value.numpy()
        weight = (weight * scale.reshape(-1, 1, 1, 1)).astype(weight.dtype)
        shift = (shift + bias * scale).astype(weight.dtype).reshape(1, -1, 1, 1)
        call = Call(conv.op, [self.visit_expr(conv.args[0]), relax.const(weight)], conv.attrs)
        return relax.op.add(self.builder_.emit(call), relax.const(shift))

    def _convolution(self, x: relax.Expr, axis: int) -> tuple[Call | None, NDArray[Any] | float]:
        """The convolution with constant weights that makes `x`, and its bias `[channels]`, or zero if it has none.

        The convolution is `None` if there is none, or if others read it, too.
        """
        value, bias = self._only_read(x), np.zeros(1, dtype="float32")
        if is_call(value, "relax.add") and isinstance(value.args[1], GenericConst):
            constant = value.args[1].value.numpy()
            if constant.ndim != 4 or constant.size != constant.shape[1]:
                return None, 0.0
            value, bias = self._only_read(value.args[0]), constant.reshape(-1)
        if not (is_call(value, "relax.nn.conv2d") and isinstance(value.args[1], GenericConst)):
            return None, 0.0
        layouts = value.attrs.data_layout, value.attrs.kernel_layout, value.attrs.out_layout
        return (value, bias) if layouts == ("NCHW", "OIHW", "NCHW") and int(axis) == 1 else (None, 0.0)

    def _only_read(self, x: relax.Expr) -> Any:
        """What the variable `x` stands for, if it is read once."""
        return self._values.get(x) if self._readers[x] == 1 else None


def _scale_and_shift(call: Call) -> tuple[NDArray[Any], NDArray[Any]]:
    """The scale and the shift that a batch norm of constants applies to each channel: `[channels]` each.

    They are computed in float64.
    """
    gamma, beta, mean, variance = (a.value.numpy() for a in call.args[1:])
    scale = 1.0 / np.sqrt(variance.astype("float64") + float(call.attrs.epsilon))
    scale = scale * gamma if call.attrs.scale else scale
    shift = (beta if call.attrs.center else 0.0) - mean * scale
    return scale.astype(gamma.dtype), shift.astype(gamma.dtype)


def _count_readers(func: relax.Function) -> Counter[Any]:
    """How often each variable of a function is read."""
    readers: Counter[Any] = Counter()

    def visit(node: Any) -> None:
        for argument in _operands(node):
            readers[argument] += 1

    relax.analysis.post_order_visit(func, visit)
    return readers


def _operands(node: Any) -> list[Any]:
    """The variables that an expression reads directly."""
    if isinstance(node, Call):
        operands = list(node.args)
    elif isinstance(node, relax.Tuple):
        operands = list(node.fields)
    elif isinstance(node, relax.TupleGetItem):
        operands = [node.tuple_value]
    elif isinstance(node, relax.SeqExpr):
        operands = [node.body]
    elif isinstance(node, relax.If):
        operands = [node.cond]
    else:
        operands = []
    return [a for a in operands if isinstance(a, relax.Var)]
