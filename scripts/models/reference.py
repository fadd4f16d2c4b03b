"""What ONNX Runtime or PyTorch computes from a model's file, and whether a compiled library computes the same."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from scripts.models.cases import Case

Array = NDArray[Any]
Dims = Sequence[int | str]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TOLERANCE = 1e-4
TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2, "int8": 1 / 127}
"""By the coarsest type that a network computes in, relative to the largest output; of eight bits one step."""


@dataclass(frozen=True)
class Reference:
    """Inputs and what should come out, in the order of the file.

    Attributes:
        inputs: by name; only tensors.
        outputs: nested ones one after the other; of two runs, since a network may have a state.
        open_shapes: of the inputs that the file leaves open.
    """

    inputs: dict[str, Array]
    outputs: tuple[list[Array], list[Array]]
    open_shapes: dict[str, tuple[int, ...]]


def reference(path: Path, case: Case, seed: int = 3) -> Reference:
    """Draw inputs and run them through ONNX Runtime or PyTorch."""
    rng = np.random.default_rng(seed)
    return (_of_onnx if path.suffix == ".onnx" else _of_program)(path, case, rng)


def tolerance(case: Case, arrays: Sequence[Array]) -> float:
    """How far results may be away, relative to the largest: by the coarsest type of inputs, outputs and inside."""
    types = {case.inside, *(str(a.dtype) for a in arrays if a.dtype != np.int8)}
    return max(TOLERANCES.get(t, TOLERANCE) for t in types)


def disagreement(got: Sequence[Array], want: Sequence[Array], allowed: float) -> str:
    """In what the results differ: number, shapes, types or values; empty if they agree."""
    if len(got) != len(want):
        return f"{len(got)} outputs, expected {len(want)}"
    found = (_difference(g, w, allowed) for g, w in zip(got, want, strict=True))
    return "; ".join(f"output {i}: {text}" for i, text in enumerate(found) if text)


def wrong(case: Case, known: Reference, executable: Any) -> str:
    """In what two runs of a compiled module differ from the reference; empty if they agree."""
    import tvm
    from tvm import relax

    inputs = list(known.inputs.values())
    allowed = tolerance(case, [*inputs, *known.outputs[0]])
    machine = relax.VirtualMachine(executable, tvm.cpu())
    for run, want in zip(("", "second run: "), known.outputs, strict=True):
        got = _flat(machine["main"](*(tvm.runtime.tensor(x) for x in inputs)))
        if why := disagreement(got, want, allowed):
            return run + why
    return ""


def draw(name: str, shape: Sequence[int], dtype: np.dtype[Any], high: int, rng: np.random.Generator) -> Array:
    """An input: normal numbers, integers below a bound, of a mask ones before zeros, bytes of an image."""
    if dtype == BFLOAT16 or np.issubdtype(dtype, np.floating):
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if "mask" in name:
        ones = np.ones(shape, dtype)
        ones[..., shape[-1] * 2 // 3 :] = 0
        return ones
    if dtype == np.bool_:
        return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    return np.asarray(rng.integers(0, 256 if dtype == np.uint8 else high, shape)).astype(dtype)


def _of_onnx(path: Path, case: Case, rng: np.random.Generator) -> Reference:
    import onnx
    import onnxruntime

    graph = onnx.load(path).graph
    weights = {w.name for w in graph.initializer}
    wanted = [i for i in graph.input if i.name not in weights]
    declared = {i.name: [_dim(d) for d in i.type.tensor_type.shape.dim] for i in wanted}
    shapes, open_shapes = _shapes(declared, case.arguments)
    inputs = {}
    for value in wanted:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        inputs[value.name] = draw(value.name, shapes[value.name], dtype, case.high, rng)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [np.asarray(o) for o in session.run(None, inputs)]
    return Reference(inputs, (outputs, outputs), open_shapes)


def _dim(dim: Any) -> int | str:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"


def _of_program(path: Path, case: Case, rng: np.random.Generator) -> Reference:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.export").setLevel(logging.ERROR)
        program = torch.export.load(path)
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    users = program.graph_signature.user_inputs
    tensors = {n: v for n in users if isinstance(n, str) and isinstance(v := values.get(n), torch.Tensor)}
    declared: dict[str, Dims] = {n: [d if isinstance(d, int) else str(d) for d in v.shape] for n, v in tensors.items()}
    shapes, open_shapes = _shapes(declared, case.arguments)
    inputs = {}
    for name, value in tensors.items():
        text = str(value.dtype).removeprefix("torch.")
        dtype = BFLOAT16 if text == "bfloat16" else np.dtype(text)
        inputs[name] = draw(name, shapes[name], dtype, case.high, rng)
    leaves = [torch_of(inputs[n]) if isinstance(n, str) and n in inputs else _constant(n, values) for n in users]
    arguments, keywords = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = program.module()
        first, second = ([numpy_of(t) for t in pytree.tree_leaves(module(*arguments, **keywords))] for _ in range(2))
    return Reference(inputs, (first, second), open_shapes)


def _constant(user: Any, values: Mapping[str, Any]) -> Any:
    """An argument that is no tensor: itself, or what its placeholder stands for."""
    return values.get(user, user) if isinstance(user, str) else user


def torch_of(array: Array) -> torch.Tensor:
    """An array as PyTorch has it; numpy's bfloat16 is strange to it."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def numpy_of(tensor: Any) -> Array:
    """A tensor as numpy has it."""
    if not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    tensor = tensor.detach().clone()  # a state that is given back changes in the next run
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _shapes(
    declared: Mapping[str, Dims], arguments: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """All inputs' shapes, and those of the open ones, from what the command line is given."""
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    given = [text for flag, text in pairs if flag == "--input-shape"]
    sizes = {name: int(n) for flag, text in pairs if flag == "--dim" for name, _, n in [text.rpartition("=")]}
    opened = [name for name, dims in declared.items() if not all(isinstance(d, int) for d in dims)]
    by_name = {}
    for text in given:
        name, _, numbers = text.rpartition("=")
        by_name[name or opened[0]] = tuple(int(n) for n in numbers.split(","))
    for name, shape in by_name.items():
        sizes |= {d: n for d, n in zip(declared[name], shape, strict=True) if isinstance(d, str)}
    shapes = {
        name: by_name.get(name) or tuple(d if isinstance(d, int) else sizes[d] for d in dims)
        for name, dims in declared.items()
    }
    return shapes, {name: shapes[name] for name in opened}


def _flat(value: Any) -> list[Array]:
    if hasattr(value, "numpy"):
        return [value.numpy()]
    return [array for part in value for array in _flat(part)]


def _difference(got: Array, want: Array, allowed: float) -> str:
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}"
    if not want.size or np.array_equal(got, want):
        return ""
    ours, theirs = got.astype("float64"), want.astype("float64")
    whole_numbers = np.issubdtype(want.dtype, np.integer) or want.dtype == np.bool_
    with np.errstate(invalid="ignore"):
        error, largest = np.abs(ours - theirs).max(), max(np.abs(theirs).max(), 1e-9)
    limit = float(want.dtype.itemsize == 1 and want.dtype != np.bool_) if whole_numbers else allowed * largest
    return "" if error <= limit else f"differs by {error:.2g}, the largest is {largest:.2g}"
