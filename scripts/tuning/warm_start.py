#!/usr/bin/env python3
"""Measure what kin are worth to a search: landscapes of the same knobs, for other shapes or on other devices.

    python -m scripts.tuning.warm_start results/landscapes/resnet18-*.jsonl.gz --seeds 20

Each landscape is the task once. Its teachers are runs of `chameleon` on the others that are its kin, with as many
trials as `--taught` says and with other seeds. The variants are `chameleon` without any teacher, `taught`, and
`misled`: taught by the same configurations with their times shuffled.

The figure is the fraction of the best on record after a number of trials, as in `scripts/tuning/strategies.py`. This
needs no TVM. The results are written to `runs.jsonl` (a second call runs what is missing), `results.json`, `table.md`
and `manifest.json`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.errors import UsageError
from chameleon.search import Kin, KnobSpace, Trial, make_searcher, warm_start
from chameleon.search.kin import distance, kin_among
from chameleon.workers.pool import PoolConfig
from scripts.common.run_store import ONE_THREAD, RunStore, write_results
from scripts.tuning.ablation import line_of
from scripts.tuning.strategies import REFERENCE, loaded, summarise, table
from tuners.landscape import landscape_name
from tuners.replay import ReplayRun, best_so_far, drive

MARKS = (4, 8, 16, 24, 32)
VARIANTS = (REFERENCE, "taught", "misled")
SOURCE_SEED = 1000  # the runs that teach have other seeds than those that are taught
app = typer.Typer(add_completion=False)


class Request(NamedTuple):
    """One run: the variant, the landscape's file and those of all landscapes."""

    variant: str
    path: str
    seed: int
    trials: int
    taught: int
    files: tuple[str, ...]


@lru_cache(maxsize=64)
def told(path: str, seed: int, trials: int) -> tuple[KnobSpace, list[Trial]]:
    """What a run of `chameleon` measured on a landscape, with its space."""
    landscape = loaded(path)
    searcher = Telling(landscape.space, seed)
    drive(landscape, searcher, trials, 16)
    return landscape.space, searcher.trials


class Telling:
    """A searcher that keeps what it was told."""

    def __init__(self, space: KnobSpace, seed: int) -> None:
        self.trials: list[Trial] = []
        self._searcher = make_searcher(REFERENCE, space, seed)
        self.ask_planned = self._searcher.ask_planned

    def tell(self, trials: Sequence[Trial]) -> None:
        self.trials += trials
        self._searcher.tell(trials)


def shuffled(kin: Kin, rng: np.random.Generator) -> Kin:
    """The same configurations and times, put together at random."""
    order = rng.permutation(len(kin.configs))
    return dataclasses.replace(kin, configs=tuple(kin.configs[i] for i in order))


def run_one(payload: tuple[Any, ...]) -> dict[str, Any]:
    """Make one run, in a worker process."""
    request = Request(*payload)
    landscape, searcher = loaded(request.path), make_searcher(REFERENCE, loaded(request.path).space, request.seed)
    if request.variant != REFERENCE:
        others = [told(f, SOURCE_SEED + request.seed, request.taught) for f in request.files if f != request.path]
        kin = kin_among(landscape.space, others)
        if request.variant == "misled":
            rng = np.random.default_rng(request.seed)
            kin = [shuffled(k, rng) for k in kin]
        warm_start(searcher, kin)
    values, engine_s, refused = drive(landscape, searcher, request.trials, 16)
    fraction = best_so_far(landscape, values)
    run = ReplayRun(landscape.name, REFERENCE, request.seed, values, fraction, engine_s, refused)
    return line_of(request.variant, run, request.trials)


def check_kin(files: list[str]) -> None:
    """Check that every landscape has kin.

    Raises:
        UsageError: if one has not.
    """
    for path in files:
        if all(math.isinf(distance(loaded(path).space, loaded(f).space)) for f in files if f != path):
            raise UsageError(f"{path} has no kin among the other landscapes: none has the same knobs")


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recorded landscapes, kin of each other.")],
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each run.")] = 32,
    taught: Annotated[int, typer.Option(min=1, help="Measurements of each run that teaches.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant on each landscape, seeded 0, 1, 2...")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/warm_start"),
) -> None:
    """Compare the search with and without teachers on recorded landscapes."""
    started, paths = time.perf_counter(), [str(path.resolve()) for path in files]
    check_kin(paths)
    requests = {
        (variant, landscape_name(path), seed): tuple(
            Request(variant, str(path.resolve()), seed, trials, taught, tuple(paths))
        )
        for seed in range(seeds)
        for path in files
        for variant in VARIANTS
    }
    options = {"trials": trials, "taught": taught}
    header = {"kind": "warm start", **options}
    store = RunStore(out / "runs.jsonl", header, lambda line: (line["variant"], line["landscape"], line["seed"]))
    pool = PoolConfig("scripts.tuning.warm_start:run_one", jobs, 3600.0, environment=ONE_THREAD)
    lines = store.fill(requests, pool)
    marks = [m for m in MARKS if m <= trials]
    rows = summarise(lines, marks)
    arguments = {"files": files, "seeds": seeds, **options, "jobs": jobs}
    write_results(out, rows, table(rows, marks), arguments, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
