#!/usr/bin/env python3
"""Inject faults into tuning runs, and count what they break: every number of the table should be zero.

    python -m scripts.faults.inject --injections 1000

A job tunes a small kernel with the real loop, records, builder, runner, tracker and cluster. At a random moment a
fault is injected. When it is over, the job is started again until its trials are made. The table has for each fault

    injections
    lost       trials that the job has told of, and that are not on record at the end
    hangs      silences longer than the time-out, and 5 s
    left       processes that live 5 s after their job, and temporary files after the last one
    lies       failed trials on record that were the fault's, not the candidate's
    stuck      jobs that did not end well after the fault was over

What cannot be injected on a machine is left out, with the reason. A second call goes on.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.manifest import write_manifest
from scripts.common.options import names_of
from scripts.common.run_store import RunStore
from scripts.common.tables import markdown
from scripts.faults.case import Case, Found
from scripts.faults.faults import FAULTS, Fault
from scripts.faults.places import NotHere

COLUMNS = ("injections", "lost", "hangs", "left", "lies", "stuck")
PER_INJECTION = 4
"""Trials of a job for each fault that it goes through."""
RESTARTS = 3
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").splitlines()[0])


@app.command()
def main(
    injections: Annotated[int, typer.Option(help="Injections of all faults together.", min=1)] = 1000,
    only: Annotated[str, typer.Option(help="Faults, separated by commas. Default: all.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the moments.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/faults"),
) -> None:
    """Inject, and write the table."""
    names = names_of(only, "fault", FAULTS) if only else list(FAULTS)
    store = RunStore(out / "jobs.jsonl", {"seed": seed}, lambda line: (line["fault"], line["job"]))
    missing: dict[str, str] = {}
    for name in names:
        try:
            _fill(store, name, seed, -(-injections // len(names)))
        except NotHere as error:
            missing[name] = str(error)
            print(f"{name}: cannot be injected here: {error}", flush=True)
    write_manifest(out / "manifest.json", {"injections": injections, "only": only, "seed": seed})
    text = table(store, names, missing)
    (out / "table.md").write_text(text)
    print(text)


def _fill(store: RunStore, name: str, seed: int, injections: int) -> None:
    """Run jobs of one fault until it was injected often enough."""
    made = 0
    for job in itertools.count():
        if made >= injections:
            return
        if (name, job) not in store.lines:
            found = Found()
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), job])
            go_through(FAULTS[name], min(FAULTS[name].per_job, injections - made), rng, found)
            store.add({"fault": name, "job": job, **asdict(found)})
            counts = ", ".join(f"{key} {value}" for key, value in found.counts.items())
            print(f"{name} {job}: {counts}", *found.notes, sep="\n  ", flush=True)
        made += max(1, store.lines[name, job]["injections"])


def go_through(fault: Fault, times: int, rng: np.random.Generator, found: Found) -> None:
    """One job, the faults in it, and what comes after."""
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        case = Case(Path(root), PER_INJECTION * (times + 1), fault.bound_s)
        with fault.place(case) as arguments:
            case.arguments = arguments
            job = case.start()
            for _ in range(times):
                if not job.wait_for_trials(int(rng.integers(1, PER_INJECTION + 1))):
                    break
                fault.inject(case, job, rng)
                found.injections += 1
            code = job.wait(found)
            fault.heal(case)
            for _ in range(RESTARTS):
                if code == 0 and len(case.on_record()) >= case.trials:
                    break
                case.check_left(found, temporary=False)
                job = case.start()
                job.wait_for_trials(1)
                code = job.wait(found)
            else:
                found.stuck += 1
                found.notes.append(f"stuck: exit code {code}: {job.said[-500:]}")
            case.check(found)


def table(store: RunStore, names: list[str], missing: dict[str, str]) -> str:
    """A row for each fault, and one for all."""
    rows, total = [], [0] * len(COLUMNS)
    for name in names:
        lines = [line for line in store.lines.values() if line["fault"] == name]
        numbers = [sum(line[column] for line in lines) for column in COLUMNS]
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        rows.append([name, *map(str, numbers)] if lines else [name, f"not here: {missing.get(name)}", *["-"] * 5])
    return markdown(["fault", *COLUMNS], [*rows, ["all", *map(str, total)]])


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
