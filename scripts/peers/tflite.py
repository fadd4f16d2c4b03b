#!/usr/bin/env python3
"""The memory that TFLite plans for a network: `python scripts/peers/tflite.py NETWORK...`.

The module is converted by litert-torch and loaded with TFLite's own kernels (no XNNPACK delegate, which has an arena of its
own). TFLite places inputs, intermediate tensors, scratch buffers of kernels and outputs in one arena and does not tell its
size; it is the span from the first to the last byte of all tensors that are no constants. A converted network is NHWC inside;
it is converted with NCHW and with NHWC inputs and outputs, the latter without the transposes at the ends, and the smaller
arena counts.
"""

# Other environments than this project's have these packages:
# pyright: reportMissingImports=false, reportArgumentType=false
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from common import main, max_error

from chameleon.deploy.networks import Network

INCLUDES = ["inputs", "intermediates", "workspaces", "outputs"]


def need(network: Network, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Both conversions; the better one's arena."""
    found = [_arena(network, inputs, channels_last) for channels_last in (False, True)]
    return {**min(found, key=lambda f: f["planned_bytes"]), "measured_bytes": None, "includes": INCLUDES}


def _arena(network: Network, inputs: tuple[torch.Tensor, ...], channels_last: bool) -> dict[str, Any]:
    module, given = network.module, inputs
    if channels_last:
        module = litert_torch.to_channel_last_io(module, args=list(range(len(inputs))), outputs=[0])
        given = tuple(x.permute(0, 2, 3, 1).contiguous() for x in inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.tflite"
        litert_torch.convert(module.eval(), given).export(str(path))
        content = path.read_bytes()
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        num_threads=1,
    )
    interpreter.allocate_tensors()
    span = _span(interpreter)
    details = sorted(interpreter.get_input_details(), key=lambda d: d["name"])
    for detail, x in zip(details, given, strict=True):
        interpreter.set_tensor(detail["index"], x.numpy())
    interpreter.invoke()
    result = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    if channels_last:
        result = result.transpose(0, 3, 1, 2)
    return {"planned_bytes": span, "channels_last": channels_last, "max_error": max_error(network, inputs, result)}


def _span(interpreter: Interpreter) -> int:
    """Bytes from the first to the last of the tensors that operators write, the inputs and the scratch buffers."""
    operators = interpreter._get_ops_details()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    written = {int(i) for op in operators for i in op["outputs"]} | {d["index"] for d in interpreter.get_input_details()}
    read = {int(i) for op in operators for i in op["inputs"]}
    places = []
    for index in details:
        if index in read and index not in written:
            continue  # a constant
        try:
            array: np.ndarray = interpreter.tensor(index)()
        except (ValueError, RuntimeError):
            continue  # has no memory
        start = array.__array_interface__["data"][0]
        places.append((start, start + array.nbytes))
    return max(stop for _, stop in places) - min(start for start, _ in places)


if __name__ == "__main__":
    main("tflite", need, ("litert-torch", "ai-edge-litert", "torch"))
