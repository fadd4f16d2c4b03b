#!/usr/bin/env python3
"""Measure what each part of the search is worth: variants of `chameleon` on recorded landscapes.

    python -m scripts.tuning.ablation results/landscapes/*.jsonl.gz more/*.json.gz --seeds 20

This needs no TVM. Each variant differs from `chameleon` in one setting, or in the explorer. Whole searchers are
compared by `scripts/tuning/replay_benchmark.py`.

The score is the fraction of the best on record that was found after a number of trials. The table has its mean over
landscapes and seeds, and the difference to `chameleon`. Both come with 95 % bootstrap intervals over seeds. The
landscapes are not resampled: the intervals say nothing about other landscapes.

The results are written to `runs.jsonl` (a second call runs what is missing), `results.json`, `table.md` and
`manifest.json`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.search import Knob, KnobSpace
from chameleon.search.annealing import AnnealingConfig
from chameleon.workers.pool import PoolConfig
from scripts.common.experiment_stats import Floats, bootstrap, mean_of_means
from scripts.common.options import names_of
from scripts.common.run_store import ONE_THREAD, RunStore, write_results
from scripts.common.tables import markdown
from tuners.landscape import Landscape, landscape_name, load_landscape
from tuners.replay import ReplayRun, replay

MARKS = (25, 50, 100, 220)
REFERENCE = "chameleon"
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Variant:
    """`chameleon` with one change.

    Attributes:
        options: settings by component; one setting, or another explorer.
        features: what the model and the sampler see of a knob's value, see `described`.
    """

    group: str
    options: Mapping[str, Any] = field(default_factory=dict)
    features: str = "meaning"


def planner(group: str, **setting: Any) -> Variant:
    return Variant(group, {"planner": setting})


def agent(**setting: Any) -> Variant:
    return Variant("explorer", {"explorer": setting})


VARIANTS: Mapping[str, Variant] = {
    REFERENCE: Variant(REFERENCE),
    "annealing": Variant("explorer", {"explorer": AnnealingConfig(steps=125, keep=256)}),
    "frozen policy": agent(learning_rate=0.0),
    "uniform walk": agent(policy="uniform"),
    "no walker starts at the best": agent(elite=0.0),
    "no pool of random starts": agent(pool=64),
    "one rollout": agent(rollouts=1),
    "the top, no clusters": planner("selection", select="top"),
    "a twentieth random": planner("selection", epsilon=0.05),
    "clusters of the 2 largest knobs": planner("selection", largest=2),
    "no synthesis": planner("synthesis", synthesis=False),
    "optimism 0": planner("score", optimism=0.0),
    "no success model": planner("score", success=False),
    "one model, so no spread": Variant("score", {"model": {"members": 1}}),
    "no neighbours of the best": planner("candidates", around=0),
    "64 candidates": planner("candidates", candidates=64),
    "first 8 trials random": planner("batches", first=8),
    "first 32 trials random": planner("batches", first=32),
    "first 64 trials random": planner("batches", first=64),
    "batches of at most 8": planner("batches", most=8),
    "batches of at most 64": planner("batches", most=64),
    "batches grow at once": planner("batches", growth=1),
    "splits without running products": Variant("features", features="no products"),
    "options without powers of two": Variant("features", features="no powers"),
    "positions only": Variant("features", features="position"),
    "one-hot": Variant("features", features="one-hot"),
}


class Request(NamedTuple):
    """One run: the variant's name and the landscape's file."""

    variant: str
    path: str
    seed: int
    trials: int
    batch: int


def described(knob: Knob, features: str) -> Knob:
    """Give the knob other features.

    `meaning` is what the engine has. `no products` leaves out the running products of splits. `no powers` leaves out
    the power of two of integer options. `position` is the digit alone. `one-hot` has one column for each value.
    """
    columns = knob.features
    if features == "no products" and knob.kind == "split":
        columns = columns[:, : len(knob.values[0])]
    elif features == "no powers" and knob.kind == "option" and all(type(v) is int for v in knob.values):
        columns = columns[:, :2]
    elif features == "position":
        columns = np.arange(knob.cardinality, dtype=np.float32)[:, None]
    elif features == "one-hot":
        columns = np.eye(knob.cardinality, dtype=np.float32)
    return dataclasses.replace(knob, features=columns)


@lru_cache(maxsize=8)
def prepared(path: str, features: str) -> Landscape:
    """Load the landscape and give its knobs these features, see `described`."""
    landscape = load_landscape(path)
    space = KnobSpace([described(k, features) for k in landscape.space.knobs], listed=landscape.space.listed)
    return dataclasses.replace(landscape, space=space)


def run_one(payload: tuple[Any, ...]) -> dict[str, Any]:
    """Make one run, in a worker process.

    The worker imports this script as a module, so a `Request` arrives as a plain tuple.
    """
    request = Request(*payload)
    variant = VARIANTS[request.variant]
    landscape = prepared(request.path, variant.features)
    budget = {"trials": request.trials, "seed": request.seed, "batch": request.batch}
    run = replay(landscape, REFERENCE, **budget, **variant.options)
    return line_of(request.variant, run, request.trials)


def line_of(variant: str, run: ReplayRun, trials: int) -> dict[str, Any]:
    """What the store keeps of a run: the fraction after each of the trials, and the seconds of the engine."""
    fractions = [round(run.fraction_at(n), 5) for n in range(1, trials + 1)]
    key = {"variant": variant, "landscape": run.landscape, "seed": run.seed}
    return {**key, "fractions": fractions, "engine_s": round(run.engine_s, 3)}


def groups_of(lines: Sequence[Mapping[str, Any]], variant: str, mark: int) -> list[Floats]:
    """For each landscape the fractions after `mark` trials, `[seeds]`, in the order of the seeds."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["variant"] == variant:
            found.setdefault(line["landscape"], {})[line["seed"]] = line["fractions"][mark - 1]
    return [np.array([of[seed] for seed in sorted(of)]) for _, of in sorted(found.items())]


def summarise(lines: Sequence[Mapping[str, Any]], marks: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each variant: mean fraction and difference to the reference at each mark, with intervals."""
    rng, rows = np.random.default_rng(0), []
    for variant in dict.fromkeys(line["variant"] for line in lines):
        row: dict[str, Any] = {"variant": variant, "group": VARIANTS[variant].group}
        for mark in marks:
            mine, reference = groups_of(lines, variant, mark), groups_of(lines, REFERENCE, mark)
            row[f"fraction_{mark}"] = vars(bootstrap(mine, mean_of_means, rng))
            gained = [a - b for a, b in zip(mine, reference, strict=True)]
            row[f"difference_{mark}"] = vars(bootstrap(gained, mean_of_means, rng))
        engine_s = [line["engine_s"] / len(line["fractions"]) for line in lines if line["variant"] == variant]
        rows.append({**row, "engine_s_per_trial": float(np.mean(engine_s))})
    return rows


def table(rows: Sequence[Mapping[str, Any]], marks: Sequence[int]) -> str:
    """Make a table in Markdown: the mean fraction, and the difference to the reference.

    A difference is bold if its interval leaves out 0.
    """
    head = [
        "what differs",
        "variant",
        *(f"@{m}" for m in marks),
        *(f"difference @{m}" for m in marks),
        "engine ms/trial",
    ]
    lines: list[list[str]] = []
    for row in rows:
        cells = [row["group"], row["variant"], *(f"{row[f'fraction_{m}']['mean']:.3f}" for m in marks)]
        for mark in marks:
            gap = row[f"difference_{mark}"]
            text = f"{gap['mean']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
            cells.append(f"**{text}**" if gap["low"] > 0 or gap["high"] < 0 else text)
        lines.append([*cells, f"{row['engine_s_per_trial'] * 1e3:.0f}"])
    return markdown(head, lines)


def chosen_variants(groups: str) -> list[str]:
    """List the names of the variants of some groups, the reference first.

    Raises:
        UsageError: if there is no such group.
    """
    known = list(dict.fromkeys(v.group for v in VARIANTS.values()))
    wanted = names_of(groups, "group", known) if groups else known
    return [name for name, v in VARIANTS.items() if v.group in wanted or name == REFERENCE]


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recorded landscapes.")],
    groups: Annotated[
        str,
        typer.Option(
            help="Some of explorer, selection, synthesis, score, candidates, batches, features. Default: all."
        ),
    ] = "",
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each run.")] = 220,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant on each landscape, seeded 0, 1, 2...")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Configurations that are asked for at once.")] = 16,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/ablation"),
) -> None:
    """Compare variants of the search on recorded landscapes."""
    started, names = time.perf_counter(), chosen_variants(groups)
    for path in files:
        load_landscape(path)  # so a broken file is reported before anything runs
    options = {"trials": trials, "batch": batch}
    requests = {
        (name, landscape_name(path), seed): tuple(Request(name, str(path.resolve()), seed, trials, batch))
        for seed in range(seeds)
        for path in files
        for name in names
    }
    header = {"kind": "ablation", **options}
    store = RunStore(out / "runs.jsonl", header, lambda line: (line["variant"], line["landscape"], line["seed"]))
    lines = store.fill(requests, PoolConfig("scripts.tuning.ablation:run_one", jobs, 3600.0, environment=ONE_THREAD))
    marks = [m for m in MARKS if m <= trials] or [trials]
    rows = summarise(lines, marks)
    arguments = {"files": files, "variants": names, "seeds": seeds, **options, "jobs": jobs}
    write_results(out, rows, table(rows, marks), arguments, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
