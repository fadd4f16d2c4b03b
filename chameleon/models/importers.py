"""Import networks into Relax with TVM's frontends, and turn what can go wrong into messages for people."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import contextlib
import io
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tvm.ir import IRModule
from tvm.tirx import IntImm

from chameleon.models.errors import ModelError, explained, first_line
from chameleon.models.pytorchcv import zoo_network
from chameleon.models.shapes import static_shapes


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


def import_zoo(name: str, seed: int, input_shape: Any) -> Imported:
    """Import a network of the zoo, with random weights."""
    network = zoo_network(name, seed, input_shape)
    inputs = tuple(torch.zeros(shape) for shape in network.shapes.values())
    with explained(name), torch.no_grad():
        if input_shape is not None:
            network.module(*inputs)  # a wrong shape fails here; the exporter would log a traceback first
        program = torch.export.export(network.module, inputs)
    return _import_program(program, name, None)


def import_exported(path: Path, input_shape: Any) -> Imported:
    """Import a program that `torch.export.save` wrote."""
    return _import_program(load_program(path), path.name, input_shape)


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Read a `.pt2` file.

    Raises:
        ModelError: if the file is not such a program, or cannot be read.
    """
    try:
        # `ZipFile` fails if the file is no archive; torch would log a traceback.
        with warnings.catch_warnings(), zipfile.ZipFile(path):
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"{path}: expected a program that torch.export.save wrote, but the file is something else, is cut off, "
            f"or was written by another torch than {torch.__version__}: {first_line(error)}"
        ) from error


def import_onnx(path: Path, input_shape: Any) -> Imported:
    """Import a network in ONNX format; its weights are inside the file or in files beside it."""
    from tvm.relax.frontend.onnx import from_onnx

    from chameleon.models.onnx_files import conversion_error, read_onnx

    proto, shapes = read_onnx(path, input_shape)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mod = from_onnx(proto)
    except Exception as error:
        raise ModelError(conversion_error(path, proto, said.getvalue(), error)) from error
    return Imported(mod, shapes, tuple(o.name for o in proto.graph.output))


def _import_program(program: torch.export.ExportedProgram, name: str, input_shape: Any) -> Imported:
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    declared = _declared_shapes(program)
    shapes = static_shapes(name, declared, input_shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mod = from_exported_program(program)
    except Exception as error:
        raise ModelError(_unsupported(name, program, error)) from error
    bound: dict[str, int] = {}
    for param in mod["main"].params:
        for dim, size in zip(param.ty.shape.values, shapes.get(param.name, ()), strict=False):
            if not isinstance(dim, IntImm):
                bound[dim.name] = size
    return Imported(relax.transform.BindSymbolicVars(bound)(mod) if bound else mod, shapes)


def _declared_shapes(program: torch.export.ExportedProgram) -> dict[str, list[int | str]]:
    """The dimensions of the user's inputs, by name; an open dimension is the text of its symbol."""
    users = set(program.graph_signature.user_inputs)
    shapes: dict[str, list[int | str]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in users and isinstance(node.meta.get("val"), torch.Tensor):
            shapes[node.name] = [d if isinstance(d, int) else str(d) for d in node.meta["val"].shape]
    return shapes


def _unsupported(name: str, program: torch.export.ExportedProgram, error: Exception) -> str:
    """The message that says which operator of a program TVM's frontend cannot import, and where it is in the code."""
    text = first_line(error)
    words = set(re.findall(r"[\w.]+", text))
    nodes = [n for n in program.run_decompositions().graph.nodes if n.op == "call_function"]
    found = [
        f"{n.target} at {n.name!r}{_line_of_code(n)}" for n in nodes if getattr(n.target, "__name__", "") in words
    ]
    where = "; ".join(found[:5]) if found else text
    return f"{name}: TVM cannot import this network: unsupported operator {where}"


def _line_of_code(node: torch.fx.Node) -> str:
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
    return f" ({Path(lines[-1][0]).name}:{lines[-1][1]})" if lines else ""
