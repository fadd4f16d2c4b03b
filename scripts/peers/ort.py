#!/usr/bin/env python3
"""What ONNX Runtime takes for a network.

It plans no arena ahead: tensors are allocated one by one, freed after their last reader and reused where sizes fit. Its own
pools are off (`enable_cpu_mem_arena`, `enable_mem_pattern`), so that every allocation of a run reaches the C library and is
counted: intermediates, workspaces of kernels and outputs; the inputs are the caller's. All graph optimisations are on, its
default order, one thread. Measured are the blocks that it asks for with an alignment, as its CPU allocator does for tensors.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import common
import numpy as np
import onnxruntime
import torch


def measure(network: common.Prepared) -> common.Peak:
    """Convert, load, run once."""
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
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
    sys.exit(common.run("ort", ("onnxruntime", "onnx"), measure))
