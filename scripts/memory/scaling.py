#!/usr/bin/env python3
"""Measure how the memory-aware scheduler scales: Watts-Strogatz wirings with more and more nodes.

    python -m scripts.memory.scaling --out results/serenity/scaling

Each run has a process of its own. There are four searches:

- `lazy` is what `schedule` does.
- `steps` is the same without moves of several steps.
- `paper` is the dynamic program of the paper, with adaptive soft budgeting and divide and conquer.
- `plain` is the dynamic program alone.

The results are written to `runs.jsonl` (a line for each run; a second call goes on where the first was stopped),
`results.json`, `table.md` and `manifest.json`.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.errors import UsageError
from chameleon.manifest import write_manifest
from chameleon.serenity.graph import Graph
from chameleon.serenity.order.schedule import ScheduleOptions, schedule
from chameleon.serenity.wiring import watts_strogatz
from scripts.common.run_store import RunStore

OURS = ScheduleOptions(engine="numba")
PLAIN = {"soft_budget": False, "divide": False, "safe_moves": False, "bounds": False}
SEARCHES = {
    "lazy": OURS,
    "steps": replace(OURS, lazy=False),
    "paper": replace(OURS, budget_search="paper", safe_moves=False, bounds=False),
    "plain": replace(OURS, **PLAIN),
}
KEY = ("search", "sizes", "n", "seed")
app = typer.Typer(add_completion=False)


def wiring(n: int, sizes: str, seed: int) -> Graph:
    """Make a wiring WS(n, 4, 0.75) with tensors of one byte (`unit`), or of 64 to 2048 bytes in steps of 64."""
    rng = np.random.default_rng([n, seed])
    return watts_strogatz(n, rng=rng, sizes=None if sizes == "unit" else (rng.integers(1, 33, n) * 64).tolist())


def run(search: str, sizes: str, n: int, seed: int, time_limit_s: float, max_states: int) -> dict[str, Any]:
    """Find one schedule in this process.

    Before that, another search is started and cut short, so that the compiled kernels are loaded. The memory of the
    search is what the process grew by.
    """
    graph = wiring(n, sizes, seed)
    options = replace(SEARCHES[search], time_limit_s=time_limit_s, max_states=max_states)
    schedule(graph, replace(options, time_limit_s=1e-3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = schedule(graph, options)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        **dict(zip(KEY, (search, sizes, n, seed), strict=True)),
        "peak_bytes": found.peak_bytes,
        "lower_bound_bytes": found.lower_bound_bytes,
        "proven": found.proven,
        "gap": found.gap,
        "states": found.states,
        "seconds": found.seconds,
        "grown_mib": grown / 1024,
        "rss_mib": (before + grown) / 1024,
    }


def in_own_process(*arguments: Any) -> dict[str, Any]:
    """`run` in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def summarise(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each search, kind of sizes and number of nodes: the medians and the worst over the seeds."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[k] for k in KEY[:3]), []).append(line)
    return [
        {
            **dict(zip(KEY[:3], key, strict=True)),
            "seeds": len(some),
            "proven": sum(line["proven"] for line in some),
            "worst_gap": max(line["gap"] for line in some),
            **{f"median_{k}": statistics.median(line[k] for line in some) for k in ("states", "seconds", "grown_mib")},
            **{f"worst_{k}": max(line[k] for line in some) for k in ("states", "seconds", "grown_mib")},
        }
        for key, some in groups.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    text = [
        "| search | sizes | n | proven | worst gap | states (median, worst) | seconds (median, worst) "
        "| MiB grown (worst) |"
    ]
    text.append("|---|---|---|---|---|---|---|---|")
    for r in rows:
        text.append(
            f"| {r['search']} | {r['sizes']} | {r['n']} | {r['proven']}/{r['seeds']} | {r['worst_gap']:.1%} "
            f"| {r['median_states']:,.0f}, {r['worst_states']:,} "
            f"| {r['median_seconds']:.3f}, {r['worst_seconds']:.3f} "
            f"| {r['worst_grown_mib']:.0f} |"
        )
    return "\n".join(text) + "\n"


def numbers(text: str, option: str) -> list[int]:
    """Read positive numbers separated by commas.

    Raises:
        UsageError: if they are not.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{option}: expected positive numbers separated by commas, got {text!r}")
    return [int(part) for part in parts]


def names(text: str, option: str, allowed: tuple[str, ...]) -> list[str]:
    """Read names separated by commas.

    Raises:
        UsageError: if one is not allowed.
    """
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= set(allowed):
        raise UsageError(f"{option}: expected some of {', '.join(allowed)}, got {text!r}")
    return parts


@app.command()
def main(
    nodes: Annotated[
        str, typer.Option(help="Numbers of nodes, separated by commas.")
    ] = "16,24,32,40,48,56,64,72,80,88,96",
    sizes: Annotated[str, typer.Option(help="unit, varied or both, separated by commas.")] = "unit,varied",
    searches: Annotated[
        str, typer.Option(help=f"Some of {', '.join(SEARCHES)}, separated by commas.")
    ] = "lazy,steps,paper,plain",
    seeds: Annotated[int, typer.Option(help="Wirings of each kind, seeded 0, 1, 2...")] = 5,
    time_limit_s: Annotated[float, typer.Option(help="Time limit of each run.")] = 30.0,
    max_states: Annotated[
        int, typer.Option(help="Limit on the states of each run; a state takes about 100 bytes.")
    ] = 20_000_000,
    slow_at: Annotated[int, typer.Option(help="Searches other than lazy run only up to so many nodes.")] = 64,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/serenity/scaling"),
) -> None:
    """Schedule random wirings of growing size, and keep states, seconds, memory and what was proven."""
    kinds, chosen = names(sizes, "--sizes", ("unit", "varied")), names(searches, "--searches", tuple(SEARCHES))
    header = {"time_limit_s": time_limit_s, "max_states": max_states}
    counts = numbers(nodes, "--nodes")
    store = RunStore(out / "runs.jsonl", header, key=lambda line: tuple(line[k] for k in KEY))
    keys = [
        (search, kind, n, seed)
        for search in chosen
        for kind in kinds
        for n in counts
        for seed in range(seeds)
        if search == "lazy" or n <= slow_at
    ]
    for key in keys:
        if key not in store.lines:
            line = in_own_process(*key, time_limit_s, max_states)
            store.add(line)
            print(f"{' '.join(map(str, key))}: {line['states']:,} states, {line['seconds']:.3f} s", flush=True)
    rows = summarise([store.lines[key] for key in keys])
    (out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    (out / "table.md").write_text(table(rows))
    print(table(rows))
    arguments = {
        "nodes": counts,
        "sizes": kinds,
        "searches": chosen,
        "seeds": seeds,
        "slow_at": slow_at,
        **header,
        "out": out,
    }
    write_manifest(out / "manifest.json", arguments)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
