#!/usr/bin/env python3
"""Measure memory and outputs of rewritten networks after their kernels were tuned.

    python -m scripts.memory.tuned darts-normal-cell randwire-cifar10-a --trials 256 --runs runs

Each network is rewritten where that lowers its peak, tuned (`chameleon tune --rewrite`) and compiled
(`chameleon compile --rewrite --memory-aware`). The reference is the network as it is: untuned, its memory planned by
TVM. Three networks are compared with the outputs of the reference:

- the network as it is, with its memory planned by us (`ordered`),
- the rewritten network, untuned (`rewritten`),
- the rewritten network, tuned (`tuned`).

All are timed in turns. The results are written to `results.json`, `table.md` and `manifest.json`. The records stay in
`--runs`: a second call goes on from there.
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
from tvm.s_tir import meta_schedule as ms

from chameleon.cli import guarded
from chameleon.jobs.bench import time_executables
from chameleon.jobs.compare import difference
from chameleon.jobs.compile import Compiled, compile_model
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.run_folder import JobSpec, Opened, open_job, recorded_database
from chameleon.jobs.tune import tune_model
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.lower import build, lower
from chameleon.manifest import write_manifest
from chameleon.memory.measured_peak import MeasuredPeak, measure_peak
from chameleon.models.load import input_arrays
from chameleon.serenity.order.schedule import schedule

app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


@app.command()
def main(
    networks: Annotated[list[str], typer.Argument(help="Names of `chameleon models`.")],
    trials: Annotated[int, typer.Option(help="Measurements for each network.")] = 256,
    runs: Annotated[Path, typer.Option(help="Folder of the runs with their records.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/serenity/tuned"),
) -> None:
    """Tune the networks and make the table."""
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
        """Make one cold run of a network on the reference's inputs."""
        inputs = input_arrays(self.job.model, np.random.default_rng(0))
        return measure_peak(executable, inputs, int(self.job.target.attrs.get("num-cores", 1)))

    def compare(self, compiled: Compiled) -> dict[str, Any]:
        """Run a network whose memory we planned, and compare its outputs with the reference's."""
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
    """Tune a network and find all its figures."""
    spec = JobSpec(model=name, out=runs / f"{name}-rewritten", rewrite=True)
    tune_model(spec, TuneConfig(trials=trials, time_budget_s=None), lambda _: None, print)
    job = open_job(spec, print)
    lowered = lower(job.model, job.target)
    stock = build(schedule_defaults(lowered, job.target), job.target)
    reference = Reference(job, MeasuredPeak(0, 0, ()))
    reference = Reference(job, reference.run(stock))
    nothing, records = ms.database.MemoryDatabase(), recorded_database(job, spec)
    cases = {"ordered": (lowered, nothing), "rewritten": (job.lowered, nothing), "tuned": (job.lowered, records)}
    compiled = {what: compile_model(mod, job.target, database, schedule) for what, (mod, database) in cases.items()}
    planned_by_tvm = compile_model(job.lowered, job.target, records)
    executables = {"stock": stock, "tuned, planned by TVM": planned_by_tvm.executable}
    executables |= {what: made.executable for what, made in compiled.items()}
    times = time_executables(job.model, job.target, executables)
    return {
        "stock_measured_bytes": reference.measured.tensor_peak_bytes,
        **{what: reference.compare(made) for what, made in compiled.items()},
        "tuned_by_tvm_measured_bytes": reference.run(planned_by_tvm.executable).tensor_peak_bytes,
        "latency_ms": {what: latency.median_ms for what, latency in times.items()},
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Make the table, in kB of 1,000 bytes; the inputs belong to the caller and are not counted."""
    lines = [
        "| network | | arena | scratch, at most | measured | largest difference of outputs | relative | ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in rows.items():
        ms_of = {what: f"{value:.3f}" for what, value in found["latency_ms"].items()}
        by_tvm = {"stock": "as it is, planned by TVM", "tuned, planned by TVM": "rewritten and tuned, planned by TVM"}
        for what, key in zip(by_tvm, ("stock_measured_bytes", "tuned_by_tvm_measured_bytes"), strict=True):
            lines.append(f"| {name} | {by_tvm[what]} | | | {found[key] / 1000:.1f} | | | {ms_of[what]} |")
        for what in ("ordered", "rewritten", "tuned"):
            r = found[what]
            sizes = (r["arena_bytes"], r["scratch_bytes"], r["measured_peak_bytes"])
            texts = [
                *(f"{size / 1000:.1f}" for size in sizes),
                f"{r['max_error']:.1e}",
                f"{r['max_relative_error']:.1e}",
            ]
            label = "rewritten and tuned" if what == "tuned" else what
            lines.append(f"| {name} | {label} | {' | '.join(texts)} | {ms_of[what]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
