"""Read ONNX files, and say in plain words what is wrong with a file that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from chameleon.models.errors import ModelError
from chameleon.models.onnx_fold import fold_constants, inferred, known_shapes, refuse_huge
from chameleon.models.onnx_rewrites import (
    explicit_attributes,
    inline_functions,
    known_operators,
    place,
    refuse_training,
    refuse_unknown,
)
from chameleon.models.outputs import Output
from chameleon.models.shapes import Dims, GivenShapes, static_shapes

_SUSPECTS = ("ConvTranspose", "Conv", "MaxPool", "AveragePool", "LpPool", "Resize", "Upsample", "Pad", "Slice")
"""Operators whose attributes TVM's importer ignores most often."""


@dataclass(frozen=True)
class OnnxNetwork:
    """A network in the operators that TVM's importer knows.

    Attributes:
        proto: the network.
        shapes: the static shapes of its inputs, by name.
        outputs: what the file, or ONNX's shape inference, says of its outputs.
    """

    proto: onnx.ModelProto
    shapes: dict[str, tuple[int, ...]]
    outputs: tuple[Output, ...]


def read_onnx(path: Path, given: GivenShapes, say: Callable[[str], None]) -> OnnxNetwork:
    """Read the network in a file, give its inputs static shapes, and rewrite what TVM's importer does not know.

    Raises:
        UsageError: if `given` names an input or a dimension that there is not.
        ModelError: if the file is broken, incomplete, larger than the memory, has open dimensions or an operator that
            nothing knows.
    """
    proto = _parse(path)
    weights = {w.name for w in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in weights]
    declared = {i.name: _dims(path, i) for i in inputs}
    shapes = static_shapes(path.name, declared, given)
    if any(not isinstance(d, int) for dims in declared.values() for d in dims):
        _fix_shapes(proto, shapes)
    proto = inline_functions(proto, path.name)
    refuse_huge(proto, path.name)
    outputs = _outputs(proto)
    fold_constants(proto, path.name)
    refuse_unknown(proto.graph, path.name)
    _split_sums(proto.graph)
    proto = known_operators(proto, path.name, _supported())
    fold_constants(proto, path.name)
    refuse_training(proto.graph, path.name, {w.name: numpy_helper.to_array(w) for w in _scalars(proto)})
    explicit_attributes(proto.graph, known_shapes(proto))
    return OnnxNetwork(proto, shapes, outputs)


def _scalars(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [w for w in proto.graph.initializer if len(w.dims) == 0 or list(w.dims) == [1]]


def _supported() -> set[str]:
    """The names of the operators that TVM's importer knows."""
    from tvm.relax.frontend.onnx import onnx_frontend

    return {*onnx_frontend._get_convert_map(), "Constant"}


def _outputs(proto: onnx.ModelProto) -> tuple[Output, ...]:
    """What ONNX infers of the outputs, or what the file says of those of which it infers nothing."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    del bare.graph.value_info[:]
    found = {v.name: v for v in inferred(bare).graph.output}
    outputs = []
    for value in proto.graph.output:
        shape = _declared(found[value.name])
        kind = found[value.name].type.tensor_type.elem_type or value.type.tensor_type.elem_type
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else ""
        suspects = "; ".join(place(n) for n in _upstream(proto.graph, value.name))
        outputs.append(Output(value.name, _declared(value) if shape is None else shape, dtype, suspects))
    return tuple(outputs)


def _declared(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The dimensions of a value; `None` for those that are not known."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]


def _upstream(graph: onnx.GraphProto, name: str, limit: int = 3) -> list[onnx.NodeProto]:
    """The suspects that an output is computed with, the nearest first."""
    wanted, found = {name}, []
    for node in reversed(graph.node):
        if wanted & {*node.output}:
            wanted |= {*node.input}
            if node.op_type in _SUSPECTS:
                found.append(node)
    return found[:limit]


def conversion_error(path: Path, proto: onnx.ModelProto, said: str, error: Exception) -> str:
    """The message that says which operators TVM's importer refuses, and which nodes have them.

    Args:
        said: what the importer printed.
        error: what it raised.
    """
    message = " ".join(str(error).split())
    blamed = set(re.findall(r"Error converting operator (\w+)", said))
    where = "; ".join(place(n) for n in [n for n in proto.graph.node if n.op_type in blamed][:5])
    at = f" at {where}" if where else ""
    return f"{path.name}: TVM's importer fails on this network{at} ({message[:200]})"


def _parse(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load(path)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX file, or cut off ({error})") from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:  # a file with weights is missing
        raise ModelError(f"{path}: cannot be read completely: {' '.join(str(error).split())[:300]}") from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{path}: not an ONNX file, or one without a network: it has no nodes or no outputs")
    defined = {i.name for i in proto.graph.input} | {w.name for w in proto.graph.initializer} | {""}
    defined |= {o for n in proto.graph.node for o in n.output} | {
        s.values.name for s in proto.graph.sparse_initializer
    }
    for node in proto.graph.node:
        missing = [i for i in node.input if i not in defined]
        if missing:
            raise ModelError(
                f"{path}: broken: node {node.name or node.op_type!r} reads {missing[0]!r}, which nothing defines"
            )
    return proto


def _dims(path: Path, value: onnx.ValueInfoProto) -> Dims:
    """The dimensions of an input; for an open dimension its name, or one made of the input's name and its number."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise ModelError(f"{path.name}: input {value.name!r} has no known number of dimensions, which TVM needs")
    dims = value.type.tensor_type.shape.dim
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or f"{value.name}.{i}")
        for i, d in enumerate(dims)
    ]


def _fix_shapes(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write static shapes into the inputs, and remove the shapes that were derived from open dimensions."""
    for value in proto.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _split_sums(graph: onnx.GraphProto) -> None:
    """Replace each `Sum` by `Add`s: TVM 0.27 imports a `Sum` as stack and reduction, which cannot be fused."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type != "Sum" or len(node.input) < 2:
            graph.node.append(node)
            continue
        left = node.input[0]
        for i, right in enumerate(node.input[1:], start=2):
            out = node.output[0] if i == len(node.input) else f"{node.output[0]}__sum{i}"
            graph.node.append(onnx.helper.make_node("Add", [left, right], [out], name=f"{node.name}__add{i}"))
            left = out
