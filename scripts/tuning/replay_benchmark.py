#!/usr/bin/env python3
"""Compare the searchers on recorded landscapes and keep the evidence: results, curves and how they were made.

    python -m scripts.tuning.replay_benchmark landscapes/*.json.gz --seeds 10 --out results/replay

Writes `results.json` (what `chameleon replay --json` writes), `curves.png`, `tables.txt` and `manifest.json`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chameleon.cli import guarded
from chameleon.manifest import write_manifest
from chameleon.report import run_replay

SEARCHERS = "chameleon,release,annealing+adaptive,annealing,genetic,random"
app = typer.Typer(add_completion=False)


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recorded landscapes.")],
    searcher: Annotated[str, typer.Option(help="Searchers, separated by commas.")] = SEARCHERS,
    trials: Annotated[int, typer.Option(help="Measurements of each run.")] = 220,
    seeds: Annotated[int, typer.Option(help="Runs of each searcher on each landscape, seeded 0, 1, 2...")] = 10,
    jobs: Annotated[int | None, typer.Option(help="Number of processes. Default: one for each core.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/replay"),
) -> None:
    """Compare the searchers on recorded landscapes and keep results, curves and a manifest."""
    started = time.perf_counter()
    names = [name.strip() for name in searcher.split(",") if name.strip()]
    record = Console(record=True, width=110)
    run_replay(files, names, trials, seeds, out / "results.json", out / "curves.png", jobs, console=record)
    (out / "tables.txt").write_text(record.export_text())
    took_s = round(time.perf_counter() - started, 1)
    arguments = {"files": files, "searchers": names, "trials": trials, "seeds": seeds, "jobs": jobs, "took_s": took_s}
    write_manifest(out / "manifest.json", arguments)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
