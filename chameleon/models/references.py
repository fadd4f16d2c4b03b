"""Runs a network without TVM: an ONNX file in ONNX Runtime or OpenVINO, any other network in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from chameleon.errors import first_line
from chameleon.models.errors import ModelError
from chameleon.models.importers import load_program
from chameleon.models.load import Source
from chameleon.models.pytorchcv import zoo_network
from chameleon.models.shapes import GivenShapes

Arrays = Sequence[NDArray[Any]]
Run = Callable[[Arrays], list[NDArray[Any]]]


def independent_run(source: Source) -> tuple[str, Run]:
    """The name of what runs a network without TVM, and a function that runs it.

    The network is the one in the file, as it was before any change of ours.

    Raises:
        ModelError: if the network cannot be loaded; the function raises it if the network cannot be run.
    """
    if source.kind == "onnx":
        return "ONNX Runtime", onnxruntime_run(Path(source.spec), exact=True)
    return "PyTorch", _pytorch_run(source)


def onnxruntime_run(path: Path, *, threads: int = 0, exact: bool = False) -> Run:
    """A function that runs an ONNX file in ONNX Runtime.

    Args:
        threads: how many threads it uses; 0: as many as it likes.
        exact: compute each node as it stands, not as it is fastest.

    Raises:
        ModelError: if ONNX Runtime is missing or cannot load the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"running a network in ONNX Runtime needs onnxruntime (pip install 'chameleon-tvm[onnx]'): {error}"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        if exact:
            _make_exact(options, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"{path.name}: ONNX Runtime cannot load this network: {first_line(error)}") from error
    names = [i.name for i in session.get_inputs()]

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        try:
            return [np.asarray(x) for x in session.run(None, dict(zip(names, inputs, strict=True)))]
        except Exception as error:
            raise ModelError(f"{path.name}: ONNX Runtime cannot run this network: {first_line(error)}") from error

    return run


def openvino_run(path: Path, *, threads: int) -> Run:
    """A function that runs an ONNX file in OpenVINO, tuned for latency, in the network's own types.

    Args:
        threads: how many threads it uses.

    Raises:
        ModelError: if OpenVINO is missing or cannot load the file.
    """
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(f"{error} (pip install 'chameleon-tvm[bench]')") from error
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 where the processor can
    }
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        request = compiled.create_infer_request()
    except Exception as error:
        raise ModelError(f"{path.name}: OpenVINO cannot load this network: {first_line(error)}") from error

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        try:
            request.infer(dict(enumerate(inputs)), share_inputs=True)
            return [np.array(request.get_output_tensor(i).data) for i in range(len(compiled.outputs))]
        except Exception as error:
            raise ModelError(f"{path.name}: OpenVINO cannot run this network: {first_line(error)}") from error

    return run


def inductor_run(source: Source, *, threads: int) -> Run:
    """A function that runs a PyTorch network as `torch.compile` makes it; the first run compiles it.

    The weights are frozen, so that they are folded and packed.

    Args:
        threads: how many threads PyTorch uses from now on.

    Raises:
        ModelError: if the network does not come from PyTorch.
    """
    if source.kind == "onnx":
        raise ModelError(f"{source.spec} is no PyTorch network")
    torch.set_num_threads(threads)
    compiled = _compiled_call(source)

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = compiled([tensor_of(x) for x in inputs])
        except Exception as error:
            raise ModelError(f"{source.spec}: torch.compile cannot run this network: {first_line(error)}") from error
        return [array_of(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]

    return run


def _compiled_call(source: Source) -> Callable[[Sequence[torch.Tensor]], Any]:
    """A network after `torch.compile`, as a function of its input tensors."""
    module, arguments_of = _network(source)
    compiled = torch.compile(module, options={"freezing": True})

    def call(tensors: Sequence[torch.Tensor]) -> Any:
        arguments, keywords = arguments_of(tensors)
        return compiled(*arguments, **keywords)

    return call


def _make_exact(options: Any, path: Path) -> None:
    """Switch off what ONNX Runtime changes for speed.

    Processors without VNNI add products of 8-bit numbers in 16 bits, which saturate, so that sums are wrong by up to a
    half. ONNX Runtime has a mode without that fault. The mode is a change of the network, of the second level.
    """
    import onnx
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    nodes = onnx.load(path, load_external_data=False).graph.node
    saturates = any(n.op_type.endswith("Integer") or n.op_type.startswith("QLinear") for n in nodes)
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if saturates else levels.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")


def _pytorch_run(source: Source) -> Run:
    def run(inputs: Arrays) -> list[NDArray[Any]]:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # A run may change a network's buffers, so each has a network of its own.
                result = _call(source, [tensor_of(x) for x in inputs])
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{source.spec}: PyTorch cannot run this network: {first_line(error)}") from error
        return [array_of(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]

    return run


def _call(source: Source, tensors: Sequence[torch.Tensor]) -> Any:
    module, arguments_of = _network(source)
    arguments, keywords = arguments_of(tensors)
    return module(*arguments, **keywords)


def _network(source: Source) -> tuple[torch.nn.Module, Callable[[Sequence[torch.Tensor]], tuple[Any, Any]]]:
    """The PyTorch module of a network, and what makes its arguments of the tensors: positional ones and keywords."""
    if source.kind == "zoo":
        network = zoo_network(source.spec, source.seed, GivenShapes(source.shapes))
        return network.module, lambda tensors: (tuple(tensors), {})
    program = load_program(Path(source.spec))

    def arguments_of(tensors: Sequence[torch.Tensor]) -> tuple[Any, Any]:
        rest = iter(tensors)
        leaves = [
            next(rest)
            if isinstance(given.arg, torch.export.graph_signature.TensorArgument)
            else getattr(given.arg, "value", None)
            for given in program.graph_signature.input_specs
            if given.kind is torch.export.graph_signature.InputKind.USER_INPUT
        ]
        structure: Any = program.call_spec.in_spec
        return pytree.tree_unflatten(leaves, structure)

    return program.module(), arguments_of


def tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """An array as a tensor; numpy's bfloat16 is of a package that PyTorch does not know."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def array_of(tensor: torch.Tensor) -> NDArray[Any]:
    """The inverse of `tensor_of`."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
