"""Load a network: a name of pytorchcv's zoo, an ONNX file or a file of `torch.export.save`.

Whatever the source, a `Model` is one Relax function `main` in inference form. Its shapes are static, its batch norms
are folded, and its weights are constants. Its layout is NCHW, as its author wrote it: `chameleon.kernels.lower.lower`
chooses layouts later.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm.relax import TensorType

from chameleon.errors import UsageError
from chameleon.ir import operator_name, static_shape
from chameleon.models.errors import ModelError
from chameleon.models.importers import Imported, import_exported, import_onnx, import_zoo
from chameleon.models.inputs import input_arrays
from chameleon.models.outputs import flat_types
from chameleon.models.pytorchcv import model_names
from chameleon.models.shapes import GivenShapes, InputShape
from chameleon.models.simplify import inference_form

__all__ = ["Model", "ModelError", "Source", "TensorSpec", "input_arrays", "load_model", "model_names"]

_FILES: dict[str, Literal["onnx", "pt2"]] = {".onnx": "onnx", ".pt2": "pt2"}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, static shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Source:
    """The source of a model: all that is needed to make the same network again."""

    kind: Literal["zoo", "onnx", "pt2"]
    spec: str  # a zoo name or a path
    seed: int  # for the random weights of a zoo network
    shapes: Mapping[str, tuple[int, ...]] = field(hash=False)  # the shapes of the inputs, by name


@dataclass(frozen=True)
class Model:
    """A network ready to be lowered.

    Attributes:
        name: the name in the zoo, or the file's name without its suffix.
        mod: a module with the function `main`.
        inputs: the inputs, in the order of the parameters of `main`.
        outputs: the outputs, in the order in which `main` returns them.
        fingerprint: a hash of the graph and the weights. It is the same in every process, for equal networks.
        source: where the model came from.
    """

    name: str
    mod: IRModule = field(repr=False, compare=False)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fingerprint: str
    source: Source


def load_model(
    spec: str,
    *,
    seed: int = 0,
    input_shape: InputShape | None = None,
    dims: Mapping[str, int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Model:
    """Load a network in inference form.

    Args:
        spec: a name of `model_names()`, or a path that ends in `.onnx` or `.pt2`.
        seed: seed for the weights of a zoo network, which are random (nothing is downloaded).
        input_shape: the shape of the only input, or of the only one with open dimensions, or shapes by input name.
        dims: sizes of open dimensions, by name: that in the file, or `input.0` for dimension 0 of an input.
        say: called with what takes long, and with what is not as the file has it.

    Raises:
        UsageError: if there is no such model or file, input or dimension.
        ModelError: if the model cannot be read, has dynamic shapes, or has an operator that TVM does not support.
    """
    path = Path(spec)
    kind = _FILES.get(path.suffix.lower(), "zoo")
    if kind == "zoo" and (
        path.is_file() or path.suffix.lower() in (".pt", ".pth", ".pb", ".tflite", ".h5", ".safetensors")
    ):
        raise ModelError(
            f"{spec}: expected a zoo name, an .onnx or a .pt2 file, got {path.suffix or 'a file without suffix'}; "
            "write a PyTorch module with torch.export.save(torch.export.export(module, inputs), 'model.pt2')"
        )
    given = GivenShapes(input_shape, dims or {})
    if kind == "zoo":
        imported = import_zoo(spec, seed, given)
    else:
        if not path.is_file():
            raise UsageError(
                f"{spec}: no such file; expected an .onnx or a .pt2 file or a name that `chameleon models` lists"
            )
        imported = (import_onnx if kind == "onnx" else import_exported)(path, given, say)
    name = spec.lower() if kind == "zoo" else path.stem
    return _model(name, imported, Source(kind, name if kind == "zoo" else spec, seed, imported.shapes))


def _model(name: str, imported: Imported, source: Source) -> Model:
    try:
        mod = inference_form(imported.mod)
    except Exception as error:  # TVM raises many kinds of errors here, from AssertionError to InternalError
        reason = str(error).strip().splitlines()[-1][:300]
        raise ModelError(
            f"{name}: TVM cannot simplify this network, perhaps because a shape depends on data: {reason}"
        ) from error
    main = mod["main"]
    _refuse_dynamic(name, main)
    inputs = tuple(_spec(p.name, p.ty) for p in main.params)
    fields = flat_types(main.ret_ty)
    names = [*imported.output_names, *(f"output{i}" for i in range(len(imported.output_names), len(fields)))]
    outputs = tuple(_spec(n, ty) for n, ty in zip(names, fields, strict=False))
    return Model(name, mod, inputs, outputs, fingerprint(mod), source)


def fingerprint(mod: IRModule) -> str:
    """A hash of the graph's text, and of the bytes of its constants in the order in which they appear."""
    digest = hashlib.sha256(mod.script(show_meta=False).encode())

    def visit(node: object) -> None:
        if isinstance(node, GenericConst):
            digest.update(np.ascontiguousarray(node.value.numpy()).tobytes())

    relax.analysis.post_order_visit(mod["main"], visit)
    return digest.hexdigest()[:16]


def _refuse_dynamic(name: str, main: relax.Function) -> None:
    """Refuse a network with a tensor whose shape is only known when it runs; its inputs are static by now.

    Raises:
        ModelError: if there is one; it names the operator that makes the first.
    """
    for block in main.body.blocks:
        for binding in block.bindings:
            if all(static_shape(ty) is not None for ty in flat_types(binding.var.ty) if isinstance(ty, TensorType)):
                continue
            operator = operator_name(binding.value).removeprefix("relax.") or "a branch"
            raise ModelError(
                f"{name}: the shape of what {operator} makes ({binding.var.name!r}) depends on data; kernels are "
                "made for static shapes, so end the network before it"
            )


def _spec(name: str, ty: relax.Type) -> TensorSpec:
    dims = static_shape(ty)
    assert dims is not None  # _refuse_dynamic saw to it
    return TensorSpec(name, dims, str(ty.dtype))
