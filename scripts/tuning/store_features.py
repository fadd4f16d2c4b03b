#!/usr/bin/env python3
"""Measure what MetaSchedule's features of programs add to the cost model: random schedules, predicted from others.

    python -m scripts.tuning.store_features C2D:1 GMM:1 --count 300

Workloads are those of TVM's `te_workload`. Of each, `--count` random schedules are measured once and kept as a
landscape in `OUT/NAME.jsonl.gz`; a second call only compares. The learner of our searchers learns from N of them and
predicts all others: from knob features alone (the first look), and from knob and per-store features (the second look).
Both predict the product of throughput and success. Over several random splits the table has

    recall@16   share of the 16 fastest that are among the 16 best predicted
    rank        Spearman's correlation of predicted and measured throughput
    best@16     throughput of the fastest among the 16 best predicted / of the fastest of all

and what the features of one configuration cost: replaying its trace, post-processing, extraction.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.manifest import write_manifest
from chameleon.measure import WarmBuilder, WarmRunner
from chameleon.search import Digits, Status, Trial
from chameleon.search.cost_model import CostModelConfig
from chameleon.search.history import History
from chameleon.search.learner import Learner
from chameleon.search.program_features import Featurize
from chameleon.target import detect_target
from scripts.common.experiment_stats import prediction_scores
from scripts.common.tables import markdown
from scripts.tuning.compare_metaschedule import workload_of
from tuners.landscape import landscape_header, read_lines, write_lines
from tuners.meta_schedule import ChameleonStrategy
from tuners.store_features import StoreFeatures
from tuners.trace_space import TraceSpace

TOP = 16
LOOKS = {"knobs": False, "knobs + stores": True}
METRICS = ("recall@16", "rank", "best@16")
app = typer.Typer(add_completion=False)


def measured(name: str, count: int, seed: int, path: Path) -> list[Trial]:
    """Measure random schedules of a workload with the warm builder and runner, and write them as a landscape."""
    from tvm.s_tir import meta_schedule as ms

    mod, target = workload_of(name), detect_target()
    traces = TraceSpace(mod, target)
    started = time.perf_counter()
    with WarmBuilder() as builder, WarmRunner() as runner, tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"builder": builder, "runner": runner, "cost_model": "random"}
        strategy: Any = ChameleonStrategy("random", seed=seed)
        database: Any = ms.tune_tir(mod, target, folder, count, strategy=strategy, **options)
        records = list(database.get_all_tuning_records())
    found: dict[tuple[int, ...], Trial] = {}
    for record in records:
        digits, seconds = traces.digits(record.trace), float(np.mean([float(s) for s in record.run_secs]))
        if digits is not None:
            config = tuple(int(d) for d in digits)
            failed = Trial(config, Status.RUN_ERROR)
            found[config] = Trial(config, Status.OK, seconds) if seconds < 1e6 else failed
    took_s = round(time.perf_counter() - started, 1)
    header = {**landscape_header(name, traces.space), "target": str(target), "seed": seed, "took_s": took_s}
    write_lines([header, *(trial.to_json() for trial in found.values())], path)
    return list(found.values())


def timed(programs: StoreFeatures, traces: TraceSpace, configs: Digits) -> dict[str, float]:
    """Milliseconds of one configuration: its replay and post-processing, and all that its features take."""
    spent = {"schedule": [], "features": []}
    for row in configs:
        started = time.perf_counter()
        traces.schedule(row)
        spent["schedule"].append(time.perf_counter() - started)
        started = time.perf_counter()
        programs(row[None])
        spent["features"].append(time.perf_counter() - started)
    return {name: float(np.median(seconds) * 1e3) for name, seconds in spent.items()}


def compare(
    traces: TraceSpace, trials: Sequence[Trial], featurize: Featurize, sizes: Sequence[int], splits: int
) -> list[dict[str, Any]]:
    """One row for each split, number of trials and look."""
    configs, rows = np.array([t.config for t in trials]), []
    throughput = np.array([1.0 / t.seconds if t.seconds else 0.0 for t in trials])
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(trials))
        for n in sizes:
            history = History(traces.space)
            history.add([trials[i] for i in order[:n]])
            learner = Learner(traces.space, CostModelConfig(), split, featurize)
            for look, rich in LOOKS.items():
                predicted, _ = learner.predict(history, configs[order[n:]], rich=rich)
                found = prediction_scores(predicted, throughput[order[n:]], TOP)
                rows.append(
                    {
                        "trials": n,
                        "split": split,
                        "look": look,
                        **found,
                    }
                )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown: the mean over splits, and the mean difference to the first look with its standard error."""
    head = ["workload", "N", "look", *METRICS, *(f"difference of {m}" for m in METRICS)]
    lines: list[list[str]] = []
    for workload, n in dict.fromkeys((r["workload"], r["trials"]) for r in rows):
        cell = [r for r in rows if (r["workload"], r["trials"]) == (workload, n)]
        of = {look: [r for r in cell if r["look"] == look] for look in LOOKS}
        for look, mine in of.items():
            cells = [f"{np.mean([r[m] for r in mine]):.3f}" for m in METRICS]
            for metric in METRICS:
                gained = [a[metric] - b[metric] for a, b in zip(mine, of["knobs"], strict=True)]
                cells.append(f"{np.mean(gained):+.3f} ± {np.std(gained) / len(gained) ** 0.5:.3f}")
            lines.append([workload, str(n), look, *cells])
    return markdown(head, lines)


@app.command()
def main(
    workloads: Annotated[list[str], typer.Argument(metavar="WORKLOAD...", help="OPERATOR:NUMBER of te_workload.")],
    count: Annotated[int, typer.Option(min=32, help="Random schedules of each workload.")] = 300,
    sizes: Annotated[str, typer.Option(help="Numbers of trials to learn from, separated by commas.")] = "32,64,128",
    splits: Annotated[int, typer.Option(min=1, help="Random splits into known and predicted.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the random schedules.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/store_features"),
) -> None:
    """Compare predictions with and without MetaSchedule's per-store features."""
    started, rows, costs = time.perf_counter(), [], {}
    out.mkdir(parents=True, exist_ok=True)
    for name in workloads:
        path = out / f"{name.replace(':', '-')}.jsonl.gz"
        trials = [Trial.from_json(x) for x in read_lines(path)[1:]] if path.exists() else []
        trials = trials or measured(name, count, seed, path)
        target = detect_target()
        traces = TraceSpace(workload_of(name), target)
        programs = StoreFeatures(traces, target)
        costs[name] = timed(programs, traces, np.array([t.config for t in trials[:40]]))
        found = compare(traces, trials, programs, [int(n) for n in sizes.split(",")], splits)
        rows += [{"workload": name, **row} for row in found]
        print(f"{name}: done after {time.perf_counter() - started:.0f} s", flush=True)
    (out / "results.json").write_text(json.dumps({"results": rows, "median_ms": costs}, indent=1) + "\n")
    (out / "table.md").write_text(table(rows))
    arguments = {"workloads": workloads, "count": count, "sizes": sizes, "splits": splits, "seed": seed}
    write_manifest(out / "manifest.json", {**arguments, "took_s": round(time.perf_counter() - started, 1)})
    print(table(rows), costs)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
