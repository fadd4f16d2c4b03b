#!/usr/bin/env python3
"""Compare rules that spread a network's trials over its tasks, on recorded landscapes in the place of its kernels.

    python -m scripts.tuning.allocation results/landscapes/resnet18-*.jsonl.gz --seeds 20

Each landscape is a task of a made-up network, and its best counts as one unit of time; `--weights` says how often it
occurs. Every rule gives the next 8 trials to one task, until all are spent. The rules differ in one thing:

- `today`: the rule of `chameleon.jobs.allocate`, where an optimist hopes for the time of now over the trials so far;
- `even`: the task with the fewest trials is next;
- `predicted`: as `today`, but the hope is what the cost model promises: the time of now against that of the
  configuration that its planner rates highest; until every task has a model, it is `even`;
- `gain`: as `today`, without any hope.

The figure is the time of the network with the best of all landscapes, divided by that with the best found, after a
number of trials. This needs no TVM. The results are written to `runs.jsonl` (a second call runs what is missing),
`results.json`, `table.md` and `manifest.json`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.errors import UsageError
from chameleon.jobs.allocate import AllocationConfig, Progress, next_task
from chameleon.search import SEARCHERS, Searcher, Status
from chameleon.search.planners import Floats, ModelPlanner, View
from chameleon.search.space import Digits
from chameleon.workers.pool import PoolConfig
from scripts.common.experiment_stats import bootstrap, mean_of_means
from scripts.common.run_store import ONE_THREAD, RunStore, write_results
from scripts.common.tables import markdown
from scripts.tuning.strategies import REFERENCE, loaded

BATCH = 8
FLOP = 1e9
"""All tasks have as much arithmetic, and their bests the same time, so no task has a throughput to catch up with."""
app = typer.Typer(add_completion=False)


class Request(NamedTuple):
    """One run: the rule, and the files of the tasks with their weights."""

    rule: str
    seed: int
    trials: int
    files: tuple[str, ...]
    weights: tuple[int, ...]


class Watched:
    """A planner, and what the highest score among its last candidates was."""

    def __init__(self, planner: ModelPlanner) -> None:
        self.promise: float | None = None  # throughput relative to the best measured one; None: no model yet
        self._candidates = planner._candidates
        planner._candidates = self._look  # type: ignore[method-assign]

    def _look(self, view: View) -> tuple[Digits, Floats]:
        candidates, scores = self._candidates(view)
        self.promise = float(scores.max()) if len(scores) else None
        return candidates, scores


class Task:
    """A landscape with its searcher; times are relative to the best on record."""

    def __init__(self, path: str, weight: int, seed: Sequence[int]) -> None:
        self.landscape, self.weight = loaded(path), weight
        rng = np.random.default_rng(seed)
        entry = SEARCHERS[REFERENCE]
        planner = entry.build(self.landscape.space, rng, None, entry.options)
        assert isinstance(planner, ModelPlanner)
        self.watched = Watched(planner)
        self.best: list[float] = []
        self.exhausted = False
        self._searcher = Searcher(self.landscape.space, planner, rng)

    def step(self, n: int) -> None:
        """Measure up to `n` configurations; those that the landscape does not list are free."""
        while not self.exhausted:
            configs = self._searcher.ask_planned(n)
            self.exhausted = not len(configs)
            trials = self.landscape.measure(configs)
            self._searcher.tell(trials)
            made = [t for t in trials if t.status is not Status.INVALID]
            fractions = self.landscape.fraction(np.array([self.landscape.objective.value(t) for t in made]))
            for fraction in fractions:
                now = 1 / fraction if fraction > 0 else math.inf
                self.best.append(min(now, self.best[-1] if self.best else math.inf))
            if made:
                return

    @property
    def progress(self) -> Progress:
        return Progress("kernel", self.weight, FLOP, self.best, exhausted=self.exhausted)


Rule = Callable[[Sequence[Task]], int | None]


def even(tasks: Sequence[Task]) -> int | None:
    """The task with the fewest trials."""
    return min((i for i, t in enumerate(tasks) if not t.exhausted), key=lambda i: len(tasks[i].best), default=None)


def ansor(tasks: Sequence[Task], config: AllocationConfig) -> int | None:
    """The rule of `chameleon.jobs.allocate`."""
    return next_task([t.progress for t in tasks], config)


def predicted(tasks: Sequence[Task], config: AllocationConfig) -> int | None:
    """The same rule with the hope that the cost model gives; tasks without a model yet come first, as with `even`."""
    fresh = [i for i, t in enumerate(tasks) if not t.exhausted and (not t.best or t.watched.promise is None)]
    if fresh:
        return min(fresh, key=lambda i: len(tasks[i].best))

    def worth(i: int) -> float:
        now, n = tasks[i].best[-1], len(tasks[i].best)
        if math.isinf(now):
            return 0.0
        before = tasks[i].best[max(0, n - 1 - config.window)]
        gained = (before - now) / min(n, config.window) if math.isfinite(before) else 0.0
        hope = now * max(0.0, 1 - 1 / max(tasks[i].watched.promise or 0.0, 1e-9)) / BATCH
        return tasks[i].weight * (config.alpha * gained + (1 - config.alpha) * hope)

    return max((i for i, t in enumerate(tasks) if not t.exhausted), key=worth, default=None)


RULES: dict[str, Rule] = {
    "today": partial(ansor, config=AllocationConfig()),
    "even": even,
    "predicted": partial(predicted, config=AllocationConfig()),
    "gain": partial(ansor, config=AllocationConfig(alpha=1.0)),
}


def run_one(payload: tuple[Any, ...]) -> dict[str, Any]:
    """Make one run, in a worker process."""
    request = Request(*payload)
    tasks = [
        Task(path, weight, [request.seed, i])
        for i, (path, weight) in enumerate(zip(request.files, request.weights, strict=True))
    ]
    curve: list[float] = []
    while len(curve) < request.trials and (chosen := RULES[request.rule](tasks)) is not None:
        tasks[chosen].step(BATCH)
        now = sum(t.weight * (t.best[-1] if t.best else math.inf) for t in tasks)
        curve += [sum(request.weights) / now] * (sum(len(t.best) for t in tasks) - len(curve))
    return {"rule": request.rule, "seed": request.seed, "curve": [round(x, 6) for x in curve[: request.trials]]}


def table(rows: list[dict[str, Any]], marks: Sequence[int]) -> str:
    """A row for each rule: the mean at each mark, with an interval that holds 95 % of resampled means."""
    head = ["rule", *(f"@{mark}" for mark in marks)]
    return markdown(head, [[row["rule"], *(row[f"@{mark}"] for mark in marks)] for row in rows])


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recorded landscapes, a task each.")],
    weights: Annotated[str, typer.Option(help="How often each task occurs, with commas. Default: once.")] = "",
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each run, of all tasks together.")] = 192,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each rule, seeded 0, 1, 2...")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/allocation"),
) -> None:
    """Compare rules that spread trials over tasks."""
    started = time.perf_counter()
    counts = tuple(int(w) for w in weights.split(",")) if weights else (1,) * len(files)
    if len(counts) != len(files):
        raise UsageError(f"expected a weight for each of {len(files)} files, got {len(counts)}")
    paths = tuple(str(path.resolve()) for path in files)
    requests = {
        (rule, seed): tuple(Request(rule, seed, trials, paths, counts)) for seed in range(seeds) for rule in RULES
    }
    options = {"trials": trials, "weights": list(counts), "files": [path.name for path in files]}
    store = RunStore(out / "runs.jsonl", {"kind": "allocation", **options}, lambda line: (line["rule"], line["seed"]))
    lines = store.fill(requests, PoolConfig("scripts.tuning.allocation:run_one", jobs, 3600.0, environment=ONE_THREAD))
    quarters = range(trials // 4, trials + 1, trials // 4)
    marks = sorted({mark for mark in (3 * BATCH * len(files), *quarters) if mark <= trials})
    rows = []
    for rule in RULES:
        curves = np.array([line["curve"] for line in lines if line["rule"] == rule])
        rng = np.random.default_rng(0)
        found = {f"@{m}": str(bootstrap([curves[:, m - 1]], mean_of_means, rng)) for m in marks}
        rows.append({"rule": rule, **found})
    write_results(out, rows, table(rows, marks), {**options, "seeds": seeds}, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
