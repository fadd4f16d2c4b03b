"""Read ONNX files, and say in plain words what is wrong with a file that cannot be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from chameleon.models.errors import ModelError
from chameleon.models.onnx_fold import fold_constants
from chameleon.models.shapes import static_shapes


def read_onnx(path: Path, input_shape: Any) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """Read the network in a file, and give its inputs static shapes.

    Returns:
        The network, and the shapes of its inputs by name.

    Raises:
        ModelError: if the file is broken, incomplete or has open dimensions that `input_shape` does not fix.
    """
    proto = _parse(path)
    weights = {w.name for w in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in weights]
    shapes = static_shapes(path.name, {i.name: _dims(path, i) for i in inputs}, input_shape)
    if any(not isinstance(d, int) for i in inputs for d in _dims(path, i)):
        _fix_shapes(proto, shapes)
    _split_sums(proto.graph)
    fold_constants(proto)
    return proto, shapes


def conversion_error(path: Path, proto: onnx.ModelProto, said: str, error: Exception) -> str:
    """The message that says which operators TVM's importer refuses, and which nodes have them.

    Args:
        said: what the importer printed.
        error: what it raised.
    """
    message = " ".join(str(error).split())
    blamed = re.findall(r"Error converting operator (\w+)", said)
    kinds = set(blamed) or set(re.findall(r"\w+", message.rpartition(":")[2]))
    nodes = [n for n in proto.graph.node if n.op_type in kinds]
    where = "; ".join(f"{n.op_type} at {n.name or '(unnamed)'!r} -> {', '.join(n.output)}" for n in nodes[:5])
    why = f" ({message[:200]})" if blamed or not nodes else ""
    return f"{path.name}: TVM cannot import this network: unsupported operator {where or 'somewhere'}{why}"


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


def _dims(path: Path, value: onnx.ValueInfoProto) -> list[int | str]:
    """The dimensions of an input; for an open dimension its name, `?` if it has none."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise ModelError(f"{path.name}: input {value.name!r} has no known number of dimensions, which TVM needs")
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.dim_value > 0 else (d.dim_param or "?") for d in dims]


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
