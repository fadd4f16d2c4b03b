"""Code that the scripts of the peers share: runs each network in a process of its own and counts its allocations.

    ENV/bin/python -m scripts.peers.tflite swiftnet-hpd-a darts-normal-cell

It prints one JSON line for each network. A line has:

- `planned_bytes`: the memory that the runtime plans before it runs, None if it plans none;
- `measured_bytes`: the most that it allocated at a time, counted by a malloc that is loaded before the C library's;
- `includes`: which of `inputs`, `outputs`, `intermediates` and `workspaces` these two count. Weights are never in
  them;
- `inputs_bytes`, `outputs_bytes`, `versions`, and what else the runtime says of itself;
- `setting`: the setting of the runtime that this line is of. A peer that has several settings is measured in each of
  them, `--runs` times, each run in a process of its own. The line is that of the least planned bytes (or measured
  bytes, if nothing is planned);
- `by_setting`: these bytes of all runs.

To compare peers, add `inputs_bytes` where the inputs are not included. Batch norms are folded into the convolutions
before a runtime sees the network, since not all runtimes fold them. None of this needs TVM: `setup.sh` makes an
environment for each peer.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.optimization import fuse

from chameleon.errors import ChameleonError
from chameleon.memory.measured_peak import build_counter
from chameleon.models.pytorchcv import zoo_network

EVERYTHING = ("inputs", "outputs", "intermediates", "workspaces")
TIMEOUT_S = 600


@dataclass(frozen=True)
class Prepared:
    """A network as every peer gets it.

    Attributes:
        name: in the zoo.
        module: the network; batch norms that follow a convolution are folded into it.
        original: the network with all its batch norms.
        inputs: random inputs.
        expected: the result that PyTorch finds for these inputs.
    """

    name: str
    module: torch.nn.Module
    original: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    expected: torch.Tensor


@dataclass(frozen=True)
class Peak:
    """What a peer needs for a network; the module's docstring explains the numbers."""

    planned_bytes: int | None
    measured_bytes: int | None
    includes: tuple[str, ...]
    outputs: Sequence[np.ndarray]
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Counted:
    """Allocations inside a `with counting()` block; filled in at its end.

    Attributes:
        tensors_bytes: peak of the blocks that were asked for with an alignment.
        heap_bytes: peak of all blocks.
    """

    tensors_bytes: int = 0
    heap_bytes: int = 0


@contextmanager
def counting() -> Iterator[Counted]:
    """Count the allocations of this process; to be used once in a process."""
    counter, found = ctypes.CDLL(None), Counted()
    for name in ("tensors_peak", "heap_peak", "lost"):
        getattr(counter, f"chameleon_{name}").restype = ctypes.c_longlong
    gc.collect()
    gc.disable()  # otherwise blocks from before would be freed while we count
    counter.chameleon_watch(1)
    yield found
    counter.chameleon_watch(0)
    gc.enable()
    if counter.chameleon_lost():
        raise SystemExit(f"the counter lost {counter.chameleon_lost()} blocks")
    found.tensors_bytes, found.heap_bytes = int(counter.chameleon_tensors_peak()), int(counter.chameleon_heap_peak())


Measure = Callable[[Prepared], Peak]


def run(peer: str, packages: Sequence[str], settings: Mapping[str, Measure], runs: int = 1) -> int:
    """Run the command line of a peer: prints a JSON line for each network and returns an exit code.

    Args:
        peer: the peer's name.
        packages: the packages whose versions tell which runtime it is.
        settings: the settings of the runtime; all of them are measured.
        runs: how often every setting is run, if the command line does not say; more than once where the bytes differ
            from run to run.
    """
    parser = argparse.ArgumentParser(description=f"What {peer} needs for networks, one JSON line each.")
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument(
        "--runs", type=int, choices=range(1, 101), default=runs, metavar="N", help=f"runs of each setting ({runs})"
    )
    parser.add_argument("--setting", choices=settings, help=argparse.SUPPRESS)  # this process is one of the runs
    given = parser.parse_args()
    if given.setting:
        return _one(peer, packages, settings[given.setting], given.networks[0])
    failed = False
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        counter = build_counter(Path(folder))
        for name in given.networks:
            try:
                found = {s: [_in_a_process(counter, s, name) for _ in range(given.runs)] for s in settings}
                print(json.dumps(least(found)), flush=True)
            except ChameleonError as error:
                print(f"{peer}: {name}: {error}", file=sys.stderr)
                failed = True
    return int(failed)


def least(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Choose the line that needs the least, from the lines of every setting, and add what all of them need.

    The first of equal lines is taken.
    """

    def needed(line: Mapping[str, Any]) -> int:
        return line["measured_bytes"] if line["planned_bytes"] is None else line["planned_bytes"]

    _, setting, line = min(
        ((needed(line), s, line) for s, lines in found.items() for line in lines), key=lambda f: f[0]
    )
    return {
        **line,
        "setting": setting,
        "by_setting": {s: [needed(line) for line in lines] for s, lines in found.items()},
    }


def _in_a_process(counter: Path, setting: str, name: str) -> dict[str, Any]:
    """Make one run in a process of its own and return its line.

    Raises:
        ChameleonError: if the run gave no line.
    """
    this = sys.modules["__main__"].__spec__
    assert this is not None  # it was started as `python -m scripts.peers.NAME`
    command = [sys.executable, "-m", this.name, "--setting", setting, name]
    environment = {**os.environ, "LD_PRELOAD": str(counter)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode or not lines:
        raise ChameleonError(f"{setting}: {ran.stderr.strip()[-800:]}")
    return json.loads(lines[-1])


def _one(peer: str, packages: Sequence[str], measure: Measure, name: str) -> int:
    torch.set_num_threads(1)
    prepared = prepare(name)
    peak = measure(prepared)
    line = asdict(peak) | {"peer": peer, "network": name, "max_error": _difference(prepared, peak.outputs)}
    line |= line.pop("more") | {"versions": {package: version(package) for package in (*packages, "torch")}}
    del line["outputs"]
    line["inputs_bytes"] = sum(x.numel() * x.element_size() for x in prepared.inputs)
    line["outputs_bytes"] = prepared.expected.numel() * prepared.expected.element_size()
    print(json.dumps(line))
    return 0


def prepare(name: str) -> Prepared:
    """Make the network with seed 0 and fold its batch norms; the result is checked against the original network."""
    network = zoo_network(name, 0)
    rng = np.random.default_rng(0)
    inputs = tuple(torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in network.shapes.values())
    with torch.no_grad():
        expected = network.module(*inputs)
        folded = fuse(network.module).eval().requires_grad_(False)
        torch.testing.assert_close(folded(*inputs), expected, rtol=1e-3, atol=1e-4)
    return Prepared(name, folded, network.module.eval(), inputs, expected)


def _difference(prepared: Prepared, outputs: Sequence[np.ndarray]) -> float:
    """The largest difference of the output from PyTorch's.

    A runtime that computes something else would measure something else.

    Raises:
        SystemExit: if it is too large.
    """
    found, expected = outputs[0], prepared.expected.numpy()
    if math.prod(found.shape) != expected.size:
        raise SystemExit(f"{prepared.name}: got an output of shape {found.shape}, expected {expected.shape}")
    error = float(np.abs(found - expected).max())
    if not error <= 1e-3 * max(1.0, float(np.abs(expected).max())):
        raise SystemExit(f"{prepared.name}: the output differs from PyTorch's by {error}")
    return error
