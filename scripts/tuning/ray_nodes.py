#!/usr/bin/env python3
"""Trials per minute on 1, 2, 4 ... nodes of a Ray cluster on this machine, with a fixed build and run time.

    python -m scripts.tuning.ray_nodes --nodes 1,2,3 --run-s 2

The nodes are real ones of Ray, and so are the actors and what goes between them. Only the kernels are made up:
building and running a candidate sleeps. So the table says what the cluster costs, not how fast a machine is. With
`--kill` one node is killed in the middle.
"""

# TVM's reflected attributes have no static types:
# pyright: reportArgumentType=false
from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import tvm
import typer
from tvm import te
from tvm.s_tir import Schedule

from chameleon.cli import guarded
from chameleon.jobs.ray_nodes import ray_measurer
from chameleon.manifest import write_manifest
from chameleon.target import detect_target
from scripts.common.ray_cluster import Sleeping, cluster
from scripts.common.tables import markdown

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").splitlines()[0])


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
    with cluster(n) as (running, nodes), ray_measurer(running.address, detect_target(), print, make) as measurer:
        measurer.check()
        start_s, made = time.monotonic(), 0
        for number in range(batches):
            candidates = [((number, i), Schedule(kernel())) for i in range(batch)]
            for _ in measurer(candidates, task="kernel", in_time=lambda: True):
                made += 1
                if kill and made == batches * batch // 2:
                    running.remove_node(nodes.pop(), allow_graceful=False)
        return made, time.monotonic() - start_s


def kernel() -> tvm.IRModule:
    """Any kernel."""
    a = te.placeholder((64,), name="a")
    return tvm.IRModule({"main": te.create_prim_func([a, te.compute((64,), lambda i: a[i] * 2.0, name="b")])})


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
