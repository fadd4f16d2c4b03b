#!/usr/bin/env python3
"""Measures how much memory TensorFlow Lite plans and takes: litert-torch converts a network, ai-edge-litert runs it.

TensorFlow Lite's planner is the reference of Ahn 2020. Operators run in the order of the file. The arena's planner
gives every tensor an offset when the interpreter allocates. We read the addresses of all tensors from the interpreter,
without the weights but with the temporary tensors of kernels. The planned bytes are what these addresses span.

TensorFlow Lite's own kernels run, without the XNNPACK delegate: that does not show its memory.

The network is converted twice: with inputs and outputs in NHWC, as TFLite has all tensors, so that nothing is
transposed; and in NCHW, as PyTorch has them. `setting` tells which of the two plans less.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from scripts.peers import common


def measure(network: common.Prepared, *, channels_last: bool) -> common.Peak:
    """Convert a network, allocate its tensors and run it once."""
    module, inputs = network.module, network.inputs
    if channels_last:
        module = litert_torch.to_channel_last_io(module, args=list(range(len(inputs))), outputs=[0]).eval()
        inputs = tuple(_channels_last(x) for x in inputs)
    content = _convert(module, inputs)
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver, num_threads=1)
    details = sorted(interpreter.get_input_details(), key=lambda d: d["name"])
    with common.counting() as counted:
        interpreter.allocate_tensors()
        for detail, x in zip(details, inputs, strict=True):
            interpreter.set_tensor(detail["index"], x.numpy())
        interpreter.invoke()
    outputs = [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
    if channels_last:
        outputs = [_channels_first(output) for output in outputs]
    spans = _spans(interpreter)
    planned = max(stop for _, stop in spans.values()) - min(start for start, _ in spans.values())
    more = {
        "operators": len(interpreter._get_ops_details()),
        "inputs_kept": _kept({d["index"] for d in details}, spans),
    }
    return common.Peak(planned, counted.heap_bytes, common.EVERYTHING, outputs, more)


def _convert(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        path = Path(folder) / "network.tflite"
        litert_torch.convert(module, inputs).export(str(path))
        return path.read_bytes()


def _spans(interpreter: Any) -> dict[int, tuple[int, int]]:
    """Start and end address of every tensor in the arena.

    These are the tensors that operators make or the caller gives, and the temporaries of kernels. Temporaries come
    after the tensors of the file and have no names. Temporaries that kernels keep from run to run (weights in another
    layout) lie in a second arena, which is not counted.
    """
    made = {int(i) for op in interpreter._get_ops_details() for i in op["outputs"]}
    made |= {int(d["index"]) for d in interpreter.get_input_details()}
    found = {}
    for detail in interpreter.get_tensor_details():
        index = int(detail["index"])
        if index not in made and detail["name"]:
            continue
        try:
            array = interpreter.tensor(index)()
        except ValueError:  # a temporary that was not needed
            continue
        start = array.__array_interface__["data"][0]
        found[index] = (start, start + array.nbytes)
    first = min(found[index][0] for index in made if index in found)
    last = max(found[index][1] for index in made if index in found)
    arena = last - first
    return {i: (a, b) for i, (a, b) in found.items() if i in made or (first - arena <= a and b <= last + arena)}


def _kept(inputs: set[int], spans: dict[int, tuple[int, int]]) -> bool:
    """Whether no other tensor ever lies where the inputs do."""
    others = [span for index, span in spans.items() if index not in inputs]
    return not any(a < spans[i][1] and spans[i][0] < b for i in inputs for a, b in others)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x.copy()


if __name__ == "__main__":
    SETTINGS = {"NHWC": partial(measure, channels_last=True), "NCHW": partial(measure, channels_last=False)}
    sys.exit(common.run("tflite", ("litert-torch", "ai-edge-litert"), SETTINGS))
