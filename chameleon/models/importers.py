"""Import networks into Relax with TVM's frontends, and turn what can go wrong into messages for people."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tvm import relax
from tvm.ir import IRModule

from chameleon.ir import static_shape
from chameleon.models.errors import ModelError, explained, first_line
from chameleon.models.exported import (
    load_program,
    output_metas,
    place_of,
    prepared_program,
    static_program,
)
from chameleon.models.outputs import Output, check_outputs
from chameleon.models.pytorchcv import zoo_network
from chameleon.models.shapes import GivenShapes
from chameleon.models.sizes import check_size

Say = Callable[[str], None]


@dataclass(frozen=True)
class Imported:
    """What a frontend of TVM made from a network.

    Attributes:
        mod: the module.
        shapes: the static shapes of the inputs, by name.
        output_names: the names of the outputs; empty if the file does not have them.
    """

    mod: IRModule
    shapes: dict[str, tuple[int, ...]]
    output_names: tuple[str, ...] = ()


def import_zoo(name: str, seed: int, given: GivenShapes) -> Imported:
    """Import a network of the zoo, with random weights."""
    network = zoo_network(name, seed, given)
    for of_input, shape in network.shapes.items():
        check_size(name, f"input {of_input!r}", shape, item_bytes=4)
    inputs = tuple(torch.zeros(shape) for shape in network.shapes.values())
    with explained(name), torch.no_grad():
        if given.shapes is not None:
            network.module(*inputs)  # a wrong shape fails here; the exporter would log a traceback first
        program = torch.export.export(network.module, inputs)
    return Imported(_import_program(program, name), dict(network.shapes))


def import_exported(path: Path, given: GivenShapes, say: Say) -> Imported:
    """Import a program that `torch.export.save` wrote."""
    program, shapes = static_program(load_program(path), path.name, given)
    if steps := _recurrent(program):
        say(f"{path.name}: unrolling {steps} step by step, which takes a while")
    return Imported(_import_program(program, path.name), shapes)


def _recurrent(program: torch.export.ExportedProgram) -> str:
    """The kinds of recurrent layers in a program."""
    kinds = ("lstm", "gru", "rnn_tanh", "rnn_relu")
    found = {str(getattr(n.target, "__name__", "")).partition(".")[0] for n in program.graph.nodes}
    return " and ".join(kind.upper() for kind in kinds if kind in found)


def import_onnx(path: Path, given: GivenShapes, say: Say) -> Imported:
    """Import a network in ONNX format; its weights are inside the file or in files beside it."""
    from tvm.relax.frontend.onnx import from_onnx

    from chameleon.models.onnx_files import conversion_error, read_onnx

    network = read_onnx(path, given, say)
    proto, shapes = network.proto, network.shapes
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mod = from_onnx(proto, {name: list(shape) for name, shape in shapes.items()})
    except Exception as error:
        raise ModelError(conversion_error(path, proto, said.getvalue(), error)) from error
    check_outputs(mod, path.name, network.outputs)
    return Imported(mod, shapes, tuple(o.name for o in proto.graph.output))


def _import_program(program: torch.export.ExportedProgram, name: str) -> IRModule:
    from tvm.relax.frontend.torch import from_exported_program

    program = prepared_program(program, name)
    importing = _Converters(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mod = from_exported_program(
                program, custom_convert_map=importing.converters(program), run_ep_decomposition=False
            )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_unsupported(name, program, importing.now, error)) from error
    metas = output_metas(program)
    check_outputs(mod, name, [Output(n, shape, _dtype_name(dtype)) for n, shape, dtype in metas])
    return mod


class _Converters:
    """TVM's converters of operators, whose results are held against what the program says of them.

    Args:
        name: of the network, for messages.
    """

    def __init__(self, name: str) -> None:
        self.now: torch.fx.Node | None = None  # the operator that is imported
        self._name = name

    def converters(self, program: torch.export.ExportedProgram) -> dict[str, Callable[[Any, Any], relax.Expr]]:
        """A converter for each operator of the program that TVM knows, by name."""
        from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

        known = ExportedProgramImporter().create_convert_map()
        names = {n.target.__name__ for n in program.graph.nodes if n.op == "call_function"}
        return dict.fromkeys(names & set(known), self._convert)

    def _convert(self, node: torch.fx.Node, importer: Any) -> relax.Expr:
        """Import an operator; what TVM computes in another type is cast to the type that the program says.

        Raises:
            ModelError: if TVM's result has another shape.
        """
        self.now = node
        result = importer.create_convert_map()[node.target.__name__](node)
        wanted = node.meta.get("val")
        if not isinstance(wanted, torch.Tensor) or not isinstance(getattr(result, "ty", None), relax.TensorType):
            return result
        shape = static_shape(result.ty)
        if shape is not None and shape != tuple(wanted.shape):
            raise ModelError(
                f"{self._name}: TVM imports {place_of(node)} with shape {list(shape)}, "
                f"PyTorch has {list(wanted.shape)}"
            )
        dtype = _dtype_name(wanted.dtype)
        return result if result.ty.dtype == dtype else importer.block_builder.emit(relax.op.astype(result, dtype))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unsupported(name: str, program: torch.export.ExportedProgram, now: torch.fx.Node | None, error: Exception) -> str:
    """The message that says which operator of a program TVM's frontend cannot import, and where it is in the code."""
    text = first_line(error)
    if "Unsupported function types" in text:
        words = set(re.findall(r"[\w.]+", text))
        nodes = [n for n in program.graph.nodes if n.op == "call_function"]
        found = [place_of(n) for n in nodes if getattr(n.target, "__name__", "") in words]
        return f"{name}: TVM cannot import this network: unsupported operator {'; '.join(found[:5])}"
    where = f" at {place_of(now)}" if now is not None else ""
    return f"{name}: TVM's importer fails on this network{where}: {text}"
