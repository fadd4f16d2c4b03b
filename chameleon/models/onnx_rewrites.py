"""Rewrite the operators of an ONNX graph that TVM's importer does not know or takes wrongly, into ones that it knows.

What neither the importer nor a rewrite knows is refused here, by name and place, before TVM can take it for another
operator: its importer looks at an operator's name only, not at its domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from chameleon.models.errors import ModelError, first_line

_MICROSOFT = (
    "Attention",
    "BiasGelu",
    "EmbedLayerNormalization",
    "FastGelu",
    "Gelu",
    "MatMulInteger16",
    "SkipLayerNormalization",
)
"""The operators of ONNX Runtime's own domain that TVM's importer knows."""

_OTHERS_OWN = {"Attention", "BiasGelu", "EmbedLayerNormalization", "FastGelu", "MatMulInteger16", "AllClassNMS"}
"""Names in the importer's table that are not those of ONNX's own operators."""

_STANDARD = ("", "ai.onnx")

_OF_ANY_SIZE = ("NonZero", "Compress", "Unique")
"""The operators whose outputs have as many elements as a run finds."""


def place(node: onnx.NodeProto) -> str:
    """An operator, with its domain if it is not ONNX's own, and where it is in the graph."""
    domain = "" if node.domain in _STANDARD else f"{node.domain}::"
    return f"{domain}{node.op_type} at {node.name or '(unnamed)'!r} -> {', '.join(node.output)}"


def inline_functions(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Replace the calls of the file's own functions by their bodies.

    Raises:
        ModelError: if that cannot be done.
    """
    if not proto.functions:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto, convert_version=True)
    except Exception as error:
        names = ", ".join(f.name for f in proto.functions)
        raise ModelError(f"{name}: ONNX cannot inline the file's functions {names}: {first_line(error)}") from error


def known_operators(proto: onnx.ModelProto, name: str, supported: set[str]) -> onnx.ModelProto:
    """Replace the operators that the importer does not know by ones that it knows, as ONNX defines them.

    Args:
        supported: the names of the operators that the importer knows.

    Raises:
        ModelError: if operators are left that the importer does not know.
    """
    _replace(proto.graph, _REWRITES)
    own = supported - _OTHERS_OWN
    opset = next((o.version for o in proto.opset_import if o.domain in _STANDARD), 1)
    foreign = {n.op_type for n in proto.graph.node if n.domain in _STANDARD and n.op_type not in own}
    if expand := sorted(op for op in foreign if _has_body(op, opset)):
        try:
            proto = onnx.inliner.inline_selected_functions(
                proto, [("", op) for op in expand], exclude=False, inline_schema_functions=True
            )
        except Exception as error:
            raise ModelError(f"{name}: ONNX cannot expand {', '.join(expand)}: {first_line(error)}") from error
    left = [n for n in proto.graph.node if not _is_known(n, own)]
    if left:
        places = "; ".join(place(n) for n in left[:5])
        raise ModelError(f"{name}: TVM cannot import this network: unsupported operator {places}")
    return proto


def _is_known(node: onnx.NodeProto, own: set[str]) -> bool:
    if node.domain in _STANDARD:
        return node.op_type in own
    return node.domain == "com.microsoft" and node.op_type in _MICROSOFT


def _has_body(operator: str, opset: int) -> bool:
    try:
        schema: Any = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return False
    return schema.has_function or schema.has_context_dependent_function


def refuse_training(graph: onnx.GraphProto, name: str, constants: Mapping[str, Any]) -> None:
    """Refuse what only makes sense in training: random dropouts, and running statistics that are read.

    Args:
        constants: arrays of the constants, by name.

    Raises:
        ModelError: if there is such an operator.
    """
    read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    for node in graph.node:
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            flag = constants.get(node.input[2])
            if flag is None or bool(np.asarray(flag).any()):
                raise ModelError(
                    f"{name}: {place(node)} is in training mode: the network is random, a compiled network is not; "
                    "export it in evaluation mode"
                )
        if node.op_type == "BatchNormalization" and _attributes(node).get("training_mode"):
            if used := [o for o in node.output[1:] if o in read]:
                raise ModelError(
                    f"{name}: {place(node)} is in training mode and its new statistics {', '.join(used)} are read; "
                    "export the network in evaluation mode"
                )
            del node.output[1:]


def refuse_unknown(graph: onnx.GraphProto, name: str) -> None:
    """Refuse what only a run can tell: branches whose condition is not constant, and shapes that depend on data.

    Raises:
        ModelError: if there is such an operator.
    """
    for node in graph.node:
        if node.domain in _STANDARD and node.op_type in _OF_ANY_SIZE:
            raise ModelError(
                f"{name}: the shape of what {place(node)} makes depends on data; kernels are made for static shapes, "
                "so end the network before it"
            )
        if node.op_type == "If":
            raise ModelError(
                f"{name}: the condition {node.input[0]!r} of {place(node)} depends on the network's input; a network "
                "is compiled as one sequence of kernels, so export it with one of the branches"
            )


def take_branch(node: onnx.NodeProto, condition: bool) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and weights of the branch that an `If` with a constant condition takes."""
    branch = _attributes(node)["then_branch" if condition else "else_branch"]
    ends = [
        helper.make_node("Identity", [inner.name], [outer], name=f"{node.name or 'If'}__{outer}")
        for inner, outer in zip(branch.output, node.output, strict=True)
        if outer
    ]
    return [*branch.node, *ends], list(branch.initializer)


def explicit_attributes(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write out the paddings of transposed convolutions and poolings.

    TVM's importer ignores `output_shape`, and takes `auto_pad` wrongly where the window moves in one dimension.

    Args:
        shapes: the static shapes of tensors, by name.
    """
    for node in graph.node:
        if node.op_type == "ConvTranspose" and node.input[0] in shapes and node.input[1] in shapes:
            _explicit_pads(node, shapes[node.input[0]], shapes[node.input[1]])
        elif node.op_type in ("MaxPool", "AveragePool") and node.input[0] in shapes:
            _explicit_pool_pads(node, shapes[node.input[0]])


def _explicit_pool_pads(node: onnx.NodeProto, data: Sequence[int]) -> None:
    """Replace the `auto_pad` of a pooling by `pads`."""
    attributes = _attributes(node)
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return
    kernel, ones = attributes["kernel_shape"], [1] * (len(data) - 2)
    strides, dilations = attributes.get("strides", ones), attributes.get("dilations", ones)
    pads = []
    for size, window, stride, dilation in zip(data[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
        pads.append((total // 2, total - total // 2)[:: 1 if auto == "SAME_UPPER" else -1])
    for attribute in [a for a in node.attribute if a.name in ("auto_pad", "pads")]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("pads", [p[0] for p in pads] + [p[1] for p in pads]))


def _explicit_pads(node: onnx.NodeProto, data: Sequence[int], weight: Sequence[int]) -> None:
    """Replace `output_shape` and `auto_pad` of a transposed convolution by `pads` and `output_padding`."""
    attributes = _attributes(node)
    rank = len(data) - 2
    strides = list(attributes.get("strides", [1] * rank))
    dilations = list(attributes.get("dilations", [1] * rank))
    extra = list(attributes.get("output_padding", [0] * rank))
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    wanted = list(attributes.get("output_shape", []))[-rank:]
    if auto in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = [size * stride for size, stride in zip(data[2:], strides, strict=True)]
    pads = list(attributes.get("pads", [0] * (2 * rank))) if auto == "NOTSET" else [0] * (2 * rank)
    for i, size in enumerate(wanted):
        full = strides[i] * (data[i + 2] - 1) + extra[i] + (weight[i + 2] - 1) * dilations[i] + 1
        total = full - size
        if total < 0:  # no padding makes it larger, only rows and columns of zeros behind it do
            extra[i] -= total
            total = 0
        small, large = total // 2, total - total // 2
        pads[i], pads[i + rank] = (small, large) if auto == "SAME_UPPER" else (large, small)
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "output_shape", "output_padding", "pads")]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(helper.make_attribute("pads", pads))
    node.attribute.append(helper.make_attribute("output_padding", extra))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _replace(graph: onnx.GraphProto, rewrites: Mapping[str, Callable[[onnx.NodeProto], Iterator[Any]]]) -> None:
    """Replace the nodes of these operators by the nodes and constants that their rewrites make."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.domain not in _STANDARD or node.op_type not in rewrites:
            graph.node.append(node)
            continue
        for part in rewrites[node.op_type](node):
            if isinstance(part, onnx.NodeProto):
                graph.node.append(part)
            else:
                graph.initializer.append(part)


def _float_inputs(node: onnx.NodeProto, axis: int) -> Iterator[Any]:
    """The two quantised inputs of a node as float: `{output}__a` and `{output}__b`; `axis` is the second one's."""
    out = node.output[0]
    for name, at in (("a", 0), ("b", 3)):
        floats = helper.make_node("DequantizeLinear", node.input[at : at + 3], [f"{out}__{name}"])
        if name == "b":
            floats.attribute.append(helper.make_attribute("axis", axis))
        yield floats


def _quantised(node: onnx.NodeProto) -> Iterator[Any]:
    out = node.output[0]
    yield helper.make_node("QuantizeLinear", [f"{out}__float", node.input[6], node.input[7]], [out], name=node.name)


def _qlinear_conv(node: onnx.NodeProto) -> Iterator[Any]:
    """A quantised convolution as one of floats; its bias has the scale of data times weights, and no zero point."""
    out = node.output[0]
    yield from _float_inputs(node, axis=0)
    inputs = [f"{out}__a", f"{out}__b"]
    if len(node.input) > 8 and node.input[8]:
        yield helper.make_node("Cast", [node.input[8]], [f"{out}__bias"], to=onnx.TensorProto.FLOAT)
        yield helper.make_node("Mul", [node.input[1], node.input[4]], [f"{out}__scale"])
        yield helper.make_node("Mul", [f"{out}__bias", f"{out}__scale"], [f"{out}__c"])
        inputs.append(f"{out}__c")
    conv = helper.make_node("Conv", inputs, [f"{out}__float"], name=f"{node.name}__float")
    conv.attribute.extend(node.attribute)
    yield conv
    yield from _quantised(node)


def _qlinear_matmul(node: onnx.NodeProto) -> Iterator[Any]:
    """A quantised matrix product as a product of floats; scales of the second factor are one for each column."""
    out = node.output[0]
    yield from _float_inputs(node, axis=-1)
    yield helper.make_node("MatMul", [f"{out}__a", f"{out}__b"], [f"{out}__float"], name=f"{node.name}__float")
    yield from _quantised(node)


def _conv_integer(node: onnx.NodeProto) -> Iterator[Any]:
    """A convolution of integers as one of quantised tensors with the scale 1; as floats it is exact up to 2^24."""
    out, (data, weight) = node.output[0], node.input[:2]
    zeros = [*node.input[2:], "", ""][:2]
    yield numpy_helper.from_array(np.array(1, np.float32), f"{out}__one")
    for name, source, zero in (("a", data, zeros[0]), ("b", weight, zeros[1])):
        inputs = [source, f"{out}__one", *([zero] if zero else [])]
        yield helper.make_node("DequantizeLinear", inputs, [f"{out}__{name}"], axis=0)
    conv = helper.make_node("Conv", [f"{out}__a", f"{out}__b"], [f"{out}__float"], name=f"{node.name}__float")
    conv.attribute.extend(node.attribute)
    yield conv
    yield helper.make_node("Cast", [f"{out}__float"], [out], to=onnx.TensorProto.INT32)


def _constant(node: onnx.NodeProto) -> Iterator[Any]:
    """A constant of a few numbers as a constant tensor, the only form that TVM's importer knows."""
    for name, kind in (("value_float", np.float32), ("value_int", np.int64)):
        for attribute in (name, f"{name}s"):
            if attribute in (values := _attributes(node)):
                tensor = numpy_helper.from_array(np.array(values[attribute], dtype=kind))
                yield helper.make_node("Constant", [], node.output, name=node.name, value=tensor)
                return
    yield node


def _upsample(node: onnx.NodeProto) -> Iterator[Any]:
    """`Upsample`, and `Resize` as opset 10 has it, in today's form of `Resize`.

    TVM's importer rounds where `Upsample` rounds down, and has no other form of `Resize` than today's.
    """
    attributes = _attributes(node)
    if node.op_type == "Resize" and len(node.input) != 2:
        yield node
        return
    scales = [*node.input[1:]]
    if "scales" in attributes:  # opset 7
        scales = [f"{node.output[0]}__scales"]
        yield numpy_helper.from_array(np.array(attributes["scales"], dtype=np.float32), scales[0])
    yield helper.make_node(
        "Resize",
        [node.input[0], "", *scales],
        node.output,
        name=node.name,
        mode=attributes.get("mode", b"nearest"),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


_REWRITES: dict[str, Callable[[onnx.NodeProto], Iterator[Any]]] = {
    "Constant": _constant,
    "Upsample": _upsample,
    "Resize": _upsample,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "ConvInteger": _conv_integer,
}
