"""Run a network once, count its memory and keep its outputs: the process that `chameleon.memory.measured_peak` starts.

It is started with the counter preloaded: `python -m chameleon.memory.measured_peak_probe LIBRARY INPUTS OUTPUTS
THREADS`. INPUTS and OUTPUTS are pickled lists of arrays. It prints one line of JSON. The library with its weights, the
inputs and the threads are there before the count begins. The outputs are kept until the count ends.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import ctypes
import json
import pickle
import sys
from pathlib import Path
from typing import Any

# TVM does not need torch, and importing torch takes longer than everything else here.
sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

import tvm  # noqa: E402
from tvm import relax  # noqa: E402

from chameleon.target import set_threads  # noqa: E402


def main(library: str, inputs: str, outputs: str, threads: str) -> None:
    """Run the network and print what it allocated."""
    counter = ctypes.CDLL(None)
    for name in ("tensors_peak", "heap_peak", "lost"):
        getattr(counter, f"chameleon_{name}").restype = ctypes.c_longlong
    set_threads(int(threads))
    # The naive allocator, because the pooled one rounds sizes up and keeps what is freed.
    machine = relax.VirtualMachine(tvm.runtime.load_module(library), tvm.cpu(), memory_cfg="naive")
    tensors = [tvm.runtime.tensor(array) for array in pickle.loads(Path(inputs).read_bytes())]
    run = machine["main"]
    counter.chameleon_watch(1)
    result = run(*tensors)
    counter.chameleon_watch(0)
    found = {name: int(getattr(counter, f"chameleon_{name}")()) for name in ("tensors_peak", "heap_peak", "lost")}
    Path(outputs).write_bytes(pickle.dumps(arrays_of(result)))
    print(json.dumps(found))


def arrays_of(result: Any) -> list[Any]:
    """The arrays in what a network returned, where nested tuples are flattened."""
    if hasattr(result, "numpy"):
        return [result.numpy()]
    return [array for part in result for array in arrays_of(part)]


if __name__ == "__main__":
    main(*sys.argv[1:])
