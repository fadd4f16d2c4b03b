#!/usr/bin/env python3
"""Make Ahn 2020's table of peak memory: the paper's figures, ours, stock TVM's and those of other runtimes.

    scripts/peers/setup.sh ENVS
    python -m scripts.memory.table --peer tflite=ENVS/tflite/bin/python --peer ort=ENVS/ort/bin/python ...

The cells are those of `chameleon.models.irregular`. Its docstring says what is known of them and what is inferred.
There are two tables:

- *The graph as the paper counts it*. It has one node for every published operator. Inputs are counted until their last
  reader. There are no workspaces.
- *What runs*: the compiled kernels. Our networks are planned (one arena) and measured (the allocations of a cold
  run). For stock TVM there are its own plan and the same measurement. Peers are other runtimes; `scripts/peers/` runs
  each of them in an environment of its own.

In the second table all figures count inputs, intermediate tensors, workspaces and outputs. Some runtimes (TVM, ONNX
Runtime) leave the inputs to the caller: there the bytes of the inputs are added.

ExecuTorch's plan may reuse the memory of an input after its last reader. Our networks may not when they run, since
the caller owns the input. So our plans are also given with the inputs in the arena (`reusing_inputs`), for comparison
only.

For a runtime that plans its memory, the table also has what it takes of the heap. That contains the runtime's own
structures too, so it is left out of the means.

The results are written to `results.json`, `table.md` and `manifest.json`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from chameleon.cli import guarded
from chameleon.errors import UsageError, unknown
from chameleon.jobs.memory import MemorySettings, ModelMemory, memory_of_model
from chameleon.manifest import write_manifest
from chameleon.models.irregular import CELLS, cell, cell_graph
from chameleon.serenity.order.schedule import ScheduleOptions
from chameleon.serenity.summary import summarise
from scripts.common.options import names_of

ROOT = Path(__file__).parents[2]
PEERS = {"tflite": "tflite", "executorch": "executorch_peer", "ort": "ort"}
PEER_TIMEOUT_S = 1800
app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


class Published(NamedTuple):
    """The paper's peaks of a cell in kB.

    They are quoted from memory. Their geometric means agree with those that the paper gives.
    """

    tflite: int
    ordered: int
    rewritten: int


PAPER: Mapping[str, Published] = {
    "darts-normal-cell": Published(1656, 903, 753),
    "swiftnet-hpd-a": Published(552, 251, 226),
    "swiftnet-hpd-b": Published(194, 82, 72),
    "swiftnet-hpd-c": Published(70, 33, 20),
    "randwire-cifar10-a": Published(645, 459, 459),
    "randwire-cifar10-b": Published(330, 260, 260),
    "randwire-cifar100-a": Published(605, 359, 359),
    "randwire-cifar100-b": Published(350, 280, 280),
    "randwire-cifar100-c": Published(160, 115, 115),
}


@app.command()
def main(
    cells: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(PAPER),
    peer: Annotated[
        list[str] | None, typer.Option(help=f"NAME=PYTHON, the Python of its environment. Names: {', '.join(PEERS)}.")
    ] = None,
    time_limit_s: Annotated[float, typer.Option(help="Time limit of the search for each order.")] = 60.0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/serenity/table"),
) -> None:
    """Make the table of peak memory."""
    names = names_of(cells, "cell", CELLS)
    peers = dict(_peer(text) for text in peer or [])
    rows = {name: row(name, time_limit_s) for name in names}
    for which, python in peers.items():
        for name, found in run_peer(which, python, names).items():
            rows[name]["peers"][which] = found
    summary = geomeans(rows)
    text = f"{graph_table(rows)}\n{compiled_table(rows, list(peers))}\n{summary_table(summary)}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps({"cells": rows, "geomeans": summary}, indent=1) + "\n")
    (out / "table.md").write_text(text)
    write_manifest(out / "manifest.json", {"cells": names, "peers": list(peers), "time_limit_s": time_limit_s})
    print(text)


def row(name: str, time_limit_s: float) -> dict[str, Any]:
    """Find all of our own figures of a cell."""
    made = cell(name)
    graph = summarise(cell_graph(made), ScheduleOptions(time_limit_s=time_limit_s))
    input_bytes = sum(4 * math.prod(shape) for shape in made.inputs.values())
    ordered = memory_of_model(name, MemorySettings(time_limit_s=time_limit_s, rewrite=False), print)
    rewritten = memory_of_model(name, MemorySettings(time_limit_s=time_limit_s), print)
    reusing = memory_of_model(name, MemorySettings(time_limit_s=time_limit_s, count_inputs=True), print).summary
    return {
        "paper_kb": PAPER[name]._asdict() if name in PAPER else None,
        "input_bytes": input_bytes,
        "graph": graph.to_json() | {"rewrites": list(graph.rewrites), "arena_bound_bytes": graph.arena.bound_bytes},
        "ordered": _compiled(ordered),
        "rewritten": _compiled(rewritten),
        "reusing_inputs": {"order": reusing.rows["best"].peak_bytes, "order and rewriting": reusing.arena.size_bytes},
        "stock": {"planned_bytes": ordered.stock_planned_bytes, "measured_bytes": ordered.stock_measured_bytes},
        "peers": {},
    }


def _compiled(memory: ModelMemory) -> dict[str, Any]:
    error = memory.difference
    return memory.summary.to_json() | {
        "arena_bound_bytes": memory.summary.arena.bound_bytes,
        "scratch_bytes": memory.scratch_bytes,
        "rewrites": list(memory.summary.rewrites),
        "last_proven": memory.summary.last.proven,
        "max_error": error.absolute if error else None,
    }


def run_peer(which: str, python: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run another runtime on the cells and return its figures by the name of the cell.

    Raises:
        UsageError: if its script ends without an answer.
    """
    command = [python, "-m", f"scripts.peers.{PEERS[which]}", *names]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, check=False)
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if not found:
        raise UsageError(
            f"{which}: scripts.peers.{PEERS[which]} gave no answer with {python}: {ran.stderr.strip()[-500:]}"
        )
    return {line["network"]: line for line in found}


def normalised(row: Mapping[str, Any], which: str) -> dict[str, int | None]:
    """A peer's planned and measured bytes, with the bytes of the inputs added if it does not count them."""
    found = row["peers"].get(which, {})
    more = 0 if "inputs" in found.get("includes", ()) else row["input_bytes"]
    return {key: found[key] + more if found.get(key) else None for key in ("planned_bytes", "measured_bytes")}


def geomeans(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many times less memory ours takes than each of the others.

    It is the geometric mean over the cells for which both have a figure.
    """
    ours = {
        "order": {name: r["ordered"]["measured_peak_bytes"] + r["input_bytes"] for name, r in rows.items()},
        "order and rewriting": {
            name: r["rewritten"]["measured_peak_bytes"] + r["input_bytes"] for name, r in rows.items()
        },
    }
    others: dict[str, dict[str, int | None]] = {
        "stock TVM, planned": {name: r["stock"]["planned_bytes"] + r["input_bytes"] for name, r in rows.items()},
        "stock TVM, measured": {name: r["stock"]["measured_bytes"] + r["input_bytes"] for name, r in rows.items()},
    }
    for which in dict.fromkeys(w for r in rows.values() for w in r["peers"]):
        for key in ("planned_bytes", "measured_bytes"):
            values = {name: normalised(r, which)[key] for name, r in rows.items()}
            planned = key == "measured_bytes" and any(
                r["peers"].get(which, {}).get("planned_bytes") for r in rows.values()
            )
            if any(values.values()) and not planned:
                others[f"{which}, {key.removesuffix('_bytes')}"] = values
    paper = {name: r["paper_kb"] for name, r in rows.items() if r["paper_kb"]}
    result: dict[str, dict[str, Any]] = {
        "the paper's TFLite (paper)": {
            "order": geomean(p["tflite"] / p["ordered"] for p in paper.values()),
            "order and rewriting": geomean(p["tflite"] / p["rewritten"] for p in paper.values()),
            "cells": len(paper),
        }
    }
    graph = [r["graph"]["peak_bytes"] for r in rows.values()]
    result["as-is order, the paper's counting"] = {
        "order": geomean(g["as_is"] / g["best"] for g in graph),
        "order and rewriting": geomean(g["as_is"] / g["rewritten"] for g in graph),
        "cells": len(graph),
    }
    for what, values in others.items():
        known = {name: value for name, value in values.items() if value}
        ratios = {key: geomean(value / mine[name] for name, value in known.items()) for key, mine in ours.items()}
        result[what] = {**ratios, "cells": len(known)}
        if what == "executorch, planned":
            reusing = {
                key: geomean(value / rows[name]["reusing_inputs"][key] for name, value in known.items())
                for key in ours
            }
            result[f"{what}; ours planned to reuse inputs as well"] = {**reusing, "cells": len(known)}
    return result


def geomean(values: Iterable[float]) -> float | None:
    """The geometric mean, None if there are no values."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def graph_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the paper's figures beside those of our graphs, which count as the paper does, in kB."""
    head = (
        "cell",
        "paper: TFLite",
        "DP",
        "+ rewriting",
        "ours: as is",
        "Kahn",
        "best",
        "+ rewriting",
        "arena",
        "proven",
    )
    lines = []
    for name, r in rows.items():
        paper = list((r["paper_kb"] or dict.fromkeys(Published._fields, "-")).values())
        peaks = [_kb(r["graph"]["peak_bytes"][key]) for key in ("as_is", "kahn", "best", "rewritten")]
        lines.append(
            [name, *map(str, paper), *peaks, _kb(r["graph"]["arena_bytes"]), "yes" if r["graph"]["proven"] else "no"]
        )
    return _markdown(head, lines)


def compiled_table(rows: Mapping[str, Mapping[str, Any]], peers: Sequence[str]) -> str:
    """The table of what the compiled networks take, inputs included, in kB: planned / measured."""
    head = (
        "cell",
        "order: arena / measured",
        "+ rewriting: arena / measured",
        "plans reusing inputs: order / + rewriting",
        "stock TVM: planned / measured",
        *peers,
        "max error",
    )
    lines = []
    for name, r in rows.items():
        more = r["input_bytes"]
        ours = [(r[key]["arena_bytes"], r[key]["measured_peak_bytes"]) for key in ("ordered", "rewritten")]
        pairs = [*ours, (r["stock"]["planned_bytes"], r["stock"]["measured_bytes"])]
        texts = [" / ".join(_kb(value + more if value else None) for value in pair) for pair in pairs]
        texts.insert(2, " / ".join(map(_kb, r["reusing_inputs"].values())))
        texts += [" / ".join(map(_kb, normalised(r, which).values())) for which in peers]
        lines.append([name, *texts, f"{r['rewritten']['max_error']:.1e}"])
    return _markdown(head, lines)


def summary_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the geometric means."""
    head = ("times less than", "order", "order and rewriting", "cells")
    lines = [
        [what, *(f"{v:.2f}" for v in (s["order"], s["order and rewriting"])), str(s["cells"])]
        for what, s in summary.items()
    ]
    return _markdown(head, lines)


def _kb(value: int | None) -> str:
    return f"{value / 1000:.1f}" if value else "-"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def _peer(text: str) -> tuple[str, str]:
    name, found, python = text.partition("=")
    if name not in PEERS:
        raise unknown("peer", name, PEERS)
    if not found or not Path(python).is_file():
        raise UsageError(f"--peer {text}: expected NAME=PYTHON, the interpreter of the environment of {name}")
    return name, python


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
