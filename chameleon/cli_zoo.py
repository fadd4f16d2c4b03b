"""The command `chameleon zoo`: tunes a list of models, or follows such a run from another terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from chameleon.cli_print import zoo_table
from chameleon.errors import ChameleonError, UsageError
from chameleon.live import Progress
from chameleon.store.place import Place
from chameleon.wording import time_text

PAGE = "report.html"
LOOK_S = 2.0
"""Seconds between two looks at a zoo that is followed."""
LOAD = 0.05
"""At most this share of its time is spent on reading: the machine may be measuring."""


def run_zoo(file: Path, told: Progress, ray: str | None) -> None:
    """Tune the zoo of a file, print its table and write its page.

    Args:
        ray: the address of a Ray cluster that measures for all entries without a tracker; None: this machine does.

    Raises:
        UsageError: if the file is no zoo.
        ChameleonError: if a model failed.
    """
    from chameleon.jobs.config import read_yaml
    from chameleon.page.facts import facts_of
    from chameleon.page.html import render

    with told.say.stage("importing TVM"):
        from chameleon.jobs.zoo import read_zoo, tune_zoo

    zoo = read_zoo(read_yaml(file), file.parent, ray)
    results = tune_zoo(zoo, told.watch, told.say, told.ended)
    (zoo.out / PAGE).write_text(render(facts_of(zoo.out, zoo.store), zoo.out))
    if told.console:
        told.console.print(zoo_table(results))
    told.say(f"the page about all of them is {zoo.out / PAGE}")
    if failed := [r.entry.spec.model for r in results if r.report is None]:
        raise ChameleonError(f"{len(failed)} of {len(results)} models failed: {', '.join(failed)}")


def watch_zoo(place: Path, told: Progress) -> None:
    """Show a zoo, again and again while a process tunes it; nothing is written and no lock is taken.

    Args:
        place: the zoo's file or its folder; only the file names a store.

    Raises:
        UsageError: if there is no zoo.
    """
    from chameleon.jobs.zoo_state import STATE, is_tuned
    from chameleon.page.folders import RunReader

    folder, store = _folder_of(place)
    if not (folder / STATE).is_file():
        raise UsageError(f"no zoo has begun in {folder}; start it with `chameleon zoo FILE`")
    reader, show = RunReader(store), _Show(told)
    with show:
        while True:
            going_on, start_s = is_tuned(folder), time.monotonic()  # asked first: then nothing is missed at the end
            show([_row(run) for run in reader.find(folder)])
            if not going_on:
                return
            time.sleep(max(LOOK_S, (time.monotonic() - start_s) / LOAD))


def _folder_of(place: Path) -> tuple[Path, Place | None]:
    """The folder of a zoo, and the store of its records if its file is given and names one."""
    from chameleon.jobs.config import read_yaml
    from chameleon.jobs.zoo_state import folder_of, store_of

    if place.is_dir():
        return place, None
    content = read_yaml(place)
    return folder_of(content), store_of(content)


def _row(run: Any) -> dict[str, Any]:
    """What is shown of a run (`chameleon.page.folders.Run`)."""
    tasks = run.records.tasks.values() if run.records else ()
    latency_ms = run.report.get("latency_ms") or {}
    return {
        "model": run.model,
        "target": str(run.known.get("target") or "this machine"),
        "folder": run.name,
        "state": run.state,
        "trials": sum(owner == run.model for task in tasks for owner in task.owners.values()),
        "tuning_s": run.records.elapsed_s.get(run.model, 0.0) if run.records else 0.0,
        "latency_ms": {name: latency_ms.get(name) for name in ("untuned", "tuned")},
        "problem": run.problem,
    }


class _Show:
    """Shows rows: a table that changes in its place, a line for each row that changed, or a JSON event."""

    def __init__(self, told: Progress) -> None:
        self._told = told
        console = told.console
        self._live = Live(console=console, auto_refresh=False) if console and console.is_terminal else None
        self._before: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> _Show:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, rows: Sequence[dict[str, Any]]) -> None:
        if self._live:
            self._live.update(_table(rows), refresh=True)
            return
        changed = [row for row in rows if self._before.get(row["folder"]) != row]
        self._before = {row["folder"]: row for row in rows}
        if self._told.console is None:
            if changed:
                self._told.event("zoo", runs=list(rows))
        else:
            for row in changed:
                _print_line(row, self._told.console)


def _cells(row: dict[str, Any]) -> list[str]:
    times = [time_text(v) if v else "-" for v in row["latency_ms"].values()]
    return [row["folder"], row["state"], str(row["trials"]), f"{row['tuning_s']:.0f}", *times, row["problem"]]


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("run", "", "trials", "tuning s", "untuned", "tuned", "note")
    for row in rows:
        table.add_row(*_cells(row), style="bold" if row["state"] == "running" else "")
    return table


def _print_line(row: dict[str, Any], console: Console) -> None:
    name, state, trials, seconds, untuned, tuned, problem = _cells(row)
    end = "".join([f", untuned {untuned}, tuned {tuned}" if tuned != "-" else "", f": {problem}" if problem else ""])
    console.print(
        f"{name}: {state}, {trials} trials in {seconds} s{end}", markup=False, highlight=False, soft_wrap=True
    )
