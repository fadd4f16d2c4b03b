#!/usr/bin/env python3
"""Measure what records of other tasks are worth to `ChameleonTuner.load_history`, on recorded landscapes.

    python -m scripts.papers.transfer results/landscapes/resnet18-*.jsonl.gz --records 0,16,64 --seeds 10

This needs a real AutoTVM. Each landscape is the task once. The records come from runs on each of the other landscapes:
`--records` says how many trials of each such run are used (0: no history). The script prints the best time on record
divided by the best time found, after several numbers of trials. It is the mean over tasks and seeds.
"""

# Pyright sees today's TVM, which has no AutoTVM:
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tvm import autotvm

from chameleon.cli import guarded
from chameleon.errors import UsageError
from chameleon.manifest import write_manifest
from tuners.autotvm import ChameleonTuner
from tuners.autotvm_replay import Recording, ReplayBuilder, ReplayRunner, load_recording

CHECKPOINTS = (4, 8, 16, 24, 32, 48, 64)
SOURCE_SEED = 1000  # the runs that leave the records have other seeds than those that use them
Record = tuple[Any, Any]
Floats = NDArray[np.float64]


def tuned(recording: Recording, seed: int, trials: int, history: Sequence[Record]) -> tuple[list[Record], Floats]:
    """Make one run: returns its records, and the fraction of the best after each trial, `[n]`."""
    tuner, records = ChameleonTuner(recording.task(), seed=seed), []
    if history:
        tuner.load_history(history)
    option = autotvm.measure_option(builder=ReplayBuilder(), runner=ReplayRunner(recording))
    tuner.tune(
        trials, option, callbacks=[lambda _, inputs, results: records.extend(zip(inputs, results, strict=True))]
    )
    seconds = np.array([np.inf if t.seconds is None else t.seconds for t in tuner.trials], dtype=np.float64)
    return records, recording.best_seconds / np.minimum.accumulate(seconds)


def compare(
    recordings: Sequence[Recording], amounts: Sequence[int], trials: int, seeds: int
) -> dict[str, dict[int, Any]]:
    """For every task and number of records: the fraction of the best at each of `CHECKPOINTS`, mean over seeds."""
    found: dict[str, dict[int, Any]] = {r.name: {amount: [] for amount in amounts} for r in recordings}
    for seed in range(seeds):
        past = {r.name: tuned(r, SOURCE_SEED + seed, max(amounts), ())[0] if max(amounts) else [] for r in recordings}
        for recording in recordings:
            others = [r.name for r in recordings if r is not recording]
            for amount in amounts:
                history = [record for name in others for record in past[name][:amount]]
                fractions = tuned(recording, seed, trials, history)[1]
                found[recording.name][amount].append([fractions[min(n, len(fractions)) - 1] for n in _within(trials)])
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    return {name: {a: np.mean(rows, axis=0).tolist() for a, rows in by.items()} for name, by in found.items()}


def _within(trials: int) -> list[int]:
    return [n for n in CHECKPOINTS if n <= trials]


def transfer_autotvm(
    landscapes: Annotated[list[Path], typer.Argument(help="Recordings of tasks of one template, two at least.")],
    records: Annotated[str, typer.Option(help="Numbers of records of each other task.")] = "0,16,64",
    trials: Annotated[int, typer.Option(help="Measurements of a run.")] = 48,
    seeds: Annotated[int, typer.Option(help="Runs of each kind.")] = 10,
    out: Annotated[Path | None, typer.Option(help="A folder for results.json and the manifest.")] = None,
) -> None:
    """Compare tuning with and without records of other tasks."""
    recordings = [load_recording(path) for path in landscapes]
    if len(recordings) < 2 or len({r.name for r in recordings}) < len(recordings):
        raise UsageError(
            f"two landscapes with different names at least are needed, got {[r.name for r in recordings]}"
        )
    amounts = [int(amount) for amount in records.split(",")]
    found = compare(recordings, amounts, trials, seeds)
    table = Table("records of each kin", *map(str, _within(trials)))
    for amount in amounts:
        means = np.mean([by[amount] for by in found.values()], axis=0)
        table.add_row(str(amount), *(f"{m:.3f}" for m in means))
    Console().print(table)
    if out:
        write_manifest(
            out / "manifest.json", {"landscapes": landscapes, "records": amounts, "trials": trials, "seeds": seeds}
        )
        (out / "results.json").write_text(
            json.dumps({"checkpoints": _within(trials), "fraction": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(transfer_autotvm)
    sys.exit(guarded(app, sys.argv[1:]))
