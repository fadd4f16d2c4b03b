"""What the peers share: the networks, and one JSON line for each. Runs in environments without TVM."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # this checkout; the environments do not install it

import numpy as np
import torch
from numpy.typing import NDArray

from chameleon.deploy.networks import Network, zoo_network

Need = Callable[[Network, tuple[torch.Tensor, ...]], dict[str, Any]]


def main(peer: str, need: Need, packages: Sequence[str]) -> None:
    """Print a line for every network named on the command line; one that fails says so and the rest goes on."""
    warnings.simplefilter("ignore")
    versions = {name: version(name) for name in packages}
    for name in sys.argv[1:]:
        line: dict[str, Any] = {"peer": peer, "network": name, "versions": versions}
        try:
            network = zoo_network(name, 0)
            rng = np.random.default_rng(0)
            inputs = tuple(torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in network.shapes.values())
            line |= need(network, inputs)
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps(line), flush=True)


def max_error(network: Network, inputs: tuple[torch.Tensor, ...], found: NDArray[np.float32]) -> float:
    """The largest difference to PyTorch's output."""
    with torch.no_grad():
        expected = network.module(*inputs).numpy()
    return float(np.abs(expected - found.reshape(expected.shape)).max())
