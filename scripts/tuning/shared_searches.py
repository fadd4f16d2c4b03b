#!/usr/bin/env python3
"""Measure what one search for all tasks with the same main block is worth: a network tuned with and without it.

    python -m scripts.tuning.shared_searches resnet18 --time-budget 150s --rounds 2

The two ways take turns, so that other work on the machine hits both, and each run starts from nothing. The number is
the sum of the best times of all kernels, each as often as the network runs it. The latency of the compiled network is
an independent check. What other work there was is in the column `load`: processes that wanted to run, on average, when
the run began and when it ended.

The results are written to `results.json` (a second call runs what is missing), `table.md` and `manifest.json`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chameleon.cli import guarded
from chameleon.jobs.config import tune_config
from chameleon.jobs.run_folder import JobSpec, TuneReport
from chameleon.jobs.tune import tune_model
from chameleon.manifest import write_manifest

WAYS = {"shared": True, "apart": False}
HEAD = ("way", "round", "trials", "tasks", "tuned", "sum of kernels, ms", "network, ms", "load")
app = typer.Typer(add_completion=False)


def row_of(report: TuneReport, way: str, round_: int, load: Sequence[float]) -> dict[str, Any]:
    """One run: its trials, the sum of its best times in milliseconds, and how busy the machine was."""
    times_us = [t.weight * t.best_us for t in report.tasks if t.best_us is not None]
    return {
        "way": way,
        "round": round_,
        "trials": report.trials,
        "tasks": len(report.tasks),
        "tuned": len(times_us),
        "followers": Counter(bool(t.origin) for t in report.tasks)[True],
        "kernels_ms": sum(times_us) / 1e3,
        "network_ms": report.latency_ms["tuned"],
        "load": list(load),
        "report": report.to_json(),
    }


def run(model: str, way: str, round_: int, flags: dict[str, Any]) -> dict[str, Any]:
    """Tune the network from nothing, one way."""
    config = tune_config({}, {**flags, "seed": round_, "share": WAYS[way]})
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        report, _ = tune_model(JobSpec(model, out=Path(folder) / "run"), config, lambda _: None, print)
    return row_of(report, way, round_, (before, os.getloadavg()[0]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown, one line for each run."""
    lines = [list(HEAD), ["---"] * len(HEAD)]
    for r in rows:
        network = "-" if r["network_ms"] is None else f"{r['network_ms']:.1f}"
        load = " to ".join(f"{x:.1f}" for x in r["load"])
        counts = [str(r[name]) for name in ("round", "trials", "tasks", "tuned")]
        lines.append([r["way"], *counts, f"{r['kernels_ms']:.2f}", network, load])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


@app.command()
def main(
    model: Annotated[str, typer.Argument(help="A network that `chameleon tune` takes.")],
    time_budget: Annotated[str | None, typer.Option(help="Time for tuning of each run, such as 150s.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of each run.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each way; the seed is that of the round.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/shared_searches"),
) -> None:
    """Tune a network with one search for all tasks with the same main block, and with one for each task."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    flags = {"time_budget": time_budget, "trials": trials}
    for round_ in range(rounds):
        for way in WAYS if round_ % 2 == 0 else reversed(WAYS):
            if any((r["way"], r["round"]) == (way, round_) for r in rows):
                continue
            rows.append(run(model, way, round_, flags))
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (out / "table.md").write_text(table(rows))
    write_manifest(out / "manifest.json", {"model": model, **flags, "rounds": rounds})
    print(table(rows))


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
