"""Write the network that a model came from as an ONNX file, for other runtimes."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch

from chameleon.models.errors import ModelError
from chameleon.models.exported import load_program
from chameleon.models.load import Source
from chameleon.models.pytorchcv import zoo_network


def write_onnx(source: Source, folder: Path) -> Path:
    """Return the path of an ONNX file with the source's network.

    If the source is an ONNX file, it is this file. Otherwise the network is written into `folder`.

    Raises:
        ModelError: if PyTorch cannot write this network as ONNX.
    """
    if source.kind == "onnx":
        return Path(source.spec)
    if source.kind == "zoo":
        module = zoo_network(source.spec, source.seed).module
        inputs = tuple(torch.zeros(shape) for shape in source.shapes.values())
    else:
        program = load_program(Path(source.spec))
        module, inputs = _Traceable(program), _example_inputs(program, source)
    path = folder / "network.onnx"
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # Use the older exporter, which traces: the newer one needs onnxscript. Tracing is enough for a network
            # with static shapes.
            torch.onnx.export(module, inputs, path, dynamo=False)
    except Exception as error:
        raise ModelError(f"{source.spec}: PyTorch cannot write this network as ONNX: {error}") from error
    finally:
        logger.setLevel(level)
    return path


class _Traceable(torch.nn.Module):
    """An exported program as a module that can be traced.

    The tracer calls `train()` on modules, which exported programs refuse.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self._run = [program.module().requires_grad_(False)]  # in a list, so that it does not become a submodule

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._run[0](*inputs)


def _example_inputs(program: torch.export.ExportedProgram, source: Source) -> tuple[torch.Tensor, ...]:
    dtypes = {
        n.name: n.meta["val"].dtype for n in program.graph.nodes if n.op == "placeholder" and n.name in source.shapes
    }
    return tuple(torch.zeros(shape, dtype=dtypes[name]) for name, shape in source.shapes.items())
