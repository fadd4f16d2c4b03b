#!/usr/bin/env python3
"""Compare strategies of today with `chameleon` on recorded landscapes, alone and as a slot in its batches.

    python -m scripts.tuning.strategies landscapes/*.json.gz --seeds 20

A strategy is the name of a searcher, or `chameleon+X`. With the second, X chooses one of each 8 configurations that
`chameleon` would measure, in place of the last of them. X is `lfbo`, `droplet`, or `near`: the neighbours of the best
trial, ranked by their nearest measured configurations as in `knn`.

The figure is the fraction of the best on record after a number of trials: its mean over landscapes and seeds, with the
standard error over seeds. The difference to `chameleon` is taken seed by seed. This needs no TVM. The results are
written to `runs.jsonl` (a second call runs what is missing), `results.json`, `table.md` and `manifest.json`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.errors import unknown
from chameleon.search import SEARCHERS, Digits, KnobSpace, Searcher, make_searcher
from chameleon.search.knn import nearest_mean
from chameleon.search.moves import Moves, unique_rows
from chameleon.search.planners import Planner, View
from chameleon.workers.pool import PoolConfig
from scripts.common.experiment_stats import Floats, mean_of_means
from scripts.common.run_store import ONE_THREAD, RunStore, write_results
from scripts.common.tables import markdown
from scripts.tuning.ablation import MARKS, groups_of, line_of
from tuners.landscape import Landscape, landscape_name, load_landscape
from tuners.replay import ReplayRun, best_so_far, drive

REFERENCE = "chameleon"
STRATEGIES = "chameleon,lfbo,droplet,knn,annealing,random,chameleon+lfbo,chameleon+near,chameleon+droplet"
app = typer.Typer(add_completion=False)


class Near:
    """Plans the new neighbours of the best trial, by the throughput of the measured configurations near to them."""

    def __init__(self, space: KnobSpace) -> None:
        self._moves = Moves(space)

    def plan(self, view: View) -> Digits:
        near = unique_rows(self._moves.around(view.ranked(1), view.rng), view.known)
        expected = nearest_mean(near, view.history.configs, view.history.throughput(), nearest=5)
        return near[np.argsort(-expected, kind="stable")]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The history is all the state there is."""


class Slots:
    """The plans of one planner, in which another chooses the last of each 8; not the first two, which are random."""

    def __init__(self, most: Planner, some: Planner) -> None:
        self._most, self._some = most, some

    def plan(self, view: View) -> Digits:
        plan = self._most.plan(view)
        if view.history.measured < 16:
            return plan
        taken = view.known | set(KnobSpace.keys(plan))
        other = self._some.plan(view)
        other = unique_rows(other[view.space.is_valid(other)], taken)[: len(plan) // 8]
        return np.vstack([plan[: len(plan) - len(other)], other])

    def state(self) -> dict[str, Any]:
        return {"most": self._most.state(), "some": self._some.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._most.restore(state["most"])
        self._some.restore(state["some"])


def made(strategy: str, space: KnobSpace, rng: np.random.Generator) -> Searcher:
    """Make the searcher of a strategy.

    Raises:
        UsageError: if there is none of that name.
    """
    name, _, slot = strategy.rpartition("+")
    if strategy in SEARCHERS or name != REFERENCE:
        return make_searcher(strategy, space, rng)
    if slot not in ("lfbo", "droplet", "near"):
        raise unknown("slot", slot, ("lfbo", "droplet", "near"))
    most = SEARCHERS[name].build(space, rng, None, SEARCHERS[name].options)
    some = Near(space) if slot == "near" else SEARCHERS[slot].build(space, rng, None, SEARCHERS[slot].options)
    return Searcher(space, Slots(most, some), rng, {"name": strategy})


class Request(NamedTuple):
    """One run: the strategy's name and the landscape's file."""

    strategy: str
    path: str
    seed: int
    trials: int
    batch: int


@lru_cache(maxsize=8)
def loaded(path: str) -> Landscape:
    return load_landscape(path)


def run_one(payload: tuple[Any, ...]) -> dict[str, Any]:
    """Make one run, in a worker process."""
    request = Request(*payload)
    landscape = loaded(request.path)
    searcher = made(request.strategy, landscape.space, np.random.default_rng(request.seed))
    values, engine_s, refused = drive(landscape, searcher, request.trials, request.batch)
    fraction = best_so_far(landscape, values)
    run = ReplayRun(landscape.name, request.strategy, request.seed, values, fraction, engine_s, refused)
    return line_of(request.strategy, run, request.trials)


def standard_error(groups: Sequence[Floats]) -> float:
    """The standard error of the mean over tasks of the mean over seeds; the tasks are taken as they are."""
    return float(np.sqrt(sum(g.var(ddof=1) / len(g) for g in groups)) / len(groups)) if len(groups[0]) > 1 else 0.0


def summarise(lines: Sequence[Mapping[str, Any]], marks: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each strategy: mean fraction and difference to the reference at each mark, with standard errors."""
    rows = []
    for strategy in dict.fromkeys(line["variant"] for line in lines):
        row: dict[str, Any] = {"strategy": strategy}
        for mark in marks:
            mine, reference = groups_of(lines, strategy, mark), groups_of(lines, REFERENCE, mark)
            gained = [a - b for a, b in zip(mine, reference, strict=True)]
            for name, groups in (("fraction", mine), ("difference", gained)):
                row[f"{name}_{mark}"] = {"mean": mean_of_means(groups), "error": standard_error(groups)}
        engine_s = [line["engine_s"] / len(line["fractions"]) for line in lines if line["variant"] == strategy]
        rows.append({**row, "engine_s_per_trial": float(np.mean(engine_s))})
    return rows


def table(rows: Sequence[Mapping[str, Any]], marks: Sequence[int]) -> str:
    """Make a table in Markdown; a difference is bold if it is more than two standard errors."""
    head = ["strategy", *(f"@{m}" for m in marks), *(f"difference @{m}" for m in marks), "engine ms/trial"]
    lines: list[list[str]] = []
    for row in rows:
        cells = [row["strategy"]]
        cells += [f"{row[f'fraction_{m}']['mean']:.3f} ± {row[f'fraction_{m}']['error']:.3f}" for m in marks]
        for mark in marks:
            gap = row[f"difference_{mark}"]
            text = f"{gap['mean']:+.3f} ± {gap['error']:.3f}"
            cells.append(f"**{text}**" if abs(gap["mean"]) > 2 * gap["error"] else text)
        lines.append([*cells, f"{row['engine_s_per_trial'] * 1e3:.0f}"])
    return markdown(head, lines)


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recorded landscapes.")],
    strategies: Annotated[
        str, typer.Option(help="Strategies, separated by commas; chameleon comes first.")
    ] = STRATEGIES,
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each run.")] = 220,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy on each landscape, seeded 0, 1, 2...")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Configurations that are asked for at once.")] = 16,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/strategies"),
) -> None:
    """Compare strategies of today with chameleon on recorded landscapes."""
    started = time.perf_counter()
    names = list(dict.fromkeys([REFERENCE, *(name.strip() for name in strategies.split(",") if name.strip())]))
    for path in files:
        loaded(str(path.resolve()))  # so a broken file is reported before anything runs
    for name in names:
        made(name, loaded(str(files[0].resolve())).space, np.random.default_rng(0))
    options = {"trials": trials, "batch": batch}
    requests = {
        (name, landscape_name(path), seed): tuple(Request(name, str(path.resolve()), seed, trials, batch))
        for name in names
        for seed in range(seeds)
        for path in files
    }
    header = {"kind": "strategies", **options}
    store = RunStore(out / "runs.jsonl", header, lambda line: (line["variant"], line["landscape"], line["seed"]))
    pool = PoolConfig("scripts.tuning.strategies:run_one", jobs, 3600.0, environment=ONE_THREAD)
    lines = store.fill(requests, pool)
    marks = [m for m in MARKS if m <= trials] or [trials]
    rows = summarise(lines, marks)
    arguments = {"files": files, "strategies": names, "seeds": seeds, **options, "jobs": jobs}
    write_results(out, rows, table(rows, marks), arguments, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
