#!/usr/bin/env python3
"""Take all small models through Chameleon's steps, each in a process of its own, and tabulate how each step ended.

    python -m scripts.models.table [FILES...] --out results/models --trials 4

Writes `results.json`, `table.md` and `manifest.json`. Exit code 1 if a step is wrong, ends with a traceback, or ends
otherwise than `tests/data/models/cases.yaml` expects it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from chameleon.cli import guarded
from chameleon.errors import ChameleonError
from chameleon.manifest import write_manifest
from scripts.models.cases import FOLDER, STEPS, Case, read_cases
from scripts.models.steps import Outcome

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300.0
REASON, LINE = 79, 119
"""The most letters of a reason, and of a line of the table."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").splitlines()[0])
Rows = Mapping[str, Mapping[str, Outcome]]


@app.command()
def main(
    files: Annotated[list[Path] | None, typer.Argument(help="Models; all that `cases.yaml` knows by default.")] = None,
    trials: Annotated[int, typer.Option(help="Measurements of each model.", min=1)] = 4,
    jobs: Annotated[int, typer.Option(help="Models at once.", min=1)] = 2,
    timeout_s: Annotated[float, typer.Option(help="For each model.")] = TIMEOUT_S,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/models"),
) -> None:
    """Make the table."""
    cases = read_cases()
    paths = files or [FOLDER / name for name in cases]
    rows = run_all(paths, trials, jobs, timeout_s)
    unexpected = differences(rows, cases)
    out.mkdir(parents=True, exist_ok=True)
    content = {name: {step: asdict(o) for step, o in row.items()} for name, row in rows.items()}
    (out / "results.json").write_text(json.dumps({"models": content, "unexpected": unexpected}, indent=1) + "\n")
    (out / "table.md").write_text(table(rows, cases))
    write_manifest(out / "manifest.json", {"models": [p.name for p in paths], "trials": trials})
    print(table(rows, cases))
    for text in unexpected:
        print(text)
    if unexpected:
        raise ChameleonError(f"{len(unexpected)} of {len(rows) * len(STEPS)} steps ended otherwise than expected")


def run_all(paths: Sequence[Path], trials: int, jobs: int, timeout_s: float) -> dict[str, dict[str, Outcome]]:
    """The outcomes by model and step, a few models at once."""

    def run(path: Path) -> dict[str, Outcome]:
        row = run_model(path, trials, timeout_s)
        print(f"{path.name}: {', '.join(f'{step} {o.status}' for step, o in row.items())}", flush=True)
        return row

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip((p.name for p in paths), pool.map(run, paths), strict=True))


def run_model(path: Path, trials: int, timeout_s: float) -> dict[str, Outcome]:
    """The steps of a model in a process of its own; steps that it did not come to are tracebacks."""
    command = [sys.executable, "-m", "scripts.models.steps", str(path.resolve()), "--trials", str(trials), "--json"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, noise = process.communicate(timeout=timeout_s)
            last = [line for line in noise.splitlines() if line.strip()][-1:]
            why = f"ended with {process.returncode}: {' '.join(last)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers as well
            said, _ = process.communicate()
            why = f"not done after {timeout_s:g} s"
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    row = {f["step"]: Outcome(f["status"], f["reason"], f["seconds"]) for f in found}
    return {step: row.get(step, Outcome("traceback", why, 0.0)) for step in STEPS}


def differences(rows: Rows, cases: Mapping[str, Case]) -> list[str]:
    """Every step that ended otherwise than expected, in words."""
    found = []
    for name, row in rows.items():
        expect = cases[name].expect if name in cases else {}
        found += [f"{name} {step}: {text}" for step, o in row.items() if (text := o.unlike(expect.get(step)))]
    return found


def table(rows: Rows, cases: Mapping[str, Case]) -> str:
    """Models and steps, then the reasons where a step is not right, then how many of each there are."""
    head = ("model", *(step.replace("_", " ") for step in STEPS))
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line([name, *(row[step].status for step in STEPS)]) for name, row in rows.items()]
    reasons = ["", "| model | steps | reason |", "| --- | --- | --- |"]
    for name, row in rows.items():
        by_reason: dict[str, list[str]] = {}
        for step, o in row.items():
            if o.status != "right":
                by_reason.setdefault(o.reason.removeprefix(f"{name}: ").replace("|", "/"), []).append(step)
        for reason, steps in by_reason.items():
            which = "all" if len(steps) == len(STEPS) else ", ".join(steps)
            room = min(REASON, LINE - len(f"| {name} | {which} |  |"))
            reasons.append(f"| {name} | {which} | {reason[: max(room, 12)]} |")
    statuses = [o.status for row in rows.values() for o in row.values()]
    counts = ", ".join(f"{status} {statuses.count(status)}" for status in ("right", "refused", "wrong", "traceback"))
    other = f"{len(differences(rows, cases))} otherwise than expected"
    return "\n".join([*lines, *reasons, "", f"{len(rows)} models, {len(statuses)} steps: {counts}; {other}"]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
