#!/usr/bin/env python3
"""Tune one small kernel with the real loop, records, builder and runner; `scripts.faults.inject` breaks it.

    python -m scripts.faults.job FOLDER --trials 8

Every trial is told as a JSON line once it is on disk.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chameleon.cli import guarded
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.measurer import Measurer, Measures
from chameleon.jobs.ray_nodes import ray_measurer
from chameleon.jobs.records import Records
from chameleon.jobs.session import open_session, share_best, tune
from chameleon.kernels.lower import Task, task_key
from chameleon.live import Progress, ProgressKind
from chameleon.measure import WarmBuilder, WarmRunner, rpc_runner
from chameleon.store.place import place_of
from chameleon.target import detect_target
from scripts.faults.hooks import SIZE, matmul

TIMEOUT_S = 10.0
"""Of one build and of one run."""
MEMORY_BYTES = 1536 << 20
PATIENCE_S = 8.0
"""How long a job waits for a database that is gone; users wait longer."""
KEY, MODEL = "faults", "matmul"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").splitlines()[0])


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the records.")],
    trials: Annotated[int, typer.Option(help="Trials, those on record included.", min=1)] = 8,
    tracker: Annotated[str | None, typer.Option(help="host:port of a tracker to measure at.")] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to measure on.")] = None,
    store: Annotated[str, typer.Option(help="URL of a database for the records. Default: a file in FOLDER.")] = "",
) -> None:
    """Tune until the trials are made."""
    mod, target = matmul(), detect_target()
    task = Task(MODEL, mod, 1, 2.0 * SIZE**3, task_key(mod))
    config = TuneConfig(searcher="random", trials=trials, time_budget_s=None, batch=2, first_batch=2)
    console = Console(stderr=True)
    place, kept = folder / "trials.jsonl", None
    if store:
        from chameleon.store import sql

        sql.PATIENCE_S = PATIENCE_S
        place, kept = place_of(store), folder / "kept.jsonl"
    with (
        Progress(ProgressKind.JSON, console, console) as told,
        Records(place, str(target), kept=kept) as records,
        ExitStack() as stack,
    ):
        session = open_session([task], target, records, config, MODEL)
        measurer: Measures
        if ray is not None:
            measurer = stack.enter_context(ray_measurer(ray, target, told.say))
        elif tracker is not None:
            builder = stack.enter_context(WarmBuilder(export="tar", n_workers=1, timeout_s=TIMEOUT_S))
            options = {"session_timeout_s": int(TIMEOUT_S), "wait_timeout_s": TIMEOUT_S}
            runner = stack.enter_context(rpc_runner(tracker, KEY, **options))
            measurer = Measurer(target, builder, runner, runner.room)
        else:
            hook = "scripts.faults.hooks:build"
            limits = {"timeout_s": TIMEOUT_S, "memory_limit_bytes": MEMORY_BYTES}
            builder = stack.enter_context(WarmBuilder(f_build=hook, n_workers=2, **limits))
            measurer = Measurer(target, builder, stack.enter_context(WarmRunner(**limits)))
        measurer.check()
        with session.running():
            while sum(step(session, measurer, records, MODEL, told.watch) for step in (tune, share_best)):
                pass
        records.finish(MODEL, elapsed_s=session.elapsed_s)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
