#!/usr/bin/env python3
"""Tune networks and time them beside other programs: what `chameleon tune` and `bench` do, as a table.

    python -m scripts.tuning.networks --networks resnet18,mobilenetv2_w1 --time-budget 10m --ways all,exact

Each network is tuned from nothing, with no records of others. Then all contenders run in turns in one process. The
ways are `all`, every algorithm, and `exact`, only those that compute the same sums (`--exact`: no Winograd). A network
is a name of `chameleon models`, a file, or `bert-small`: an encoder of four layers with random weights and 128 words.
`resnet18-int8` and `resnet18-half` are networks of the zoo in 8 bits and in half precision.

Each network that is done is appended to `runs.jsonl`. A second call runs what is missing. `results.json`, `table.md`
and `manifest.json` are written at the end.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chameleon.cli import guarded
from chameleon.jobs.bench import PEERS, bench_tuned
from chameleon.jobs.config import tune_config
from chameleon.jobs.run_folder import JobSpec
from chameleon.jobs.tune import tune_model
from chameleon.target import detect_target, vector_features
from scripts.common.options import names_of
from scripts.common.run_store import RunStore, write_results
from scripts.common.tables import markdown
from scripts.models.lower_precision import WRITERS
from scripts.models.make import save_program
from scripts.models.modules import SENTENCE, SMALL_BERT, Encoder, Module, sentence

WORDS = 128
MADE = {"bert-small": Module(lambda: Encoder(SMALL_BERT), lambda: sentence(1, WORDS), onnx=SENTENCE)}
NETWORKS = (
    "resnet18",
    "resnet50",
    "vgg16",
    "mobilenetv2_w1",
    "squeezenet_v1_1",
    *MADE,
    "resnet18-int8",
    "resnet18-half",
)
VECTORS = {"avx2", "avx512f", "avx512vnni", "avxvnni", "sve", "dotprod"}
WAYS: dict[str, dict[str, Any]] = {"all": {}, "exact": {"exact": True}}
app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


def measure(network: str, way: str, seed: int, time_budget: str, against: Sequence[str]) -> dict[str, Any]:
    """Tune a network in one way and time it.

    Returns:
        A line for the file of runs: milliseconds by contender, and what tuning took.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = JobSpec(_model(network, Path(folder)), out=Path(folder) / "runs" / "run")
        flags = {"time_budget": time_budget, "seed": seed, "learn": False, **WAYS[way]}
        report, _ = tune_model(spec, tune_config({}, flags), lambda _: None, print)
        timed = bench_tuned(spec, print, against)
    return {
        "network": network,
        "way": way,
        "seed": seed,
        "trials": report.trials,
        "algorithms": sorted({t.algorithm for t in report.tasks if t.algorithm}),
        **timed.to_json(),
    }


def _model(network: str, folder: Path) -> str:
    """What `chameleon tune` takes for a network; it is written if it is none of the zoo."""
    if network in MADE:
        return str(save_program(MADE[network], folder / f"{network}.pt2"))
    name, _, precision = network.rpartition("-")
    return str(WRITERS[precision](name, folder)) if precision in WRITERS else network


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds, medians with quartiles, and how many times the tuned network's the best other program takes."""
    peers = [name for name in PEERS if any(name in row["latency_ms"] for row in rows)]
    lines: list[list[str]] = []
    for row in rows:
        found = row["latency_ms"]
        others = [found[name]["median"] for name in peers if name in found]
        ratio = f"{min(others) / found['tuned']['median']:.2f}" if others else "-"
        cells = [_cell(found.get(name)) for name in ("default", "tuned", *peers)]
        agrees = "yes" if row["agrees"] else "NO"
        lines.append([row["network"], row["way"], str(row["seed"]), str(row["trials"]), *cells, ratio, agrees])
    names = [PEERS[name] for name in peers]
    head = ["network", "way", "seed", "trials", "default schedules", "tuned", *names, "best other / tuned", "equal"]
    return markdown(head, lines)


def _cell(latency: dict[str, float] | None) -> str:
    if latency is None:
        return "-"
    return f"{latency['median']:.2f} ({latency['low']:.2f} to {latency['high']:.2f})"


@app.command()
def main(
    networks: Annotated[str, typer.Option(help="Names and files, separated by commas.")] = ",".join(NETWORKS),
    ways: Annotated[str, typer.Option(help=f"Some of {', '.join(WAYS)}.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each network; their seeds are 0, 1, ...")] = 1,
    time_budget: Annotated[str, typer.Option(help="Time for tuning of each network.")] = "10m",
    against: Annotated[str, typer.Option(help=f"Other programs: some of {', '.join(PEERS)}.")] = ",".join(PEERS),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/networks"),
) -> None:
    """Tune networks and time them beside other programs."""
    names = networks.split(",")
    chosen, peers = names_of(ways, "way", WAYS), names_of(against, "program", PEERS)
    vectors = sorted(vector_features(detect_target()) & VECTORS)
    header = {"time_budget": time_budget, "against": peers, "vectors": vectors}
    store = RunStore(out / "runs.jsonl", header, lambda line: (line["network"], line["way"], line["seed"]))
    start_s, wanted = time.monotonic(), [(n, w, s) for s in range(seeds) for n in names for w in chosen]
    for unit in wanted:
        if unit not in store.lines:
            store.add(measure(*unit, time_budget, peers))
            print(table(list(store.lines.values())), flush=True)
    rows = [store.lines[unit] for unit in wanted]
    arguments = {**header, "networks": names, "ways": chosen, "seeds": seeds}
    write_results(out, rows, table(rows), arguments, time.monotonic() - start_s)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
