"""Small folders of runs, made with the real writer of records: two kernels, failures, a confirmation."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from chameleon.jobs.ledger import Confirmation
from chameleon.jobs.records import Records
from chameleon.manifest import manifest
from chameleon.search import KnobSpace, Status, Trial
from chameleon.search.space import option, split

TARGET = '{"kind":"llvm","mcpu":"znver4","num-cores":2}'
SPACE = KnobSpace([split("tile", 12, 2), option("unroll", [0, 16])])
BROKEN = "build_error: no such register\nin line 3"

TRIALS = [
    ("k1", Trial((0, 0), Status.OK, 8e-4, timings={"build": 0.5, "run": 0.25})),
    ("k1", Trial((1, 0), Status.BUILD_ERROR, None, BROKEN, {"build": 0.5})),
    ("k2", Trial((2, 1), Status.OK, 1e-4, timings={"build": 0.5, "run": 0.25})),
    ("k1", Trial((2, 1), Status.OK, 2e-4, timings={"build": 0.5, "run": 0.25})),
    ("k1", Trial((3, 1), Status.OK, 1e-4, timings={"build": 0.5, "run": 0.25})),
    ("k1", Trial((4, 1), Status.BUILD_ERROR, None, "build_error: another message", {"build": 0.5})),
    ("k2", Trial((0, 0), Status.TIMEOUT, None, "timeout: after 10 s", {"build": 0.5, "run": 10.0})),
]
"""In the order of measuring; one every two seconds, of which the searcher took a quarter."""


def make_run(
    folder: Path, *, model: str = "net", name: str = "conv", message: str = BROKEN, ended: bool = True
) -> Path:
    """A run of a network with two kernels: `k1` with weight 2, and `k2`.

    Args:
        name: of the first kernel.
        message: of the first failure.
        ended: whether it was finished, and its network timed; otherwise it was killed after the trials.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {"k1": name, "k2": "dense"}
    with Records(folder / "trials.jsonl", TARGET) as records:
        fill(records, names, model, message)
        if ended:
            again = Confirmation({(3, 1): (1.5e-4, 1.6e-4, 1.7e-4), (2, 1): (2e-4, 2e-4, 2e-4)})
            records.confirm("k1", again, model=model, elapsed_s=16.0)
            records.finish(model, elapsed_s=16.5)
    tasks = [{"key": key, "name": names[key], "weight": w, "flop": 1e6} for key, w in (("k1", 2), ("k2", 1))]
    run = {"model": model, "target": TARGET, "config": {"searcher": "chameleon", "seed": 0}, "finished": ended}
    (folder / "run.json").write_text(json.dumps({**run, "tasks": tasks}))
    made_with = {**_made_with(), "arguments": {"model": model}}
    (folder / "manifest.json").write_text(json.dumps(made_with))
    if ended:
        report = {"latency_ms": {"untuned": 2.0, "tuned": 0.5}, "finish_s": 3.0, "warnings": ["the machine was busy"]}
        (folder / "report.json").write_text(json.dumps({**report, "comparison": {"summary": "outputs agree"}}))
    return folder


@functools.cache
def _made_with() -> dict[str, Any]:
    """Asking git takes longer than all the rest."""
    return manifest({})


def fill(records: Records, names: dict[str, str], model: str, message: str = BROKEN) -> None:
    """Write the task lines and all trials."""
    for key, name in names.items():
        records.add_task(key, name, SPACE)
    for number, (key, trial) in enumerate(TRIALS, start=1):
        if trial.message == BROKEN:
            trial = Trial(trial.config, trial.status, None, message, trial.timings)
        records.append(key, trial, model=model, elapsed_s=2.0 * number, search_s=0.5)
