"""Measure what the engine itself costs: one round of ask and tell on a space of more than 10^9 points, on one thread.

    python -m scripts.tuning.engine_cost --searcher chameleon --batch 64 --rounds 10 --json cost.json

A round asks until `--batch` configurations are there (a searcher may hand out smaller batches), then tells them all.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from threadpoolctl import threadpool_limits

from chameleon.cli import guarded
from chameleon.errors import unknown
from chameleon.search import SEARCHERS, Digits, KnobSpace, Searcher, Status, Trial, make_searcher, option, split

app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


@dataclass(frozen=True)
class Cost:
    """The cost of the rounds of one search."""

    searcher: str
    space_size: float
    batch: int
    rounds: int
    median_s: float
    worst_s: float
    median_cpu_s: float
    s_per_trial: float


def convolution_space() -> KnobSpace:
    """The knobs of a convolution schedule for CPUs: three 4-way splits, three 2-way splits, three options."""
    four = [split(name, extent, 4) for name, extent in (("channels", 256), ("rows", 56), ("columns", 56))]
    two = [split("input_channels", 128, 2), split("kernel_rows", 3, 2), split("kernel_columns", 3, 2)]
    return KnobSpace(
        [
            *four,
            *two,
            option("unroll", [0, 16, 64, 512]),
            option("parallel", [1, 2, 4, 8, 16, 32]),
            option("layout", ["NCHW", "NHWC"]),
        ]
    )


def seconds(space: KnobSpace, configs: Digits, weights: np.ndarray) -> np.ndarray:
    """A smooth made-up run time, so that there is something to learn."""
    features = np.nan_to_num(space.features(configs))
    return 1e-3 * np.exp(np.abs(features @ weights))


def now() -> np.ndarray:
    """Wall clock and processor time, in seconds; on a busy machine only the latter tells."""
    return np.array([time.perf_counter(), time.process_time()])


def one_round(searcher: Searcher, batch: int, weights: np.ndarray) -> np.ndarray:
    """Seconds (wall, processor) spent in the engine for one round; measuring is not counted."""
    start = now()
    asked = [searcher.ask(batch)]
    while (missing := batch - sum(map(len, asked))) > 0 and len(asked[-1]):
        asked.append(searcher.ask(missing))
    spent = now() - start
    configs = np.vstack(asked)
    times = seconds(searcher.space, configs, weights)
    trials = [Trial(tuple(c), Status.OK, float(s)) for c, s in zip(configs.tolist(), times, strict=True)]
    start = now()
    searcher.tell(trials)
    return spent + now() - start


def measure(name: str, batch: int, rounds: int, seed: int) -> Cost:
    """Time `rounds` rounds, after two that load the libraries and give the model something to learn."""
    space = convolution_space()
    weights = np.random.default_rng(seed).normal(size=space.features(space.rows(0, 1)).shape[1]) / 10
    searcher = make_searcher(name, space, np.random.default_rng(seed))
    with threadpool_limits(limits=1):
        for _ in range(2):
            one_round(searcher, batch, weights)
        wall, cpu = np.array([one_round(searcher, batch, weights) for _ in range(rounds)]).T.tolist()
    median = statistics.median(wall)
    return Cost(name, float(space.size), batch, rounds, median, max(wall), statistics.median(cpu), median / batch)


@app.command()
def main(
    searcher: Annotated[str, typer.Option(help="A name of `chameleon searchers`.")] = "chameleon",
    batch: Annotated[int, typer.Option(min=1, help="Configurations of a round.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of one search.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the search and the made-up times.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
) -> None:
    """Measure one search and print what it cost."""
    if searcher not in SEARCHERS:
        raise unknown("searcher", searcher, SEARCHERS)
    cost = measure(searcher, batch, rounds, seed)
    print(
        f"{cost.searcher}: ask({cost.batch}) + tell({cost.batch}) on {cost.space_size:.2g} points: "
        f"median {cost.median_s:.3f} s ({cost.median_cpu_s:.3f} s of processor time), worst {cost.worst_s:.3f} s "
        f"over {cost.rounds} rounds"
    )
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(cost), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
