#!/usr/bin/env python3
"""Trials per minute on 1, 2, 4 ... nodes of a Ray cluster on this machine, with a fixed build and run time.

    python -m scripts.tuning.ray_nodes --nodes 1,2,3 --run-s 2

The nodes are real ones of Ray, and so are the actors and what goes between them. Only the kernels are made up:
building and running a candidate sleeps. So the table says what the cluster costs, not how fast a machine is. With
`--kill` one node is killed in the middle.
"""

# TVM's reflected attributes have no static types:
# pyright: reportArgumentType=false, reportMissingImports=false
from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tvm
import typer
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.cli import guarded
from chameleon.jobs.measurer import Measurer
from chameleon.jobs.ray_nodes import ray_measurer
from chameleon.manifest import write_manifest
from chameleon.target import detect_target
from scripts.common.tables import markdown

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").splitlines()[0])


@dataclass(frozen=True)
class Sleeping:
    """Makes measurers that sleep so long for each candidate."""

    build_s: float
    run_s: float

    def __call__(self, target: Target, _stack: ExitStack) -> Measurer:
        worker = _Sleeper(self.build_s, self.run_s)
        return Measurer(target, worker, worker)  # type: ignore[arg-type]


class _Sleeper:
    """A builder and a runner."""

    def __init__(self, build_s: float, run_s: float) -> None:
        self._build_s, self._run_s = build_s, run_s
        self._folder = tempfile.TemporaryDirectory(prefix="sleeper-")

    def build(self, inputs: Sequence[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        time.sleep(self._build_s)  # all at the same time, as on a node with as many cores
        folders = [tempfile.mkdtemp(dir=self._folder.name) for _ in inputs]
        return [ms.builder.BuilderResult(str(Path(folder) / "candidate.so"), None) for folder in folders]

    def run(self, inputs: Sequence[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        time.sleep(self._run_s * len(inputs))
        result = ms.runner.RunnerResult([1e-3], None)
        return [ms.runner.RunnerFuture(lambda: True, lambda: result) for _ in inputs]


@app.command()
def main(
    nodes: Annotated[str, typer.Option(help="Numbers of nodes, separated by commas.")] = "1,2,4",
    batches: Annotated[int, typer.Option(help="Batches of each run.", min=1)] = 3,
    batch: Annotated[int, typer.Option(help="Candidates of a batch.", min=1)] = 16,
    build_s: Annotated[float, typer.Option(help="Seconds of building a few candidates.", min=0.0)] = 0.5,
    run_s: Annotated[float, typer.Option(help="Seconds of running one candidate.", min=0.0)] = 2.0,
    kill: Annotated[bool, typer.Option(help="Kill one node in the middle of each run with several.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/ray_nodes"),
) -> None:
    """Measure, and write the table."""
    rows = []
    for n in (int(text) for text in nodes.split(",")):
        trials, seconds = measured(n, batches, batch, Sleeping(build_s, run_s), kill=kill and n > 1)
        rows.append([str(n), str(trials), f"{seconds:.1f}", f"{60 * trials / seconds:.1f}"])
        print(f"{n} nodes: {trials} trials in {seconds:.1f} s", flush=True)
    arguments = {"nodes": nodes, "batches": batches, "batch": batch, "build_s": build_s, "run_s": run_s, "kill": kill}
    write_manifest(out / "manifest.json", arguments)
    text = markdown(["nodes", "trials", "seconds", "trials per minute"], rows)
    (out / "table.md").write_text(text)
    print(text)


def measured(n: int, batches: int, batch: int, make: Sleeping, *, kill: bool) -> tuple[int, float]:
    """How many trials a cluster of n nodes made, and in how many seconds after its nodes had started."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(n)]
        cluster.wait_for_nodes()
        with ray_measurer(cluster.address, detect_target(), print, make) as measurer:
            measurer.check()
            start_s, made = time.monotonic(), 0
            for number in range(batches):
                candidates = [((number, i), Schedule(kernel())) for i in range(batch)]
                for _ in measurer(candidates, task="kernel", in_time=lambda: True):
                    made += 1
                    if kill and made == batches * batch // 2:
                        cluster.remove_node(nodes.pop(), allow_graceful=False)
            return made, time.monotonic() - start_s
    finally:
        cluster.shutdown()


def kernel() -> tvm.IRModule:
    """Any kernel."""
    a = te.placeholder((64,), name="a")
    return tvm.IRModule({"main": te.create_prim_func([a, te.compute((64,), lambda i: a[i] * 2.0, name="b")])})


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
