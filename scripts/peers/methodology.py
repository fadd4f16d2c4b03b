"""Scores Kernel Tuner's strategies and ours by the method that its authors publish (Willemsen 2024).

    python -m scripts.peers.methodology landscapes/*_A100.t4.json.gz landscapes/gemm_*.json.gz --seeds 20

Their package `autotuning_methodology` scores, and Kernel Tuner's simulation mode measures. The score is how much of
the way from random search to the optimum a strategy has gone, averaged over the tuning time and over the landscapes:
1 is the optimum at once, 0 is random search. The time ends where random search is expected to reach the cutoff, which
is a fraction of the way from the median to the optimum.

There are two scores of the same runs. For `score` a measurement takes the time that was recorded to compile, to check
and to run, and the time that strategy and framework take in this process: these are the keys `all` of the package. For
`recorded` only the first is counted, so it does not depend on this machine.

A run ends when it has found the optimum, since nothing can change its curve after that; random configurations stand
for the rest. It writes `runs.jsonl`, `results.json`, `table.md` and `manifest.json`, and goes on where it was stopped.
The package is not among the project's: see `scripts/peers/requirements-methodology.txt`.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.errors import UsageError
from chameleon.search import SEARCHERS
from chameleon.workers.pool import PoolConfig
from scripts.common.run_store import ONE_THREAD, RunStore, write_results
from scripts.common.tables import markdown
from scripts.peers.kernel_tuner_table import Recorded, chosen, recorded, simulate
from tuners.kernel_tuner import ChameleonStrategy
from tuners.landscape import landscape_name
from tuners.landscape_table import TIME

STRATEGIES = (
    *("chameleon", "hybrid_vndx", "adaptive_tabu_greywolf", "genetic_algorithm", "firefly_algorithm"),
    "random_sample",
)
RECORDED = ("compilation", "validation", "runtimes")
KEYS = {"score": (*RECORDED, "framework", "search_algorithm"), "recorded": RECORDED}
"""What a measurement takes, by the package's names, for each of the two scores."""
FIRST = 0.01
"""Where the time starts: the package's default for the other cutoff."""
MARGIN = 1.1
"""A run goes on for so many times the time that is scored, as in the package."""
PATIENCE = 10
"""A run that does not come to its end takes so many times its limit on the clock."""
RESOLUTION = 1000
CONFIDENCE = 0.95
GROUPS = 4
"""The standard error is that of the scores of so many groups of seeds."""
_TIMES = ("compile_time", "verification_time", "benchmark_time", "framework_time", "strategy_time")
_SPENT = _TIMES[:3]  # what the budget of Kernel Tuner's simulation counts
_warmed: list[bool] = []  # whether this process has imported what is imported on first use, in nobody's time
app = typer.Typer(add_completion=False)


class Request(NamedTuple):
    strategy: str
    path: str
    seed: int
    limit_s: float


class Timed(NamedTuple):
    """A landscape as Kernel Tuner takes it, with the times that were recorded.

    Attributes:
        entries: what the cache holds for each row.
        goals: keys of the configurations that are the optimum, in the cache.
    """

    found: Recorded
    entries: tuple[dict[str, Any], ...]
    goals: frozenset[str]

    def spent_s(self, row: int) -> float:
        return sum(self.entries[row][name] for name in _SPENT) * 1e-3


@lru_cache(maxsize=8)
def prepared(path: str) -> Timed:
    """Writes a landscape as a cache of Kernel Tuner, with the times that were recorded.

    Raises:
        UsageError: if no times were recorded, or if it is not a landscape of times.
    """
    found = recorded(path, Path(tempfile.mkdtemp(prefix="chameleon-")))
    document = json.loads(found.cache.read_text())
    names = found.landscape.space.names
    times = {_key(config, names): of for config, of in _recorded_times(Path(path))}
    for key, entry in document["cache"].items():
        entry.update(times[key])
    if found.landscape.objective != TIME or not any(entry[n] for entry in document["cache"].values() for n in _SPENT):
        raise UsageError(f"{path}: expected a landscape of times, with what it took to compile and run each kernel")
    found.cache.write_text(json.dumps(document))
    best = np.nanmin(found.landscape.values)  # NaN where a kernel failed
    keys = {row: _key(dict(zip(names, config, strict=True)), names) for config, row in found.rows.items()}
    goals = frozenset(key for row, key in keys.items() if found.landscape.values[row] == best)
    return Timed(found, tuple(document["cache"][keys[row]] for row in range(len(keys))), goals)


def _key(config: Mapping[str, Any], names: Sequence[str]) -> str:
    return ",".join(str(config[name]) for name in names)


def _recorded_times(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each configuration of a cache of Kernel Tuner or of T4 results, with its times in milliseconds."""
    document = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text())
    if "cache" in document:
        for entry in document["cache"].values():
            yield entry, {name: entry.get(name, 0) for name in _TIMES} | {"times": entry.get("times", [])}
        return
    for result in document["results"]:
        of = result["times"]
        runs = of.get("runtimes", [])
        values = (of["compilation"], of["validation"], sum(runs), of["framework"], of["search_algorithm"])
        yield result["configuration"], dict(zip(_TIMES, values, strict=True)) | {"times": runs}


class Within:
    """A strategy of Kernel Tuner's or ours, with a budget of recorded time that ends with the optimum.

    Kernel Tuner's own budget adds the time of this process, which differs from machine to machine.
    """

    def __init__(self, strategy: Any, limit_s: float, goals: frozenset[str]) -> None:
        self._strategy, self._limit_s, self._goals = strategy, limit_s, goals

    def tune(self, searchspace: Any, runner: Any, tuning_options: Any) -> Any:
        from kernel_tuner.util import TuningBudget

        goals = self._goals

        class Budget(TuningBudget):
            def get_time_spent(self) -> timedelta:
                if goals & runner.visited_results:
                    return timedelta.max
                # A strategy that finds nothing new any more ends by the clock, late.
                return max(self.time_spent_extra, timedelta(seconds=self.start_timer.get() / PATIENCE))

        tuning_options.budget = Budget(self._limit_s)
        runner.timer.get_and_reset()  # what Kernel Tuner took to list the space is in nobody's time
        return self._strategy.tune(searchspace, runner, tuning_options)


def run_one(payload: tuple[Any, ...]) -> dict[str, Any]:
    """Make one run, in a worker process; a `Request` arrives as a plain tuple."""
    from kernel_tuner.interface import strategy_map

    request = Request(*payload)
    name, timed = request.strategy, prepared(request.path)
    theirs_or_ours = ChameleonStrategy(name, request.seed) if name in SEARCHERS else strategy_map[name]
    if not _warmed:
        simulate(timed.found, ChameleonStrategy(), 0, {"max_fevals": 40})
        _warmed.append(True)
    started = time.perf_counter()
    strategy = Within(theirs_or_ours, request.limit_s, timed.goals)
    results = simulate(timed.found, strategy, request.seed, {"time_limit": request.limit_s})
    wall_s = time.perf_counter() - started
    names, rows = timed.found.landscape.space.names, timed.found.rows
    return {
        **{"strategy": name, "landscape": timed.found.landscape.name, "seed": request.seed},
        "rows": [rows[tuple(r[n] for n in names)] for r in results],
        "engine_ms": [round(r["strategy_time"] + r["framework_time"]) for r in results],
        "wall_s": round(wall_s, 3),
    }


def t4_results(timed: Timed, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kernel Tuner's results as the package takes them, by Kernel Tuner's own writer."""
    from kernel_tuner import util
    from kernel_tuner.file_utils import get_t4_results

    failed = {
        error: {"__error__": getattr(util, error)()} for error in ("CompilationFailedConfig", "RuntimeFailedConfig")
    }
    marked = [entry | failed.get(str(entry["time"]), {}) for entry in entries]
    document: dict[str, Any] = get_t4_results(marked, dict.fromkeys(timed.found.landscape.space.names), "time")
    found = document["results"]
    for result in found:
        result["measurements"] = [m for m in result["measurements"] if m["name"] == "time"]
    return found


def results_of(timed: Timed, line: Mapping[str, Any], limit_s: float) -> list[dict[str, Any]]:
    """One run as the package takes it, in seconds, up to the limit of the recorded time.

    A configuration that is seen again takes the engine's time alone.
    """
    entries, seen = [], set()
    for row, engine_ms in zip(line["rows"], line["engine_ms"], strict=True):
        again = dict.fromkeys(_SPENT, 0) | {"times": []} if row in seen else {}
        entries.append(timed.entries[row] | {"strategy_time": engine_ms, "framework_time": 0} | again)
        seen.add(row)
    entries += _rest(timed, seen, limit_s, line["seed"])
    results = t4_results(timed, entries)
    for result in results:
        result["times"] = {k: np.array(of).sum() * 1e-3 for k, of in result["times"].items()}
    return results


def _rest(timed: Timed, seen: set[int], limit_s: float, seed: int) -> list[dict[str, Any]]:
    """Random configurations for the rest of the time, where the optimum was found."""
    values = timed.found.landscape.values
    if np.nanmin(values) not in values[list(seen)]:
        return []
    spent_s, entries = sum(timed.spent_s(row) for row in seen), []
    for row in np.random.default_rng(seed).permutation(len(timed.entries)).tolist():
        if spent_s >= limit_s:
            break
        if row not in seen:
            entries.append(timed.entries[row] | {"strategy_time": 0, "framework_time": 0})
            spent_s += timed.spent_s(row)
    return entries


def statistics(timed: Timed, keys: Sequence[str]) -> Any:
    """The package's statistics of a landscape."""
    from autotuning_methodology.searchspace_statistics import SearchspaceStatistics

    name = timed.found.landscape.name
    document = {
        "results": t4_results(timed, timed.entries),
        "schema_version": "1.0.0",
        "metadata": {"timeunit": "milliseconds"},
    }
    path = timed.found.cache.with_suffix(".T4.json")
    path.write_text(json.dumps(document))
    return SearchspaceStatistics(name, "recorded", True, list(keys), ["time"], path, full_validate=False)  # type: ignore[arg-type]


def limit_s(space: Any, cutoff: float) -> float:
    """Recorded seconds that a run has."""
    *_, end_s = space.cutoff_point_fevals_time_start_end(FIRST, cutoff)
    return float(end_s) * MARGIN


def scores(
    runs: Mapping[tuple[str, str], Sequence[Any]], spaces: Mapping[str, Any], cutoff: float
) -> dict[str, dict[str, float]]:
    """The score of each strategy on each landscape, by the package, and the mean of these (`all`).

    The package takes the mean of the landscapes' curves and then over the time; the order makes no difference.

    Args:
        runs: what `results_of` gave, by strategy and landscape.
        spaces: the statistics of each landscape.
    """
    from autotuning_methodology.report_experiments import get_aggregation_data, get_strategies_aggregated_performance

    names = list(dict.fromkeys(name for name, _ in runs))
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        described: dict[str, dict[str, Any]] = {
            landscape: {name: _described(Path(folder), name, runs[name, landscape], space) for name in names}
            for landscape, space in spaces.items()
        }
        np.random.seed(0)  # noqa: NPY002  # the package draws from it for its intervals
        data = get_aggregation_data(
            Path(folder),
            {"experimental_groups_defaults": {"gpus": ["recorded"], "applications_names": list(spaces)}},
            {"recorded": dict(spaces)},
            [{"name": name, "display_name": name} for name in names],  # type: ignore[arg-type]
            {"recorded": described},
            *(cutoff, FIRST, CONFIDENCE, RESOLUTION),
        )
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for landscape, of in zip(spaces, data.values(), strict=True):
        curves, *_ = get_strategies_aggregated_performance([of], CONFIDENCE)  # type: ignore[arg-type]
        for name, curve in zip(names, curves, strict=True):
            found[name][landscape] = float(np.mean(curve))
    return {name: {**each, "all": float(np.mean([*each.values()]))} for name, each in found.items()}


def _described(folder: Path, name: str, runs: Sequence[Any], space: Any) -> Any:
    """The package's description of a strategy's runs on a landscape, in a file of the folder."""
    from autotuning_methodology.caching import ResultsDescription
    from autotuning_methodology.runner import write_results as write_arrays

    keys = space.objective_time_keys
    found = ResultsDescription(
        folder / name, space.application_name, "recorded", name, name, True, keys, ["time"], True
    )
    write_arrays(list(runs), found)
    return found


def summarise(
    lines: Sequence[Mapping[str, Any]], landscapes: Mapping[str, Timed], cutoff: float
) -> list[dict[str, Any]]:
    """One row for each strategy, the best score first."""
    names = list(dict.fromkeys(line["strategy"] for line in lines))
    rows = {name: {"strategy": name, "ours": name in SEARCHERS} for name in names}
    seeds = sorted({line["seed"] for line in lines})
    parts = [set(part.tolist()) for part in np.array_split(seeds, GROUPS)] if len(seeds) >= 2 * GROUPS else []
    for kind, keys in KEYS.items():
        spaces = {landscape: statistics(timed, keys) for landscape, timed in landscapes.items()}
        limits = {landscape: limit_s(space, cutoff) for landscape, space in spaces.items()}
        runs: dict[Any, dict[int, Any]] = {(name, landscape): {} for name in names for landscape in landscapes}
        for line in lines:
            landscape = line["landscape"]
            results = results_of(landscapes[landscape], line, limits[landscape])
            runs[line["strategy"], landscape][line["seed"]] = results
        whole, *pieces = (
            scores({key: [of[seed] for seed in of if seed in part] for key, of in runs.items()}, spaces, cutoff)
            for part in (set(seeds), *parts)
        )
        for name, row in rows.items():
            row[kind] = whole[name]
            if pieces:
                spread = np.std([piece[name]["all"] for piece in pieces], ddof=1)
                row[f"{kind}_error"] = float(spread / np.sqrt(GROUPS))
    for name, row in rows.items():
        of = [line for line in lines if line["strategy"] == name]
        row["engine_ms"] = float(np.sum([np.sum(x["engine_ms"]) for x in of]) / sum(len(x["rows"]) for x in of))
        row["wall_s"] = float(np.mean([x["wall_s"] for x in of]))
    return sorted(rows.values(), key=lambda row: -row["score"]["all"])


def table(rows: Sequence[Mapping[str, Any]], landscapes: Sequence[str]) -> str:
    """Make a table in Markdown: both scores on all landscapes, `score` on each, and the engine's time."""
    head = ["strategy", "of", "score", "recorded", *landscapes, "engine ms"]
    lines: list[list[str]] = []
    for row in rows:
        both = [
            f"{row[kind]['all']:.3f}" + (f" ± {row[f'{kind}_error']:.3f}" if f"{kind}_error" in row else "")
            for kind in KEYS
        ]
        each = [f"{row['score'][landscape]:.3f}" for landscape in landscapes]
        whose = "Chameleon" if row["ours"] else "Kernel Tuner"
        lines.append([row["strategy"], whose, *both, *each, f"{row['engine_ms']:.0f}"])
    return markdown(head, lines)


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recorded landscapes, of times.")],
    strategies: Annotated[
        str, typer.Option(help="Kernel Tuner's strategies and our searchers, separated by commas.")
    ] = ",".join(STRATEGIES),
    cutoff: Annotated[
        float, typer.Option(min=0.02, max=0.999, help="Where random search has to be at the end, from the median.")
    ] = 0.95,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy, seeded 0, 1, 2...")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/methodology"),
) -> None:
    """Score Kernel Tuner's strategies and ours by its authors' method."""
    names = chosen(strategies)
    landscapes = {landscape_name(file): prepared(str(file.resolve())) for file in files}
    limits = {name: limit_s(statistics(timed, KEYS["score"]), cutoff) for name, timed in landscapes.items()}
    requests = {
        (name, landscape_name(file), seed): tuple(
            Request(name, str(file.resolve()), seed, limits[landscape_name(file)])
        )
        for seed in range(seeds)
        for name in names
        for file in files
    }
    header = {"kind": "methodology", "cutoff": cutoff}
    store = RunStore(out / "runs.jsonl", header, lambda line: (line["strategy"], line["landscape"], line["seed"]))
    config = PoolConfig("scripts.peers.methodology:run_one", jobs, 3600.0, environment=ONE_THREAD)
    lines = store.fill(requests, config)
    rows = summarise(lines, landscapes, cutoff)
    arguments = {
        **{"files": files, "strategies": names, "cutoff": cutoff, "seeds": seeds, "jobs": jobs},
        "limits_s": {name: round(limit, 1) for name, limit in limits.items()},
        "autotuning_methodology": version("autotuning_methodology"),
    }
    took_s = sum(line["wall_s"] for line in lines)  # all runs, whether made now or before
    write_results(out, rows, table(rows, list(landscapes)), arguments, took_s)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
