"""Ray clusters on this machine, and measurers of made-up kernels for their nodes."""

# TVM's reflected attributes have no static types:
# pyright: reportArgumentType=false, reportMissingImports=false
from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.jobs.measurer import Measurer


@contextmanager
def cluster(n_nodes: int) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster with a head that does no work, and nodes with one core each; the cluster and these nodes.

    Raises:
        ImportError: without Ray.
    """
    from ray.cluster_utils import Cluster

    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [running.add_node(num_cpus=1) for _ in range(n_nodes)]
        running.wait_for_nodes()
        yield running, nodes
    finally:
        running.shutdown()


@dataclass(frozen=True)
class Sleeping:
    """Makes measurers without kernels, for `chameleon.jobs.ray_nodes.ray_measurer`.

    Attributes:
        build_s: seconds for building some candidates.
        run_s: seconds for running one.
    """

    build_s: float
    run_s: float

    def __call__(self, target: Target, _stack: ExitStack) -> Measurer:
        sleeper = self.sleeper()
        return Measurer(target, sleeper, sleeper)

    def sleeper(self) -> Sleeper:
        """The builder and runner."""
        return Sleeper(self.build_s, self.run_s)


class Sleeper:
    """A builder and a runner that take the same time for every candidate."""

    def __init__(self, build_s: float, run_s: float) -> None:
        self._build_s, self._run_s = build_s, run_s
        self._folder = tempfile.TemporaryDirectory(prefix="sleeper-")

    def build(self, inputs: Sequence[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        """An artifact for each, in a folder of its own."""
        time.sleep(self._build_s)  # all at the same time, as on a node with as many cores
        folders = [tempfile.mkdtemp(dir=self._folder.name) for _ in inputs]
        return [ms.builder.BuilderResult(str(Path(folder) / "candidate.so"), None) for folder in folders]

    def run(self, inputs: Sequence[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        """The same made-up time for each."""
        time.sleep(self._run_s * len(inputs))
        result = ms.runner.RunnerResult([1e-3], None)
        return [ms.runner.RunnerFuture(lambda: True, lambda: result) for _ in inputs]
