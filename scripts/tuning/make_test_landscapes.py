#!/usr/bin/env python3
"""Make the small recorded landscapes in tests/data: one analytic kernel model, each landscape in all three formats.

    python -m scripts.tuning.make_test_landscapes tests/data

The model is a tiled kernel on an imagined GPU. Its time is the larger of arithmetic and memory traffic, stretched by
idle lanes, by poor occupancy and by noise. Some configurations do not work. Tiles that do not fit the thread limit are
not listed (a constraint known beforehand). Too much shared memory fails to build and too many registers fail to run:
only a trial can tell this.
"""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chameleon.cli import guarded

MAX_THREADS = 1024
SHARED_BYTES = 48 * 1024
REGISTER_FILE = 48 * 1024
app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


@dataclass(frozen=True)
class KernelModel:
    """The imagined kernel and machine."""

    name: str
    seed: int
    block_x: tuple[int, ...]
    block_y: tuple[int, ...]
    flops_ms: float = 0.4  # time of the arithmetic at full speed
    traffic_ms: float = 3.0  # time of the memory traffic without any reuse
    noise: float = 0.02  # relative standard deviation of a measurement

    @property
    def knobs(self) -> dict[str, list[Any]]:
        """Values as a person wrote them down: numbers not always in order, one knob of words, one that is fixed."""
        return {
            "block_x": list(self.block_x),
            "block_y": list(self.block_y),
            "tile": [1, 2, 4, 8, 3, 6],
            "cache": ["none", "shared", "texture"],
            "unroll": [0, 1],
            "filter": [15],
        }

    def configurations(self) -> Iterator[dict[str, Any]]:
        """All configurations that respect the thread limit."""
        for values in itertools.product(*self.knobs.values()):
            config = dict(zip(self.knobs, values, strict=True))
            if 32 <= config["block_x"] * config["block_y"] <= MAX_THREADS:
                yield config

    def failure(self, config: Mapping[str, Any]) -> str:
        """Kernel Tuner's word for how a configuration fails, empty if it does not."""
        area = config["block_x"] * config["block_y"] * config["tile"]
        if config["cache"] == "shared" and area * 4 * 4 > SHARED_BYTES:
            return "CompilationFailedConfig"
        registers = 24 + 12 * config["tile"] * (2 if config["unroll"] else 1)
        return "RuntimeFailedConfig" if registers * config["block_x"] * config["block_y"] > REGISTER_FILE else ""

    def time_ms(self, config: Mapping[str, Any], rng: np.random.Generator) -> float:
        """Make up one measurement."""
        threads = config["block_x"] * config["block_y"]
        reuse = (config["tile"] * min(config["block_x"], 4 * config["block_y"])) ** 0.5
        served = {"none": 1.0, "shared": 0.45, "texture": 0.7}[config["cache"]]
        memory = self.traffic_ms * served / reuse + 0.02 * config["tile"]
        arithmetic = self.flops_ms * (1.0 if config["unroll"] else 1.25)
        idle_lanes = -(-threads // 32) * 32 / threads
        occupancy = 1 + 0.3 * abs(np.log2(threads / 256)) ** 1.5 / 4
        return float(max(memory, arithmetic) * idle_lanes * occupancy * np.exp(rng.normal(0, self.noise)))


MODELS = (
    KernelModel("tiny", seed=1, block_x=(16, 32, 64), block_y=(1, 2, 4)),
    KernelModel("small", seed=2, block_x=(16, 32, 48, 64, 96, 128, 256), block_y=(1, 2, 4, 8, 16, 32)),
)


def kernel_tuner(model: KernelModel, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The records as a Kernel Tuner cache."""
    keys = list(model.knobs)
    return {
        "device_name": "imagined",
        "kernel_name": model.name,
        "problem_size": [4096, 4096],
        "tune_params_keys": keys,
        "tune_params": model.knobs,
        "objective": "time",
        "cache": {",".join(str(r[k]) for k in keys): r for r in records},
    }


def t4(model: KernelModel, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The records as T4 results."""
    verdicts = {"CompilationFailedConfig": "compile", "RuntimeFailedConfig": "runtime"}
    results = [
        {
            "configuration": {k: r[k] for k in model.knobs},
            "times": {},
            "invalidity": verdicts.get(r["time"], "correct"),
            "correctness": int(r["time"] not in verdicts),
            "measurements": [{"name": "time", "value": r["time"], "unit": ""}],
            "objectives": ["time"],
        }
        for r in records
    ]
    return {"schema_version": "1.0.0", "metadata": {"timeunit": "miliseconds"}, "results": results}


def lines(model: KernelModel, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records as our own JSON lines.

    They are written here by hand and not by the library, because the tests check the library with them.
    """
    values = {k: sorted(v) if isinstance(v[0], int) else v for k, v in model.knobs.items()}
    statuses = {"CompilationFailedConfig": "build_error", "RuntimeFailedConfig": "run_error"}
    knobs = [{"name": k, "kind": "option", "values": v} for k, v in values.items()]
    out: list[dict[str, Any]] = [{"chameleon": 1, "kind": "landscape", "name": model.name, "knobs": knobs}]
    for r in records:
        line: dict[str, Any] = {
            "config": [values[k].index(r[k]) for k in values],
            "status": statuses.get(r["time"], "ok"),
        }
        failed = isinstance(r["time"], str)
        out.append({**line, "message": r["time"]} if failed else {**line, "seconds": r["time"] / 1e3})
    return out


def write(path: Path, text: str) -> None:
    """Write a compressed file, with the same bytes every time."""
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{path}: {path.stat().st_size:,} bytes")


@app.command()
def main(folder: Annotated[Path, typer.Argument(help="Where the files go.")]) -> None:
    """Write all landscapes into the folder given."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        rng = np.random.default_rng(model.seed)
        records = []
        for config in model.configurations():
            time = model.failure(config) or round(model.time_ms(config, rng), 5)
            records.append({**config, "time": time})
        order = rng.permutation(len(records))  # files need not be sorted
        records = [records[i] for i in order]
        write(folder / f"{model.name}_cache.json.gz", json.dumps(kernel_tuner(model, records)))
        write(folder / f"{model.name}_t4.t4.json.gz", json.dumps(t4(model, records)))
        write(
            folder / f"{model.name}_lines.jsonl.gz", "".join(json.dumps(line) + "\n" for line in lines(model, records))
        )


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
