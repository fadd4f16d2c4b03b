"""Local Ray clusters, and measurers of made-up kernels for their nodes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.jobs.measurer import Measurer

RUN_S = 0.3


@contextmanager
def cluster(n_nodes: int) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster with a head that does no work, and nodes with one core each; the cluster and these nodes."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [running.add_node(num_cpus=1) for _ in range(n_nodes)]
        running.wait_for_nodes()
        yield running, nodes
    finally:
        running.shutdown()


class _Sleeper:
    """Builds at once, and takes the same time for every candidate."""

    def __init__(self, run_s: float) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="sleeper-")
        self._folder, self._run_s, self._made = Path(self._kept.name), run_s, 0

    def build(self, inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        results = []
        for given in inputs:
            failing = given.mod.attrs is not None and given.mod.attrs.get("how") == "fail"
            self._made += 1
            artifact = self._folder / str(self._made) / "candidate.so"
            artifact.parent.mkdir()
            error = "build_error: made to fail" if failing else None
            results.append(ms.builder.BuilderResult(None if failing else str(artifact), error))
        return results

    def run(self, inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        time.sleep(self._run_s * len(inputs))
        result = ms.runner.RunnerResult([1e-3], None)
        return [ms.runner.RunnerFuture(lambda: True, lambda: result) for _ in inputs]


def sleeping_measurer(target: Target, _stack: ExitStack) -> Measurer:
    """A measurer without kernels: each candidate takes `RUN_S` to run."""
    sleeper = _Sleeper(RUN_S)
    return Measurer(target, sleeper, sleeper)  # type: ignore[arg-type]
