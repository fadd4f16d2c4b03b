"""Runs a compiled network; the worker of `chameleon.jobs.verify` imports it, so it imports little."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import relax

from chameleon.jobs.compare import arrays_of
from chameleon.target import set_threads


@dataclass(frozen=True)
class LibraryRun:
    """A library to run, as often as there are inputs.

    Attributes:
        library: path of the library.
        device: TVM's name of the device, such as `cpu` or `cuda`.
        threads: how many threads its kernels use on a CPU.
        inputs: the arguments of each run.
    """

    library: str
    device: str
    threads: int
    inputs: list[list[NDArray[Any]]]


def run_library(request: LibraryRun) -> list[list[NDArray[Any]]]:
    """The outputs of each run."""
    device = tvm.device(request.device)
    if request.device == "cpu":
        set_threads(request.threads)
    machine = relax.VirtualMachine(tvm.runtime.load_module(request.library), device)
    outputs = []
    for arrays in request.inputs:
        result = machine["main"](*(tvm.runtime.tensor(x, device=device) for x in arrays))
        outputs.append(arrays_of(result))
    return outputs
