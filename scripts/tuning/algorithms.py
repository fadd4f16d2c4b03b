#!/usr/bin/env python3
"""Measure what each algorithm is worth for a convolution: the best schedule of each after the same number of trials.

    python -m scripts.tuning.algorithms resnet18 --trials 48

For each convolution of a network (one for each main block, whatever is fused behind it) every way to compute it is
searched by itself with the same number of trials: the operator in MetaSchedule's own design spaces, in the space whose
tiles follow from the registers, and, where it is 3x3 with stride 1, Winograd's algorithm with tiles of 2x2 and 4x4
outputs. At the end the best schedules are timed again in turns. GFLOP/s are effective: the operations of the
direct convolution, divided by the time. The error is the largest one against double precision, divided by the largest
output.

The results are written to `runs.jsonl` (a second call runs what is missing), `results.json`, `table.md` and
`manifest.json`.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tvm
import typer

from chameleon.cli import guarded
from chameleon.jobs.measurer import Measurer
from chameleon.kernels.alternatives import WINOGRAD, Alternative, alternatives_of
from chameleon.kernels.lower import Task, extract_tasks, lower
from chameleon.kernels.winograd import transformed_weights
from chameleon.measure import WarmBuilder, WarmRunner
from chameleon.models.load import load_model
from chameleon.search import make_searcher
from chameleon.target import detect_target
from scripts.common.run_store import RunStore, write_results
from scripts.common.tables import markdown
from tuners.anchors import anchor_key
from tuners.proposals import Config, Proposals
from tuners.trace_space import TraceSpace

DIRECT = "direct"
HEAD = ("convolution", "algorithm", "trials", "space", "us", "GFLOP/s", "error")
app = typer.Typer(add_completion=False)


def convolutions(model: str, target: Any) -> Iterator[tuple[Task, list[Alternative]]]:
    """The tasks of a network that have alternatives, one for each main block."""
    seen = set()
    for task in extract_tasks(lower(load_model(model), target), target):
        others = alternatives_of(task.mod, target)
        if others and (key := anchor_key(task.mod, TraceSpace(task.mod, target))) not in seen:
            seen.add(key)
            yield task, others


def search(traces: TraceSpace, measurer: Measurer, trials: int, seed: int) -> tuple[Config, int]:
    """The best configuration of a space after so many trials, and how many there were."""
    searcher = make_searcher("chameleon", traces.space, np.random.default_rng(seed))
    proposals, best, made = Proposals(traces, searcher), (np.inf, ()), 0
    while made < trials and (found := proposals.next(min(16, trials - made))):
        for trial in measurer(found, task="", in_time=lambda: True):
            proposals.tell([trial])
            best, made = min(best, (trial.seconds or np.inf, trial.config)), made + 1
    return best[1], made


def shape_of(mod: Any) -> str:
    """`56x56x64 -> 64, 3x3 / 2`: height, width and channels of the input, channels of the output, kernel, stride."""
    shapes = [[int(d) for d in p.shape] for p in mod["main"].params]
    (_, height, width, channels), (rows, columns, *_), (_, out, _, k) = shapes[0], shapes[1], shapes[-1]
    return f"{height}x{width}x{channels} -> {k}, {rows}x{columns} / {stride_of(height, out)}"


def stride_of(inputs: int, outputs: int) -> int:
    """The stride of a convolution whose padding keeps the size, but for the stride."""
    return -(-inputs // outputs)


def error_of(traces: TraceSpace, config: Config, algorithm: str, task: Task, target: Any) -> float:
    """The largest error of the kernel with a schedule, against double precision, divided by the largest output."""
    rng = np.random.default_rng(0)
    shapes = [tuple(int(d) for d in p.shape) for p in task.mod["main"].params]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    expected = reference(arrays)
    if algorithm in WINOGRAD:
        arrays[1] = transformed_weights(arrays[1], WINOGRAD[algorithm])
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    tvm.compile(traces.schedule(config).mod, target)["main"](*tensors)
    return float(np.abs(tensors[-1].numpy() - expected).max() / np.abs(expected).max())


def reference(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A convolution whose padding keeps the size, with bias, maybe a sum, and ReLU, in double precision."""
    x, weight, bias, *others = (a.astype(np.float64) for a in arrays[:-1])
    stride = stride_of(x.shape[1], arrays[-1].shape[1])
    ends = [
        (out - 1) * stride + k - n for out, k, n in zip(arrays[-1].shape[1:3], weight.shape, x.shape[1:], strict=False)
    ]
    pads = [(max(0, n + 1) // 2, max(0, n) // 2) for n in ends]
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    y = np.einsum("nhwcij,ijck->nhwk", windows, weight, optimize=True) + bias
    return np.maximum(y + sum(others), 0)


@app.command()
def main(
    model: Annotated[str, typer.Argument(help="A network of `chameleon models`, with ReLU behind its convolutions.")],
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each algorithm.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the searches.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="How often the best schedules are timed again, in turns.")] = 9,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/algorithms"),
) -> None:
    """Compare the ways to compute the convolutions of a network."""
    started, target = time.perf_counter(), detect_target()
    options = {"model": model, "trials": trials, "seed": seed, "rounds": rounds, "target": str(target)}
    header = {"kind": "algorithms", **options}
    store = RunStore(out / model / "runs.jsonl", header, lambda line: (line["convolution"], line["algorithm"]))
    with WarmBuilder() as builder, WarmRunner() as runner:
        measurer = Measurer(target, builder, runner)
        for task, others in convolutions(model, target):
            if "relu" not in task.name or ((shape := shape_of(task.mod)), others[-1].name) in store.lines:
                continue
            for row in contest(task, others, measurer, target, trials, seed, rounds):
                store.add({"convolution": shape, **row})
    rows = list(store.lines.values())
    table = markdown(HEAD, map(line_of, rows))
    write_results(out / model, rows, table, options, time.perf_counter() - started)


def contest(
    task: Task, others: Sequence[Alternative], measurer: Measurer, target: Any, trials: int, seed: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each algorithm of one task."""
    forms = {DIRECT: TraceSpace(task.mod, target)}
    forms |= {a.name: TraceSpace(a.mod, target, space_generator=a.space) for a in others}
    best, made = {}, {}
    for name, traces in forms.items():
        best[name], made[name] = search(traces, measurer, trials, seed)
    built = {n: measurer.build([(c, forms[n].schedule(c))])[0] for n, c in best.items() if c}
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(rounds):
        for name, candidate in built.items():
            seconds[name].append(measurer.time(candidate).seconds or np.inf)
    for candidate in built.values():
        candidate.discard()
    return [
        {
            "algorithm": name,
            "trials": made[name],
            "space": int(forms[name].space.size),
            "us": round(1e6 * statistics.median(times), 1),
            "quartiles_us": [round(1e6 * float(q), 1) for q in np.percentile(times, [25, 75])],
            "gflops": round(task.flop / statistics.median(times) / 1e9, 1),
            "error": error_of(forms[name], best[name], name, task, target),
        }
        for name, times in seconds.items()
    ]


def line_of(row: Mapping[str, Any]) -> list[str]:
    low, high = row["quartiles_us"]
    time_us = f"{row['us']:.0f} ({low:.0f} to {high:.0f})"
    return [
        row["convolution"],
        row["algorithm"],
        str(row["trials"]),
        f"{row['space']:.3g}",
        time_us,
        f"{row['gflops']:.0f}",
        f"{row['error']:.1e}",
    ]


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
