"""Networks of the zoo in 8 bits and in half precision, as files, with random weights.

The network in 8 bits is what ONNX Runtime's quantiser makes: QDQ form, a scale for each output channel of the weights,
unsigned data, ranges from random inputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from chameleon.models.load import Source
from chameleon.models.onnx_export import write_onnx
from chameleon.models.pytorchcv import zoo_network

DRAWS = 8
"""The ranges of all tensors are those of so many random inputs."""


def write_int8(name: str, folder: Path, seed: int = 0) -> Path:
    """Quantise a network of the zoo; the file is `{name}-int8.onnx`."""
    # optional packages
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    network, rng = zoo_network(name, seed), np.random.default_rng(seed)
    draws = iter([[rng.standard_normal(s).astype(np.float32) for s in network.shapes.values()] for _ in range(DRAWS)])
    names: list[str] = []

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(draws, None)
            return None if found is None else dict(zip(names, found, strict=True))

    path = folder / f"{name}-int8.onnx"
    with tempfile.TemporaryDirectory() as work:
        floats = write_onnx(Source("zoo", name, seed, dict(network.shapes)), Path(work))
        ready = Path(work) / "ready.onnx"
        names.extend(i.name for i in onnx.load(floats, load_external_data=False).graph.input)  # the exporter's own
        quant_pre_process(str(floats), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return path


def write_half(name: str, folder: Path, seed: int = 0) -> Path:
    """A network of the zoo in float16; the file is `{name}-half.pt2`."""
    network, path = zoo_network(name, seed), folder / f"{name}-half.pt2"
    inputs = tuple(torch.zeros(shape, dtype=torch.float16) for shape in network.shapes.values())
    torch.export.save(torch.export.export(network.module.half(), inputs), path)
    return path


WRITERS: Mapping[str, Callable[[str, Path], Path]] = {"int8": write_int8, "half": write_half}
"""By the last part of a network's name, such as `resnet18-int8`."""
