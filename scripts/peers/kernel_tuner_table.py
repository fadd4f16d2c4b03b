"""Compares Kernel Tuner's strategies with ours on a landscape, all of them run by Kernel Tuner itself.

    python -m scripts.peers.kernel_tuner_table landscapes/convolution_A100.t4.json.gz --seeds 20

Kernel Tuner's simulation mode measures: the recording answers in place of the hardware. A result counts when its
configuration is seen for the first time in a run, failed or not. Kernel Tuner's strategies have the settings that they
ship with. They draw from global random state, which is seeded before each run.

An experiment that was stopped goes on where it was. It writes `runs.jsonl`, `results.json`, `table.md` and
`manifest.json`.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.search import SEARCHERS, Status
from chameleon.workers.pool import PoolConfig
from scripts.common.experiment_stats import bootstrap, mean_of_means
from scripts.common.options import names_of
from scripts.common.run_store import ONE_THREAD, RunStore, write_results
from scripts.common.tables import markdown
from tuners.kernel_tuner import ChameleonStrategy
from tuners.landscape import Landscape, landscape_name, load_landscape
from tuners.landscape_table import TIME
from tuners.replay import best_so_far

OURS = ("chameleon", "release", "annealing+adaptive", "annealing", "genetic", "random")
THEIRS = (
    "hybrid_vndx",
    "adaptive_tabu_greywolf",
    "genetic_algorithm",
    "simulated_annealing",
    "dual_annealing",
    "diff_evo",
    "pso",
    "firefly_algorithm",
    "greedy_ils",
    "greedy_mls",
    "mls",
    "basinhopping",
    "random_sample",
)
MARKS = (25, 50, 100, 220)
ERRORS = {Status.BUILD_ERROR: "CompilationFailedConfig", Status.TIMEOUT: "RuntimeFailedConfig"}
app = typer.Typer(add_completion=False)


class Request(NamedTuple):
    strategy: str
    path: str
    seed: int
    trials: int


class Recorded(NamedTuple):
    """A landscape as Kernel Tuner takes it: a cache file, and the tuple of each configuration's values by its row."""

    landscape: Landscape
    cache: Path
    rows: Mapping[tuple[Any, ...], int]


def recorded(path: str, folder: Path) -> Recorded:
    """Writes a landscape as a cache of Kernel Tuner."""
    landscape = load_landscape(path)
    knobs = landscape.space.knobs
    values = [[v if isinstance(v, (int, float, str)) else str(v) for v in knob.values] for knob in knobs]
    tuples = [tuple(of[d] for of, d in zip(values, row, strict=True)) for row in landscape.configs.tolist()]
    names = landscape.space.names
    entries = {
        ",".join(map(str, config)): dict(zip(names, config, strict=True)) | _outcome(landscape, row)
        for row, config in enumerate(tuples)
    }
    document = {
        "device_name": "recorded",
        "kernel_name": landscape.name,
        "problem_size": [1],
        "tune_params_keys": list(names),
        "tune_params": dict(zip(names, values, strict=True)),
        "objective": landscape.objective.name,
        "cache": entries,
    }
    cache = folder / f"{landscape.name}.json"
    cache.write_text(json.dumps(document))
    return Recorded(landscape, cache, {config: row for row, config in enumerate(tuples)})


def _outcome(landscape: Landscape, row: int) -> dict[str, Any]:
    name, status = landscape.objective.name, landscape.statuses[row]
    if status is not Status.OK:
        return {name: ERRORS.get(status, "RuntimeFailedConfig")}
    value = float(landscape.values[row])
    return {name: value * 1e3 if landscape.objective == TIME else value}


@lru_cache(maxsize=2)
def _prepared(path: str) -> Recorded:
    return recorded(path, Path(tempfile.mkdtemp(prefix="chameleon-")))


def run_one(payload: tuple[Any, ...]) -> dict[str, Any]:
    """Make one run, in a worker process; a `Request` arrives as a plain tuple."""
    request = Request(*payload)
    found = _prepared(request.path)
    started = time.perf_counter()
    name = request.strategy
    strategy = ChameleonStrategy(name, request.seed) if name in SEARCHERS else name
    results = simulate(found, strategy, request.seed, {"max_fevals": request.trials})
    wall_s = time.perf_counter() - started
    rows = [found.rows[tuple(r[name] for name in found.landscape.space.names)] for r in results]
    values = found.landscape.values[list(dict.fromkeys(rows))][: request.trials]
    curve = [round(float(x), 5) for x in best_so_far(found.landscape, values)]
    key = {"strategy": request.strategy, "landscape": found.landscape.name, "seed": request.seed}
    return {**key, "fractions": curve, "wall_s": round(wall_s, 3)}


def simulate(found: Recorded, strategy: Any, seed: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What Kernel Tuner measures in one run.

    Args:
        strategy: a name of Kernel Tuner's, or a strategy.
        seed: of the global random state.
        options: its `strategy_options`.
    """
    from constraint import FunctionConstraint
    from kernel_tuner import tune_kernel

    document, objective = json.loads(found.cache.read_text()), found.landscape.objective
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the only way to seed Kernel Tuner's own strategies
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results, _ = tune_kernel(
            document["kernel_name"],
            "",
            (1,),
            [],
            document["tune_params"],
            restrictions=[FunctionConstraint(lambda *values: values in found.rows)],
            strategy=strategy,
            strategy_options=dict(options),
            cache=str(found.cache),
            simulation_mode=True,
            objective=objective.name,
            objective_higher_is_better=objective.higher_is_better,
            quiet=True,
        )
    return results


def fraction_at(fractions: Sequence[float], mark: int) -> float:
    """The fraction after `mark` measurements; a run that ended earlier stays where it ended."""
    return fractions[min(mark, len(fractions)) - 1] if fractions else 0.0


def summarise(lines: Sequence[Mapping[str, Any]], marks: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each strategy, the best at the last mark first."""
    rng, rows = np.random.default_rng(0), []
    for strategy in dict.fromkeys(line["strategy"] for line in lines):
        of = [line for line in lines if line["strategy"] == strategy]
        row: dict[str, Any] = {"strategy": strategy, "ours": strategy in SEARCHERS}
        for mark in marks:
            group = np.array([fraction_at(line["fractions"], mark) for line in of])
            row[f"fraction_{mark}"] = vars(bootstrap([group], mean_of_means, rng))
        row["trials"] = float(np.mean([len(line["fractions"]) for line in of]))
        row["wall_s"] = float(np.mean([line["wall_s"] for line in of]))
        rows.append(row)
    return sorted(rows, key=lambda row: -row[f"fraction_{marks[-1]}"]["mean"])


def table(rows: Sequence[Mapping[str, Any]], marks: Sequence[int]) -> str:
    """Make a table in Markdown: the mean fraction of the optimum with its interval."""
    head = ["strategy", "of", *(f"@{m}" for m in marks), "trials", "s/run"]
    lines: list[list[str]] = []
    for row in rows:
        gained = [row[f"fraction_{m}"] for m in marks]
        cells = [f"{g['mean']:.3f} ({g['low']:.3f} to {g['high']:.3f})" for g in gained]
        whose = "Chameleon" if row["ours"] else "Kernel Tuner"
        lines.append([row["strategy"], whose, *cells, f"{row['trials']:.0f}", f"{row['wall_s']:.1f}"])
    return markdown(head, lines)


def chosen(strategies: str) -> list[str]:
    """The names that were asked for.

    Raises:
        UsageError: if a name is neither a strategy of Kernel Tuner's nor a searcher of ours.
    """
    from kernel_tuner.interface import strategy_map

    return names_of(strategies, "strategy", [*SEARCHERS, *strategy_map])


@app.command()
def main(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recorded landscape.")],
    strategies: Annotated[
        str, typer.Option(help="Kernel Tuner's strategies and our searchers, separated by commas.")
    ] = ",".join([*OURS, *THEIRS]),
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each run.")] = 220,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy, seeded 0, 1, 2...")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/kernel_tuner"),
) -> None:
    """Compare Kernel Tuner's strategies with ours, through Kernel Tuner itself."""
    names = chosen(strategies)
    load_landscape(file)  # so a broken file is reported before anything runs
    requests = {
        (name, landscape_name(file), seed): tuple(Request(name, str(file.resolve()), seed, trials))
        for seed in range(seeds)
        for name in names
    }
    header = {"kind": "kernel_tuner", "trials": trials}
    store = RunStore(out / "runs.jsonl", header, lambda line: (line["strategy"], line["landscape"], line["seed"]))
    config = PoolConfig("scripts.peers.kernel_tuner_table:run_one", jobs, 3600.0, environment=ONE_THREAD)
    lines = store.fill(requests, config)
    marks = [m for m in MARKS if m <= trials] or [trials]
    rows = summarise(lines, marks)
    arguments = {"file": file, "strategies": names, "trials": trials, "seeds": seeds, "jobs": jobs}
    took_s = sum(line["wall_s"] for line in lines)  # all runs, whether made now or before
    write_results(out, rows, table(rows, marks), arguments, took_s)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
