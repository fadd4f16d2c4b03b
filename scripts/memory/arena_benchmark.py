#!/usr/bin/env python3
"""Measure how small the arenas of static allocation problems get, and how fast: greedy, local search, exact search.

    python -m scripts.memory.arena_benchmark A.1048576.csv B.1048576.csv --runs 5 --out results/serenity/arena

A problem is a CSV file and a capacity. The file has the columns `id`, `lower`, `upper` (half-open, in any unit of
time) and `size` (bytes), as the files of MiniMalloc. The capacity is what the buffers are to fit into: the number in
the file's name, or `--capacity`. Every run has another seed. The runs of all problems and methods take turns, so that
a slow time of the machine hits them all. With `--peer`, OR-tools' CP-SAT gets the same question and the same time. The
results are written to `results.json`, `table.md` and `manifest.json`.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.errors import UsageError
from chameleon.manifest import write_manifest
from chameleon.serenity.accounting import Buffer
from chameleon.serenity.arena.exact import load
from chameleon.serenity.arena.greedy import by_size
from chameleon.serenity.arena.plan import Arena, check_arena, plan_arena
from chameleon.serenity.arena.problem import Rectangles, rectangles

METHODS = ("greedy", "improved", "exact", "auto")
COLUMNS = ("id", "lower", "upper", "size")
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Problem:
    """A static allocation problem: buffers, and the capacity that they are to fit into."""

    name: str
    buffers: list[Buffer]
    capacity_bytes: int

    @property
    def rectangles(self) -> Rectangles:
        return rectangles(self.buffers, 1)


def read_problem(path: Path, capacity_bytes: int | None = None) -> Problem:
    """Read a problem from a CSV file.

    Raises:
        UsageError: if there is none, its columns or numbers are not as expected, or no capacity is known.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a CSV file with the columns {', '.join(COLUMNS)}")
    named = re.search(r"\.(\d+)\.csv$", path.name)
    if capacity_bytes is None and not named:
        raise UsageError(f"{path}: expected the capacity in the name, as in {path.stem}.1048576.csv, or --capacity")
    with path.open(newline="") as stream:
        rows = csv.DictReader(stream)
        if set(COLUMNS) - set(rows.fieldnames or ()):
            raise UsageError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(rows.fieldnames or ())}"
            )
        buffers = [_buffer(path, rows.line_num, row) for row in rows]
    return Problem(path.name, buffers, capacity_bytes if capacity_bytes is not None else int(named[1]))  # type: ignore[index]


def _buffer(path: Path, line: int, row: dict[str, str]) -> Buffer:
    try:
        return Buffer(row["id"], int(row["size"]), int(row["lower"]), int(row["upper"]))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: line {line}: expected integers in {', '.join(COLUMNS[1:])}, got {row}") from error


def solve(problem: Problem, method: str, seed: int, time_limit_s: float) -> dict[str, Any]:
    """Make one run: how large the arena is, whether it fits, how long it took."""
    if method == "cp-sat":
        size_bytes, seconds = cp_sat(problem, seed, time_limit_s)
    else:
        rng = np.random.default_rng(seed)
        arena = plan_arena(
            problem.buffers,
            alignment=1,
            method=method,
            time_limit_s=time_limit_s,
            capacity_bytes=problem.capacity_bytes,
            rng=rng,
        )
        size_bytes, seconds = arena.size_bytes, arena.seconds
    fits = size_bytes is not None and size_bytes <= problem.capacity_bytes
    line = {"problem": problem.name, "method": method, "seed": seed, "size_bytes": size_bytes, "fits": fits}
    return {**line, "seconds": round(seconds, 4)}


def cp_sat(problem: Problem, seed: int, time_limit_s: float) -> tuple[int | None, float]:
    """Ask OR-tools' CP-SAT the same, on one thread: size and seconds; the size is None if none is found in time.

    Raises:
        UsageError: if OR-tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise UsageError(f"--peer needs ortools (pip install ortools), whose import failed: {error}") from error
    start = time.perf_counter()
    r = problem.rectangles
    capacity = problem.capacity_bytes // r.unit_bytes
    model = cp_model.CpModel()
    lows = [model.new_int_var(0, capacity - size, f"low{i}") for i, size in enumerate(r.size.tolist())]
    memory = [
        model.new_fixed_size_interval_var(low, size, "") for low, size in zip(lows, r.size.tolist(), strict=True)
    ]
    spans = zip(r.start.tolist(), r.stop.tolist(), strict=True)
    model.add_no_overlap_2d([model.new_fixed_size_interval_var(a, b - a, "") for a, b in spans], memory)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, time.perf_counter() - start
    offsets = np.array([solver.value(low) for low in lows], np.int64)
    size_bytes = r.height(offsets) * r.unit_bytes
    names = [b.name for b in problem.buffers if b.size_bytes]
    places = dict.fromkeys((b.name for b in problem.buffers), 0)
    places |= dict(zip(names, (offsets * r.unit_bytes).tolist(), strict=True))
    seconds = time.perf_counter() - start
    check_arena(problem.buffers, Arena(places, size_bytes, 0, 0, "cp-sat", seconds))
    return size_bytes, seconds


def summarise(problem: Problem, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A problem's facts and, by method, the sizes and times of its runs."""
    r = problem.rectangles
    facts = {"problem": problem.name, "buffers": len(problem.buffers), "capacity_bytes": problem.capacity_bytes}
    facts |= {"bound_bytes": r.bound * r.unit_bytes, "by_size_bytes": r.height(by_size(r)) * r.unit_bytes}
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if (run["problem"], run["method"]) == (problem.name, method)]
        sizes, times = [run["size_bytes"] for run in own if run["size_bytes"]], [run["seconds"] for run in own]
        facts[method] = {
            "size_bytes": statistics.median_low(sizes) if sizes else None,
            "fits": sum(run["fits"] for run in own),
            "runs": len(own),
            "median_s": statistics.median(times),
            "worst_s": max(times),
        }
    return facts


def table(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """Make a table in Markdown.

    It has sizes as multiples of the capacity. For the exact methods it also has in how many runs the arena fits, and
    how long a run takes.
    """
    placed, searched = (
        [m for m in ("greedy", "improved") if m in methods],
        [m for m in methods if m not in METHODS[:2]],
    )
    heads = ["problem", "buffers", "capacity", "bound", "by size", *placed]
    heads += [f"{m}: {what}" for m in searched for what in ("size", "fits", "median s (worst)")]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        capacity = row["capacity_bytes"]
        sizes = [row["bound_bytes"], row["by_size_bytes"], *(row[m]["size_bytes"] for m in placed)]
        cells = [row["problem"], str(row["buffers"]), f"{capacity:,}", *(f"{size / capacity:.3f}" for size in sizes)]
        for one in (row[m] for m in searched):
            cells += [f"{one['size_bytes'] / capacity:.3f}" if one["size_bytes"] else "none"]
            cells += [f"{one['fits']} of {one['runs']}", f"{one['median_s']:.2f} ({one['worst_s']:.2f})"]
        lines.append("| " + " | ".join(cells) + " |")
    text = (
        "Sizes are multiples of the capacity, medians over runs with different seeds. "
        "`by size`: first fit, the largest first."
    )
    return "\n".join(lines) + f"\n\n{text}\n"


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(metavar="CSV...", help="Problems.")],
    capacity: Annotated[
        int | None, typer.Option(min=1, help="Capacity in bytes. Default: the number in the file's name.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of every method on every problem, seeded 0, 1, 2...")] = 5,
    time_limit: Annotated[float, typer.Option(help="Time limit of a run, in seconds.")] = 10.0,
    peer: Annotated[bool, typer.Option(help="Ask CP-SAT (ortools) the same question.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/serenity/arena"),
) -> None:
    """Place the buffers of static allocation problems with every method, and keep sizes and times."""
    started = time.perf_counter()
    problems, methods = [read_problem(path, capacity) for path in files], [*METHODS, *(["cp-sat"] if peer else [])]
    load()
    found = []
    for seed in range(runs):
        for problem in problems:
            found += [solve(problem, method, seed, time_limit) for method in methods]
        print(f"run {seed + 1} of {runs}: done after {time.perf_counter() - started:.0f} s", flush=True)
    rows = [summarise(problem, found) for problem in problems]
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps({"results": rows, "runs": found}, indent=1) + "\n")
    text = table(rows, methods)
    (out / "table.md").write_text(text)
    arguments = {
        "files": [path.name for path in files],
        "capacity": capacity,
        "runs": runs,
        "time_limit_s": time_limit,
        "peer": peer,
    }
    write_manifest(out / "manifest.json", {**arguments, "took_s": round(time.perf_counter() - started, 1)})
    print(text)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
