#!/usr/bin/env python3
"""Take all small models through Chameleon's steps, each in a process of its own, and tabulate how each step ended.

    python -m scripts.models.table [FILES...] --out results/models --trials 4

Writes `results.json`, `table.md` and `manifest.json`. A second call runs the models that are missing; models that are
named run again. `results.json` has the commit of each model's run. Exit code 1 if a step is wrong, ends with a
traceback, or ends otherwise than `tests/data/models/cases.yaml` expects it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from chameleon.cli import guarded
from chameleon.errors import ChameleonError
from chameleon.manifest import manifest, write_manifest
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
    results = Results(out / "results.json", list(cases))
    paths = files or [FOLDER / name for name in cases if name not in results.rows]
    run_all(paths, trials, jobs, timeout_s, results.add)
    rows = results.rows
    unexpected = differences(rows, cases)
    (out / "table.md").write_text(table(rows, cases))
    write_manifest(out / "manifest.json", {"models": [*rows], "trials": trials})
    print(table(rows, cases))
    for text in unexpected:
        print(text)
    if unexpected:
        raise ChameleonError(f"{len(unexpected)} of {len(rows) * len(STEPS)} steps ended otherwise than expected")


class Results:
    """The outcomes by model and step, kept in a file from the first model on.

    Args:
        path: of the file; what it holds is kept.
        order: the names of the models as they are listed; others follow.
    """

    def __init__(self, path: Path, order: Sequence[str]) -> None:
        self._path, self._order, self._lock = path, order, threading.Lock()
        self._commit = manifest({})["commit"]
        kept = json.loads(path.read_text()) if path.exists() else {"models": {}, "commits": {}}
        self._commits: dict[str, str] = kept["commits"]
        self.rows = {m: {step: Outcome(**o) for step, o in row.items()} for m, row in kept["models"].items()}

    def add(self, name: str, row: dict[str, Outcome]) -> None:
        """Take the outcomes of a model, in the place of those it had before."""
        with self._lock:
            places = {n: i for i, n in enumerate(self._order)}
            rows = {**self.rows, name: row}
            self.rows = {n: rows[n] for n in sorted(rows, key=lambda n: places.get(n, len(places)))}
            self._commits[name] = self._commit
            models = {n: {step: asdict(o) for step, o in r.items()} for n, r in self.rows.items()}
            content = {"models": models, "commits": {n: self._commits[n] for n in self.rows}}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(content, indent=1) + "\n")


def run_all(
    paths: Sequence[Path], trials: int, jobs: int, timeout_s: float, add: Callable[[str, dict[str, Outcome]], None]
) -> None:
    """Run the models, a few at once, and add the outcomes of each."""

    def run(path: Path) -> None:
        row = run_model(path, trials, timeout_s)
        print(f"{path.name}: {', '.join(f'{step} {o.status}' for step, o in row.items())}", flush=True)
        add(path.name, row)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, paths))  # raises what a run raised


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
