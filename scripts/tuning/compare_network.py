#!/usr/bin/env python3
"""Measure what the tasks of a network are worth to each other: a network tuned in several ways, which take turns.

    python -m scripts.tuning.compare_network resnet18 --time-budget 150s --rounds 2 --ways tune,apart
    python -m scripts.tuning.compare_network mobilenetv2_w1 --teacher resnet18 --ways alone,taught,misled

The ways are `tune` as it is, and with one thing changed:

- `apart`: no search is shared (`--no-share`);
- `exact`: no other algorithms (`--exact`);
- `alone`: no task begins with what was fastest in others (`--no-learn`);
- `taught`: it begins with what tuning the network `--teacher` has found, as well;
- `misled`: the same with the teacher's times shuffled within each task.

Each run starts from nothing. The number is the sum of the best times of all kernels, each as often as the network runs
it. It is known once every kernel has a schedule. The table has it at the end, and the seconds until it was as low as
the first way's at its end, in the same round. Where a budget is too short for all kernels, the sum of those that every
way of the round has a schedule for can still be compared, with the trials that they took. What other work the machine
had is in the column `load`: processes that wanted to run, on average, when the run began and when it ended.

The results are written to `results.json` (a second call runs what is missing), `table.md` and `manifest.json`. The
teacher's run is kept in `teacher/`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.errors import UsageError
from chameleon.jobs.config import tune_config
from chameleon.jobs.run_folder import JobSpec, TuneReport
from chameleon.jobs.teachers import RECORDS
from chameleon.jobs.tune import tune_model
from chameleon.manifest import write_manifest
from scripts.common.options import names_of
from scripts.common.tables import markdown

WAYS: dict[str, dict[str, Any]] = {
    "tune": {},
    "apart": {"share": False},
    "alone": {"learn": False},
    "exact": {"exact": True},
    "taught": {},
    "misled": {},
}
LEARNING = ("taught", "misled")
HEAD = (
    "way",
    "round",
    "trials",
    "tasks",
    "tuned",
    "all tuned, s",
    "as the first, s",
    "sum of kernels, ms",
    "of those in common, ms",
    "their trials",
    "load",
)
app = typer.Typer(add_completion=False)


def curve_of(records: Path, weights: dict[str, int]) -> list[tuple[float, float]]:
    """The seconds of tuning and the sum of the best times in ms, whenever it falls; from when all have a schedule."""
    names, best, curve = {}, {}, []
    for line in map(json.loads, records.read_text().splitlines()):
        if line.get("kind") == "task":
            names[line["task"]] = line["name"]
        elif line.get("seconds") and "config" in line:
            name = names[line["task"]]
            if line["seconds"] < best.get(name, np.inf):
                best[name] = line["seconds"]
                if best.keys() == weights.keys():
                    curve.append((line["elapsed_s"], 1e3 * sum(s * weights[n] for n, s in best.items())))
    return curve


def row_of(report: TuneReport, curve: Sequence[tuple[float, float]], load: Sequence[float]) -> dict[str, Any]:
    """One run: its trials, the sum of its best times in milliseconds over time, and how busy the machine was."""
    times_us = [t.weight * t.best_us for t in report.tasks if t.best_us is not None]
    return {
        "trials": report.trials,
        "tasks": len(report.tasks),
        "tuned": len(times_us),
        "followers": sum(bool(t.origin) for t in report.tasks),
        "kernels_ms": sum(times_us) / 1e3,
        "network_ms": report.latency_ms["tuned"],
        "curve": list(curve),
        "load": list(load),
        "report": report.to_json(),
    }


def run(model: str, way: str, seed: int, flags: dict[str, Any], teacher: Path) -> dict[str, Any]:
    """Tune the network from nothing, one way."""
    config = tune_config({}, {**flags, "seed": seed, **WAYS[way]})
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        learn_from: tuple[Path, ...] = ()
        if way in LEARNING:
            learn_from = (teacher,) if way == "taught" else (shuffled(teacher, Path(folder) / RECORDS, seed),)
        spec = JobSpec(model, out=Path(folder) / "runs" / "run", learn_from=learn_from)
        report, out = tune_model(spec, config, lambda _: None, print)
        curve = curve_of(out / RECORDS, {t.name: t.weight for t in report.tasks})
    return {"way": way, "round": seed, **row_of(report, curve, (before, os.getloadavg()[0]))}


def shuffled(teacher: Path, records: Path, seed: int) -> Path:
    """The teacher's records, the times of the successful trials of each task put together with others' digits."""
    lines = [json.loads(text) for text in (teacher / RECORDS).read_text().splitlines()]
    rng = np.random.default_rng(seed)
    for task in {x["task"] for x in lines if "config" in x}:
        mine = [i for i, x in enumerate(lines) if x.get("task") == task and "config" in x and x.get("seconds")]
        times = [lines[i]["seconds"] for i in mine]
        for i, j in zip(mine, rng.permutation(len(mine)), strict=True):
            lines[i] = {**lines[i], "seconds": times[j]}
    records.write_text("".join(json.dumps(x) + "\n" for x in lines if x.get("kind") != "confirmation"))
    return records


def reached_s(curve: Sequence[Sequence[float]], goal_ms: float) -> float | None:
    """The seconds until the sum was at most `goal_ms`; None if it never was."""
    return next((at for at, ms in curve if ms <= goal_ms), None)


def in_common(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """The sum of the best times in ms, and the trials, of the kernels for which all of `rows` have a schedule."""
    tuned = [{t["name"] for t in r["report"]["tasks"] if t["best_us"] is not None} for r in rows]
    mine = [t for t in row["report"]["tasks"] if t["name"] in set.intersection(*tuned)]
    return sum(t["weight"] * t["best_us"] for t in mine) / 1e3, sum(t["trials"] for t in mine)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown, one line for each run."""
    lines: list[list[str]] = []
    for r in rows:
        first = next(x for x in rows if x["round"] == r["round"] and x["way"] == rows[0]["way"])
        goal_ms = first["curve"][-1][1] if first["curve"] else np.inf
        seconds = (r["curve"][0][0] if r["curve"] else None, reached_s(r["curve"], goal_ms))
        all_s, as_first_s = ("-" if s is None else f"{s:.0f}" for s in seconds)
        counts = [str(r[name]) for name in ("round", "trials", "tasks", "tuned")]
        load = " to ".join(f"{x:.1f}" for x in r["load"])
        sum_ms, trials = in_common(r, [x for x in rows if x["round"] == r["round"]])
        lines.append(
            [r["way"], *counts, all_s, as_first_s, f"{r['kernels_ms']:.2f}", f"{sum_ms:.2f}", str(trials), load]
        )
    return markdown(HEAD, lines)


def check_ways(given: str, teacher: str | None) -> list[str]:
    """The names of the ways.

    Raises:
        UsageError: if there is no such way, or one needs a teacher and there is none.
    """
    ways = names_of(given, "way", WAYS)
    for way in ways:
        if way in LEARNING and teacher is None:
            raise UsageError(f"the way {way!r} needs --teacher: a network that is tuned first")
    return ways


@app.command()
def main(
    model: Annotated[str, typer.Argument(help="A network that `chameleon tune` takes.")],
    ways: Annotated[str, typer.Option(help=f"Some of {', '.join(WAYS)}.")] = "tune,apart",
    teacher: Annotated[
        str | None, typer.Option(help="The network that is tuned before, for taught and misled.")
    ] = None,
    time_budget: Annotated[str | None, typer.Option(help="Time for tuning of each run, such as 150s.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of each run.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each way; the seed is that of the round.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/network"),
) -> None:
    """Tune a network in several ways, in turns."""
    names = check_ways(ways, teacher)
    out.mkdir(parents=True, exist_ok=True)
    path, flags = out / "results.json", {"time_budget": time_budget, "trials": trials}
    if teacher is not None:
        config = tune_config({}, {**flags, "seed": 1000})
        tune_model(JobSpec(teacher, out=out / "teacher" / "run"), config, lambda _: None, print)
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for round_ in range(rounds):
        for way in names if round_ % 2 == 0 else reversed(names):
            if any((r["way"], r["round"]) == (way, round_) for r in rows):
                continue
            rows.append(run(model, way, round_, flags, out / "teacher" / "run"))
            rows.sort(key=lambda r: (r["round"], names.index(r["way"]) if r["way"] in names else 0))
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (out / "table.md").write_text(table(rows))
    write_manifest(
        out / "manifest.json", {"model": model, "ways": names, "teacher": teacher, **flags, "rounds": rounds}
    )
    print(table(rows))


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
