#!/usr/bin/env python3
"""The memory that ONNX Runtime takes for a network: `python scripts/peers/ort.py NETWORK...`.

Measured as ours is: the peak of the aligned blocks that a cold run allocates, by `chameleon/deploy/allocations.cc`, in a
process of its own that is started with the counter preloaded. One thread, default optimisations, no arena and no memory
pattern, which would round up and keep what is freed. Intermediate tensors, workspaces and outputs are counted; inputs are
there before.
"""

# Other environments than this project's have these packages:
# pyright: reportMissingImports=false, reportArgumentType=false
from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from common import main, max_error

from chameleon.deploy.networks import Network

COUNTER = Path(__file__).parents[2] / "chameleon" / "deploy" / "allocations.cc"
PROBE = "--probe"


def need(network: Network, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """One cold run in another process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "allocations.so"
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-o", library, COUNTER], check=True)
        torch.onnx.export(network.module, inputs, str(folder / "network.onnx"), dynamo=False, input_names=list(network.shapes))
        np.savez(folder / "inputs.npz", **{key: x.numpy() for key, x in zip(network.shapes, inputs, strict=True)})
        ran = subprocess.run(
            [sys.executable, __file__, PROBE, str(folder)],
            env={**os.environ, "LD_PRELOAD": str(library)},
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(ran.stdout.splitlines()[-1])
        result = np.load(folder / "output.npy")
    return {
        "planned_bytes": None,
        "measured_bytes": found["tensors_peak"],
        "heap_peak_bytes": found["heap_peak"],
        "includes": ["intermediates", "workspaces", "outputs"],
        "max_error": max_error(network, inputs, result),
    }


def probe(folder: Path) -> None:
    """Load the network, count one run."""
    counter = ctypes.CDLL(None)
    for name in ("tensors_peak", "heap_peak"):
        getattr(counter, f"chameleon_{name}").restype = ctypes.c_longlong
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(str(folder / "network.onnx"), options, providers=["CPUExecutionProvider"])
    with np.load(folder / "inputs.npz") as arrays:
        inputs = {key: arrays[key] for key in arrays.files}
    counter.chameleon_watch(1)
    result = session.run(None, inputs)
    counter.chameleon_watch(0)
    np.save(folder / "output.npy", result[0])
    print(json.dumps({name: int(getattr(counter, f"chameleon_{name}")()) for name in ("tensors_peak", "heap_peak")}))


if __name__ == "__main__":
    if sys.argv[1:2] == [PROBE]:
        probe(Path(sys.argv[2]))
    else:
        main("ort", need, ("onnxruntime", "torch"))
