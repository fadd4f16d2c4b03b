#!/usr/bin/env python3
"""Measures how much memory ONNX Runtime takes for a network.

ONNX Runtime plans no arena ahead. It allocates tensors one by one, frees them after their last reader, and reuses them
where sizes fit. Its own pools are off (`enable_cpu_mem_arena`, `enable_mem_pattern`). So every allocation of a run
reaches the C library and is counted: intermediates, workspaces of kernels and outputs. The inputs belong to the
caller. The order is ONNX Runtime's default, with one thread. Only blocks that are asked for with an alignment are
measured: its CPU allocator asks for tensors in this way.

Which settings take the least memory differs from network to network. So it runs in each of `SETTINGS`:

- as it comes;
- without the reuse of buffers: every tensor is freed after its last reader, and the next one gets memory of its own
  size;
- the same, and also without the last level of optimisations, which pads channels for a blocked layout.

With reuse the peak differs from process to process on some networks, for reasons that we do not know. The least of
five processes counts; more processes might find a lower one.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from scripts.peers import common

LEVELS = onnxruntime.GraphOptimizationLevel


def measure(network: common.Prepared, *, reuse: bool, level: onnxruntime.GraphOptimizationLevel) -> common.Peak:
    """Convert and load a network, then run it once."""
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.enable_mem_reuse = reuse
    options.graph_optimization_level = level
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        path = Path(folder) / "network.onnx"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(network.module, network.inputs, path, dynamo=False)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), network.inputs, strict=True)}
    with common.counting() as counted:
        results = session.run(None, given)
    outputs = [np.asarray(result) for result in results]
    more = {"heap_bytes": counted.heap_bytes}
    return common.Peak(None, counted.tensors_bytes, ("outputs", "intermediates", "workspaces"), outputs, more)


if __name__ == "__main__":
    SETTINGS = {
        "default": partial(measure, reuse=True, level=LEVELS.ORT_ENABLE_ALL),
        "no reuse": partial(measure, reuse=False, level=LEVELS.ORT_ENABLE_ALL),
        "no reuse, no blocked layout": partial(measure, reuse=False, level=LEVELS.ORT_ENABLE_EXTENDED),
    }
    sys.exit(common.run("ort", ("onnxruntime", "onnx"), SETTINGS, runs=5))
