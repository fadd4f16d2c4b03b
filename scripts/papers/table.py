#!/usr/bin/env python3
"""Make the papers' table: annealing, agent, sampler and synthesis beside AutoTVM's own tuners, in a real AutoTVM.

    python -m scripts.papers.table replay results/landscapes/*.jsonl.gz --seeds 20
    python -m scripts.papers.table live --budget-s 60

This needs an AutoTVM (TVM <= 0.19). There are two modes.

`live` tunes the convolutions of ResNet-18 on this machine, see `scripts.papers.live`.

`replay` runs every tuner on recorded landscapes. Its optimisation time is the sum of three parts:

- what building and running each trial took when it was recorded,
- for each trial `--overhead-s`: what AutoTVM's own builder and runner cost beside that (take it from a live run),
- the processor time that the tuner really took in the replay. Libraries are loaded before.

The table has, for each tuner:

- trials and optimisation time until 95 % and 99 % of the best that any of the tuners found on a task,
- the best found at the time when the first tuner had spent its trials,
- the best found at the end.

The folder of the results gets `runs.jsonl` (appended to; a second call runs what is missing), `results.json`,
`table.md`, `curves.png` and `manifest.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.manifest import write_manifest
from chameleon.workers.pool import PoolConfig
from scripts.common.experiment_stats import Run
from scripts.common.options import names_of
from scripts.common.run_store import ONE_THREAD, RunStore
from scripts.papers.report import Comparison, per_task, plot, summarise, table
from scripts.papers.tuners import DEFAULT, TUNERS, ReplayRequest
from tuners.autotvm_replay import load_recording
from tuners.landscape import landscape_name

RUN_TIMEOUT_S = 3 * 3600
app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])

Tuners = Annotated[str, typer.Option("--tuners", help="Names, separated by commas.")]


@app.command()
def replay(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Landscapes by collect_landscape.py.")],
    tuners: Tuners = DEFAULT,
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each run.")] = 256,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each tuner on each landscape, seeded 0, 1, 2...")] = 20,
    n_parallel: Annotated[int, typer.Option(min=1, help="Configurations that AutoTVM asks for at once.")] = 8,
    overhead_s: Annotated[
        float, typer.Option(help="Seconds that a trial costs AutoTVM beside building and running.")
    ] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; each run has one of its own.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/papers/replay"),
) -> None:
    """Run every tuner on recorded landscapes."""
    names, started = names_of(tuners, "tuner", TUNERS), time.perf_counter()
    for path in files:
        load_recording(path)  # so a broken file is reported before anything runs
    options = {"trials": trials, "n_parallel": n_parallel, "overhead_s": overhead_s}
    requests = [
        ReplayRequest(str(path.resolve()), name, seed, trials, n_parallel, overhead_s)
        for seed in range(seeds)
        for path in files
        for name in names
    ]
    runs = run_missing(requests, out / "runs.jsonl", options, jobs)
    arguments = {"mode": "replay", "files": files, "tuners": names, "seeds": seeds, **options, "jobs": jobs}
    report(runs, names, out, {**arguments, "took_s": round(time.perf_counter() - started, 1)})


@app.command()
def live(
    tuners: Tuners = DEFAULT,
    tasks: Annotated[
        str, typer.Option(help="Tasks of configs/autotvm/tasks.yaml. A name that is not there is a prefix.")
    ] = "resnet18-",
    budget_s: Annotated[float, typer.Option(help="Optimisation time of each tuner on each task.")] = 60.0,
    trials: Annotated[
        int, typer.Option(min=1, help="At most so many measurements of each tuner on each task.")
    ] = 100_000,
    slice_trials: Annotated[
        int, typer.Option(min=1, help="Trials of one tuner before the next one has its turn.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Seed of all tuners.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each tuner's best kernel at the end, in turns.")] = 15,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/papers/live"),
) -> None:
    """Run every tuner on this machine, in turns, on the convolutions of ResNet-18."""
    from scripts.papers.live import LivePlan, best_kernels, run_live

    names, started = names_of(tuners, "tuner", TUNERS), time.perf_counter()
    plan = LivePlan(tuple(names), budget_s, trials, slice_trials, seed)
    session = run_live(plan, tasks, out)
    kernels = best_kernels(session, rounds)
    arguments = {
        "mode": "live",
        "tuners": names,
        "tasks": [t.name for t in session],
        "budget_s": budget_s,
        "trials": trials,
    }
    arguments |= {"slice_trials": slice_trials, "seed": seed, "rounds": rounds}
    runs = [contest.run() for task in session for contest in task.contests]
    report(runs, names, out, {**arguments, "took_s": round(time.perf_counter() - started, 1)}, {"kernels_us": kernels})


def run_missing(requests: Sequence[ReplayRequest], path: Path, options: dict[str, Any], jobs: int) -> list[Run]:
    """Return the runs of all requests; those that are not on record are made, each in a process of its own."""
    store = RunStore(path, {"kind": "runs", **options}, lambda line: (line["task"], line["tuner"], line["seed"]))
    keyed = {(landscape_name(Path(r.path)), r.tuner, r.seed): r for r in requests}
    config = PoolConfig(
        "scripts.papers.tuners:replay_run", jobs, RUN_TIMEOUT_S, recycle_after=1, environment=ONE_THREAD
    )
    return [Run.from_json(line) for line in store.fill(keyed, config)]


def report(
    runs: Sequence[Run], names: Sequence[str], out: Path, arguments: dict[str, Any], more: dict[str, Any] | None = None
) -> None:
    """Write the results, the table, the picture and the manifest."""
    comparison = Comparison(sorted(runs, key=lambda run: names.index(run.tuner)))
    rows = summarise(comparison, np.random.default_rng(0))
    facts = {"best_s": comparison.best_s, "equal_time_s": comparison.equal_s, **(more or {})}
    results = {"summary": rows, "tasks": per_task(comparison), **facts}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(rows, {name: entry.about for name, entry in TUNERS.items()})
    (out / "table.md").write_text(text)
    plot(comparison, out / "curves.png")
    write_manifest(out / "manifest.json", arguments)
    print(text)


if __name__ == "__main__":
    os.environ.setdefault("TVM_NUM_THREADS", "1")  # threads of kernels; TVM reads it when it starts
    sys.exit(guarded(app, sys.argv[1:]))
