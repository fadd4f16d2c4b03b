#!/usr/bin/env python3
"""Memory and outputs of rewritten networks once their kernels are tuned.

    python scripts/memory_tuned.py darts-normal-cell randwire-cifar10-a --trials 256 --runs runs --out results/serenity/tuned

Each network is rewritten where that lowers its peak, tuned (`chameleon tune --rewrite`) and compiled (`chameleon compile
--rewrite --memory-aware`). Its outputs are compared with those of the network as it is, untuned and planned by TVM; so are
those of the rewritten network untuned, and of the network as it is with its memory planned here.

Writes `results.json`, `table.md` and `manifest.json`. Records stay in `--runs`: a second call goes on from there.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms

from chameleon.cli import guarded
from chameleon.deploy.bench import difference
from chameleon.deploy.compile import build, compile_model
from chameleon.deploy.config import TuneConfig
from chameleon.deploy.defaults import schedule_defaults
from chameleon.deploy.job import JobSpec, Opened, open_job, recorded_database, tune_model
from chameleon.deploy.memory_peak import MeasuredPeak, measure_peak
from chameleon.deploy.model import input_arrays
from chameleon.deploy.tasks import lower
from chameleon.manifest import write_manifest
from chameleon.serenity.schedule import schedule

app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


@app.command()
def main(
    networks: Annotated[list[str], typer.Argument(help="Names of `chameleon models`.")],
    trials: Annotated[int, typer.Option(help="Measurements for each network.")] = 256,
    runs: Annotated[Path, typer.Option(help="Folder of the runs with their records.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/serenity/tuned"),
) -> None:
    """Make the table."""
    out.mkdir(parents=True, exist_ok=True)
    rows = {name: row(name, trials, runs) for name in networks}
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "table.md").write_text(table(rows))
    write_manifest(out / "manifest.json", {"networks": networks, "trials": trials})
    print(table(rows))


@dataclass(frozen=True)
class Reference:
    """The network as it is, its kernels untuned, as TVM plans it."""

    job: Opened
    measured: MeasuredPeak

    def run(self, executable: Any) -> MeasuredPeak:
        """One cold run on the same inputs."""
        inputs = input_arrays(self.job.model, np.random.default_rng(0))
        return measure_peak(executable, inputs, int(self.job.target.attrs.get("num-cores", 1)))

    def compare(self, lowered: IRModule, database: ms.database.Database) -> dict[str, Any]:
        """Compile with memory planned here, run, and compare the outputs."""
        compiled = compile_model(lowered, self.job.target, database, schedule)
        assert compiled.memory is not None
        measured = self.run(compiled.executable)
        error = difference(measured.outputs, self.measured.outputs)
        return {
            "arena_bytes": compiled.memory.arena.size_bytes,
            "arena_bound_bytes": compiled.memory.arena.bound_bytes,
            "proven": compiled.memory.schedule.proven,
            "scratch_bytes": compiled.memory.scratch_bytes,
            "measured_peak_bytes": measured.tensor_peak_bytes,
            "untuned_kernels": len(compiled.untuned),
            "max_error": error.absolute,
            "max_relative_error": error.relative,
        }


def row(name: str, trials: int, runs: Path) -> dict[str, Any]:
    """All figures of a network."""
    spec = JobSpec(model=name, out=runs / f"{name}-rewritten", rewrite=True)
    tune_model(spec, TuneConfig(trials=trials, time_budget_s=None), lambda _: None, print)
    job = open_job(spec, print)
    lowered = lower(job.model, job.target)
    stock = build(schedule_defaults(lowered, job.target), job.target)
    reference = Reference(job, MeasuredPeak(0, 0, ()))
    reference = Reference(job, reference.run(stock))
    nothing = ms.database.MemoryDatabase()
    return {
        "stock_measured_bytes": reference.measured.tensor_peak_bytes,
        "ordered": reference.compare(lowered, nothing),
        "rewritten": reference.compare(job.lowered, nothing),
        "tuned": reference.compare(job.lowered, recorded_database(job, spec)),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In kB of 1,000 bytes; inputs are the caller's and not in it."""
    lines = [
        "| network | | arena | scratch, at most | measured | largest difference of outputs | relative |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in rows.items():
        lines.append(f"| {name} | stock TVM | | | {found['stock_measured_bytes'] / 1000:.1f} | | |")
        for what in ("ordered", "rewritten", "tuned"):
            r = found[what]
            sizes = (r["arena_bytes"], r["scratch_bytes"], r["measured_peak_bytes"])
            texts = [*(f"{size / 1000:.1f}" for size in sizes), f"{r['max_error']:.1e}", f"{r['max_relative_error']:.1e}"]
            label = "rewritten and tuned" if what == "tuned" else what
            lines.append(f"| {name} | {label} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
