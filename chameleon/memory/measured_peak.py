"""Measure the memory that a compiled network really takes: the peak of the allocations of one run.

The run is the first one in a process of its own. What counts is the memory that TVM's CPU device hands out from the
call of `main` to its end: storages, tensors, outputs, and the workspaces of kernels in all threads. Weights and inputs
are there before, so they do not count. The rest of the heap (the virtual machine's frames, shapes and tuples) is a few
kilobytes. `tensor_peak_bytes` leaves this rest out, and `heap_peak_bytes` includes it.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from chameleon.errors import ChameleonError

TIMEOUT_S = 300.0
_COUNTER = Path(__file__).with_name("allocations.cc")
_COMPILERS = ("g++", "c++", "clang++")


@dataclass(frozen=True)
class MeasuredPeak:
    """What one cold run allocated.

    Attributes:
        tensor_peak_bytes: the most bytes of TVM's own memory that were alive at a time.
        heap_peak_bytes: the most bytes of the heap that were alive at a time, without those that were there before the
            run. The sizes are rounded up as the C library does it.
        outputs: what the run returned.
    """

    tensor_peak_bytes: int
    heap_peak_bytes: int
    outputs: tuple[NDArray[Any], ...] = field(repr=False, compare=False)


def can_measure(kind: str) -> str:
    """The reason why the peak cannot be measured for a target of this kind on this machine; empty if it can."""
    if kind != "llvm":
        return f"the measured peak needs a CPU target (llvm), got {kind}"
    if not sys.platform.startswith("linux"):
        return f"the measured peak needs Linux with glibc, got {sys.platform}"
    return ""


def measure_peak(executable: Any, inputs: Sequence[NDArray[Any]], threads: int = 1) -> MeasuredPeak:
    """Run a compiled network once in a process of its own and count its allocations.

    Args:
        executable: a network that `chameleon.kernels.lower.build` compiled for this machine's CPU.
        inputs: the arguments of `main`.
        threads: how many threads its kernels use.

    Raises:
        ChameleonError: if there is no C++ compiler, or the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="chameleon-") as name:
        folder = Path(name)
        counter = build_counter(folder)
        library = folder / "network.so"
        executable.export_library(str(library))
        given, made = folder / "inputs.pickle", folder / "outputs.pickle"  # numpy's own format has no bfloat16
        given.write_bytes(pickle.dumps(list(inputs)))
        found = _probe(counter, [str(library), str(given), str(made), str(threads)])
        outputs = tuple(pickle.loads(made.read_bytes()))
    return MeasuredPeak(found["tensors_peak"], found["heap_peak"], outputs)


def build_counter(folder: Path) -> Path:
    """Compile the counter of allocations: a library that is preloaded into the process of the run.

    Raises:
        ChameleonError: if there is no C++ compiler, or the compiler fails.
    """
    compiler = next((path for path in map(shutil.which, _COMPILERS) if path), None)
    if compiler is None:
        raise ChameleonError(
            "measuring the peak needs a C++ compiler: install one, for instance with `apt install g++`, "
            "or leave the measurement out with `--no-measure`"
        )
    library = folder / "allocations.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(_COUNTER)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise ChameleonError(f"{compiler} cannot build the counter of allocations: {built.stderr.strip()[-500:]}")
    return library


def _probe(counter: Path, arguments: list[str]) -> dict[str, int]:
    command = [sys.executable, "-m", "chameleon.memory.measured_peak_probe", *arguments]
    # The package may be imported from a checkout that the other process would not find.
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "LD_PRELOAD": str(counter), "PYTHONPATH": path}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ChameleonError(
            f"the network did not end within {TIMEOUT_S:.0f} s while its memory was measured"
        ) from error
    if ran.returncode:
        raise ChameleonError(f"the network failed while its memory was measured: {ran.stderr.strip()[-500:]}")
    found = json.loads(ran.stdout.splitlines()[-1])
    if found["lost"]:
        raise ChameleonError(
            f"the counter of allocations lost {found['lost']} blocks: "
            "the network has more blocks at a time than the counter can hold"
        )
    return found
