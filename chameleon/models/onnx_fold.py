"""Fold the constant parts of an ONNX graph whose input shapes are static.

These parts are arithmetic on shapes, and weights that the file computes. There are two reasons to fold them here, with
ONNX's reference evaluator. TVM's importer would leave a computed shape to the run time, and no kernel can be tuned for
such a shape. And TVM's `FoldConstant` would compile a kernel for each constant expression.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from chameleon.models.onnx_rewrites import take_branch
from chameleon.models.sizes import check_size

ROUNDS = 8
"""The graph is folded at most this often: a fold may make further shapes known, which allow further folds."""

_NEVER = (
    "Random",
    "Multinomial",
    "Bernoulli",
    "Dropout",
    "If",
    "Loop",
    "Scan",
    "Sequence",
    "Optional",
    "Quantize",
    "Dequantize",
)


_SMALL = 1024
"""Integers that are the shapes, indices or repeats of an operator are no more than this."""


def fold_constants(proto: onnx.ModelProto, name: str) -> None:
    """Replace the nodes whose outputs are known by constants; `proto` is changed in place.

    Args:
        name: of the model, for messages.

    Raises:
        ModelError: if a constant would be larger than the memory.
    """
    for _ in range(ROUNDS):
        if not _fold_once(proto, name):
            return


def _fold_once(proto: onnx.ModelProto, name: str) -> bool:
    shapes = known_shapes(proto)
    known = {w.name: w for w in proto.graph.initializer}
    arrays: dict[str, NDArray[Any]] = {}
    kept: list[onnx.NodeProto] = []
    folded = False
    for node in proto.graph.node:
        if (condition := _condition(node, known, arrays)) is not None:
            nodes, weights = take_branch(node, condition)
            kept += nodes
            proto.graph.initializer.extend(weights)
            folded = True
            continue
        values = _evaluated(proto, name, node, known, arrays, shapes)
        folded |= values is not None
        if values is None:
            kept.append(node)
        arrays.update(zip(node.output, values or [], strict=False))
    if not folded:
        return False
    read = {i for n in kept for i in _read_by(n)} | {o.name for o in proto.graph.output}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items() if k in read)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    del proto.graph.value_info[:]
    return True


def _condition(node: onnx.NodeProto, known: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> bool | None:
    """Whether an `If` takes its first branch; `None` if this is no `If`, or the condition is not known."""
    name = node.input[0] if node.op_type == "If" else ""
    if name not in arrays and name not in known:
        return None
    value = arrays[name] if name in arrays else numpy_helper.to_array(known[name])
    return bool(value.reshape(-1)[0])


def _read_by(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, in its branches too."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    inner = {name for body in bodies for n in body.node for name in _read_by(n)}
    return {*node.input} | inner | {o.name for body in bodies for o in body.output}


def _evaluated(
    proto: onnx.ModelProto,
    name: str,
    node: Any,
    known: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    shapes: dict[str, list[int]],
) -> list[NDArray[Any]] | None:
    """The outputs of a node; `None` if they depend on the network's inputs or cannot be computed here."""
    if (
        node.domain not in ("", "ai.onnx")
        or node.op_type.startswith(_NEVER)
        or {o.name for o in proto.graph.output} & {*node.output}
    ):
        return None
    if node.op_type == "Shape" and node.input[0] in shapes:
        bounds = {a.name: a.i for a in node.attribute}
        return [np.array(shapes[node.input[0]][bounds.get("start", 0) : bounds.get("end")], dtype=np.int64)]
    names = [i for i in node.input if i]
    if not all(n in arrays or n in known for n in names):
        return None
    feed = {n: arrays[n] if n in arrays else numpy_helper.to_array(known[n]) for n in names}
    inputs = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in feed.items()
    ]
    outputs = [onnx.ValueInfoProto(name=o) for o in node.output if o]
    small = [numpy_helper.from_array(v, n) for n, v in feed.items() if v.size <= _SMALL and v.dtype.kind in "iu"]
    single = onnx.helper.make_model(
        onnx.helper.make_graph([node], "fold", inputs, outputs, small),
        opset_imports=proto.opset_import,
        ir_version=proto.ir_version,
    )
    refuse_huge(single, name)
    try:
        values = ReferenceEvaluator(single).run(None, feed)
    except Exception:  # an operator without a reference implementation stays where it is
        return None
    return [np.asarray(v) for v in values] if all(isinstance(v, (np.ndarray, np.generic)) for v in values) else None


def refuse_huge(proto: onnx.ModelProto, name: str) -> None:
    """Refuse a graph with a tensor that is larger than the memory, as far as ONNX can infer shapes.

    Raises:
        ModelError: if there is one.
    """
    graph = inferred(proto).graph
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            item = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize if tensor.elem_type else 1
            check_size(name, f"tensor {value.name!r}", [d.dim_value for d in tensor.shape.dim], item)


def inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes that ONNX can infer; it infers none for files beyond its limit of 2 GiB."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (ValueError, onnx.shape_inference.InferenceError):
        return proto


def known_shapes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """The static shapes of tensors, by name: those in the file, and those that ONNX can infer."""
    graph = inferred(proto).graph
    shapes = {w.name: list(w.dims) for w in graph.initializer}
    for value in [*graph.input, *graph.value_info]:
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            if all(d.HasField("dim_value") for d in dims):
                shapes[value.name] = [d.dim_value for d in dims]
    return shapes
