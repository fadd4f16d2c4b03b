"""The commands `chameleon records ...`: look into records of any tool, carry them over, and keep them in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chameleon.errors import ChameleonError, UsageError
from chameleon.files import check_writable, slug
from chameleon.live import Notes
from chameleon.wording import time_text

if TYPE_CHECKING:
    from chameleon.exchange.book import Book
    from chameleon.jobs.ledger import Config
    from chameleon.jobs.records import Records
    from chameleon.store.place import Place

records_app = typer.Typer(
    help="Look into records of tuning, carry them to other tools and back, and keep them in order.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()
_say = Notes(Console(stderr=True))

SOURCES = "A run's folder, a file of records, a store's URL, an AutoTVM log, a MetaSchedule database, or a landscape."
SourceArg = Annotated[str, typer.Argument(metavar="PATH", help=SOURCES)]
EnvironmentOpt = Annotated[
    str | None, typer.Option("--environment", help="Only what was measured in this one: the beginning of its name.")
]
TaskOpt = Annotated[str | None, typer.Option("--task", help="Only this task: its name, or the beginning of its key.")]
TargetOpt = Annotated[
    str | None, typer.Option("--target", help="The target, where PATH has records of several or names none.")
]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write the result to this file as JSON.")]
OutputOpt = Annotated[
    str,
    typer.Option("-o", "--output", help="The file to write, which must not exist; or the URL of a store to add to."),
]


class Format(str, Enum):
    """What `export` writes."""

    METASCHEDULE = "metaschedule"
    AUTOTVM = "autotvm"
    T4 = "t4"


@records_app.command("list")
def list_command(
    path: SourceArg, target: TargetOpt = None, environment: EnvironmentOpt = None, json_out: JsonOpt = None
) -> None:
    """List the tasks on record: trials, failures, best time."""
    check_writable(json_out)
    book = _book(path, target)
    found = _in_environments(book, environment)
    rows = [_task_row(records, key) for records in found for key in records.tasks]
    records = found[0]
    console.print(f"target {records.target}", highlight=False, soft_wrap=True, markup=False)
    table = Table("task")
    table.add_column("key", no_wrap=True)
    for name in ("trials", "failed", "best", "knobs"):
        table.add_column(name, justify="right")
    table.add_column("models")
    if len(found) > 1:
        table.add_column("environment")
    for row in rows:
        best = time_text(row["best_s"] * 1e3) if row["best_s"] else "-"
        numbers = (str(row["trials"]), str(row["failed"]), best, str(len(row["knobs"])))
        where = [escape(row["environment"] or "-")] if len(found) > 1 else []
        table.add_row(escape(row["task"]), escape(row["key"][:8]), *numbers, escape(", ".join(row["models"])), *where)
    console.print(table)
    _print_environments(records)
    _write(json_out, {"target": records.target, "environments": records.environments, "tasks": rows})


@records_app.command("show")
def show_command(
    path: SourceArg,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Its name, or the beginning of its key.")],
    limit: Annotated[int, typer.Option(help="Show so many trials, the fastest first.", min=1)] = 20,
    target: TargetOpt = None,
    environment: EnvironmentOpt = None,
    json_out: JsonOpt = None,
) -> None:
    """Show the knobs and the trials of one task."""
    check_writable(json_out)
    records = _in_environments(_book(path, target), environment)[-1]
    (key,) = _chosen(records, task)
    row = _task_row(records, key)
    console.print(f"{row['task']} ({key})", highlight=False, soft_wrap=True, markup=False)
    knobs = Table("knob", "kind", "values")
    for knob in records.tasks[key].knobs.get("knobs", ()):
        values = json.dumps(knob["values"])
        knobs.add_row(escape(knob["name"]), knob["kind"], escape(values if len(values) < 90 else f"{values[:88]}..."))
    console.print(knobs)
    trials = sorted(records.tasks[key].trials, key=lambda t: t.cost)
    table = Table("configuration", "status", "time", "message")
    for trial in trials[:limit]:
        said = trial.message.partition("\n")[0][:100]
        seconds = time_text(trial.seconds * 1e3) if trial.seconds else "-"
        table.add_row(" ".join(map(str, trial.config)), trial.status.value, seconds, escape(said))
    console.print(table)
    if len(trials) > limit:
        console.print(f"{len(trials) - limit} more (--limit)")
    _write(json_out, {**row, "all": [trial.to_json() for trial in trials]})


@records_app.command("best")
def best_command(
    path: SourceArg,
    task: TaskOpt = None,
    target: TargetOpt = None,
    environment: EnvironmentOpt = None,
    json_out: JsonOpt = None,
) -> None:
    """Show the best schedule of each task: its time, and the value of each knob."""
    check_writable(json_out)
    found = _in_environments(_book(path, target), environment)
    rows = [_task_row(records, key) for records in found for key in _chosen(records, task)]
    records = found[0]
    table = Table("task", "best", "knobs", *(["environment"] if len(found) > 1 else []))
    for row in rows:
        values = ", ".join(f"{name}={json.dumps(value)}" for name, value in (row["best"] or {}).items())
        best = time_text(row["best_s"] * 1e3) if row["best_s"] else "-"
        where = [escape(row["environment"] or "-")] if len(found) > 1 else []
        table.add_row(escape(row["task"]), best, escape(values), *where)
    console.print(table)
    _print_environments(records)
    _write(json_out, {"target": records.target, "environments": records.environments, "tasks": rows})


@records_app.command("export")
def export_command(
    path: SourceArg,
    to: Annotated[Format, typer.Option(help="What to write.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="A new folder (metaschedule; t4: a file for each task) or a new file (autotvm)."
        ),
    ],
    task: TaskOpt = None,
    best: Annotated[
        int | None, typer.Option(help="metaschedule: so many schedules of each task. Default: all.", min=1)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="metaschedule: the network's file, where the run is not of one of the zoo.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="metaschedule: the folder of the run, where PATH is a store.")
    ] = None,
    target: TargetOpt = None,
    environment: EnvironmentOpt = None,
) -> None:
    """Write records in the format of another tool."""
    if output.exists():
        raise UsageError(f"{output} exists; give another -o, or remove it first")
    for name, given in (("--best", best), ("--model", model), ("--run", run)):
        if given is not None and to is not Format.METASCHEDULE:
            raise UsageError(f"{name} is for --to metaschedule")
    book = _book(path, target)
    records = _in_environments(book, environment)[-1]
    keys = _chosen(records, task)
    if to is Format.METASCHEDULE:
        if run is None and not isinstance(book.place, Path):
            raise UsageError("a database of MetaSchedule needs the kernels of a network; give the run's folder: --run")
        run = run or Path(path)
        console.print(_to_metaschedule(run, records, keys, output, model, best), highlight=False, soft_wrap=True)
    elif to is Format.AUTOTVM:
        from chameleon.exchange.autotvm import log_of_lines
        from chameleon.exchange.book import write_new

        lines = log_of_lines(records, book.lines, keys)
        write_new(output, lines)
        console.print(f"wrote {len(lines)} records to {output}", highlight=False, soft_wrap=True)
    else:
        console.print(_to_t4(records, keys, output, chosen=task is not None), highlight=False, soft_wrap=True)


@records_app.command("import")
def import_command(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="AutoTVM logs, MetaSchedule databases, landscapes.")
    ],
    output: OutputOpt,
    target: TargetOpt = None,
) -> None:
    """Write what other tools recorded as records of ours; several PATHs must be of one target."""
    _put_together(paths, output, target)


@records_app.command("merge")
def merge_command(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files of records, folders of runs, URLs of stores.")
    ],
    output: OutputOpt,
    target: TargetOpt = None,
) -> None:
    """Put records of one target together; what occurs twice is kept once."""
    _put_together(paths, output, target)


@records_app.command("prune")
def prune_command(
    path: SourceArg,
    output: OutputOpt,
    keep: Annotated[int, typer.Option(help="Keep so many trials of each task, the fastest.", min=1)] = 16,
    target: TargetOpt = None,
) -> None:
    """Write a new file with the best trials of each task only."""
    book = _book(path, target)
    gone = book.prune(keep)
    place, _ = _write_out(book, output)
    console.print(f"wrote {book.n_trials} trials to {place}, {gone} left out", highlight=False, soft_wrap=True)


@records_app.command("check")
def check_command(path: SourceArg, target: TargetOpt = None, json_out: JsonOpt = None) -> None:
    """Look for torn lines, unknown fields, records of another environment, and say what to do."""
    from dataclasses import asdict

    from chameleon.exchange.check import ERROR, check_records
    from chameleon.exchange.sources import DATABASE, in_folder
    from chameleon.store.place import place_of

    check_writable(json_out)
    place = place_of(path)
    if isinstance(place, Path) and (place / DATABASE).exists():
        raise UsageError(f"{place} is a database of MetaSchedule; `chameleon records import` makes records of it")
    place = in_folder(place) if isinstance(place, Path) and place.is_dir() else place
    findings = check_records(place, target)
    _write(json_out, {"findings": [asdict(f) for f in findings]})
    if not findings:
        console.print(f"{place}: nothing to find fault with", highlight=False, soft_wrap=True)
        return
    table = Table("", "line", "lines", "what", "what to do")
    for f in findings:
        table.add_row(f.level, str(f.line or "-"), str(f.times), escape(f.what), escape(f.advice))
    console.print(table)
    if broken := sum(f.level == ERROR for f in findings):
        raise ChameleonError(f"{place} cannot be used as it is: {broken} errors; see the table")


def _book(path: str, target: str | None) -> Book:
    from chameleon.exchange.book import Book
    from chameleon.exchange.sources import lines_of
    from chameleon.store.place import place_of

    place = place_of(path)
    return Book(place, lines_of(place, target))


def _put_together(paths: Sequence[str], output: str, target: str | None) -> None:
    book, *others = [_book(path, target) for path in paths]
    for other in others:
        book.merge(other)
    tasks = len(book.records().tasks)
    place, new = _write_out(book, output)
    there = "" if new == book.n_trials else f", {book.n_trials - new} were there"
    console.print(f"wrote {new} trials of {tasks} tasks to {place}{there}", highlight=False, soft_wrap=True)


def _write_out(book: Book, output: str) -> tuple[Place, int]:
    """Write a new file, or into a store; returns the place, and how many trials were written."""
    from chameleon.exchange.book import write_into, write_new
    from chameleon.store.place import Url, place_of

    place = place_of(output)
    if isinstance(place, Url):
        return place, write_into(place, book)
    write_new(place, book.lines)
    return place, book.n_trials


def _in_environments(book: Book, environment: str | None) -> list[Records]:
    """The records as they are in each environment with a trial, or in the one that was asked for.

    Raises:
        UsageError: if there is no such environment, or the beginning of a name fits several.
    """
    records = book.records()
    known = sorted(records.measured_in, key=lambda name: name == records.environment)  # the last trial's at the end
    if environment is not None:
        known = [name for name in known if name.startswith(environment)]
        if len(known) != 1:
            names = ", ".join(records.measured_in)
            raise UsageError(
                f"{len(known) or 'no'} environments begin with {environment!r}; there are {names or 'none'}"
            )
    return [records.within(name) for name in known] or [records]


def _print_environments(records: Records) -> None:
    from chameleon.jobs.environment import environment_text

    if len(records.measured_in) > 1:
        for name, line in records.environments.items():
            console.print(f"{name}: {environment_text(line)}", highlight=False, soft_wrap=True, markup=False)


def _chosen(records: Records, task: str | None) -> list[str]:
    """The keys of the tasks that were asked for.

    Raises:
        UsageError: if there is none, or the beginning of a key fits several.
    """
    if task is None:
        return list(records.tasks)
    named = [key for key, known in records.tasks.items() if known.name == task]
    found = named or [key for key in records.tasks if key.startswith(task)]
    if len(found) == 1:
        return found
    names = ", ".join(f"{known.name} ({key})" for key, known in list(records.tasks.items())[:10])
    raise UsageError(f"{len(found) or 'no'} tasks are called {task!r} in {records.place}; there are {names or 'none'}")


def _task_row(records: Records, key: str) -> dict[str, Any]:
    """What is known of a task, as plain data."""
    from chameleon.exchange.book import measured

    task, results = records.tasks[key], measured(records, key)
    return {
        "task": task.name,
        "key": key,
        "space": task.space,
        "knobs": [knob["name"] for knob in task.knobs.get("knobs", ())],
        "trials": len(results.trials),
        "failed": results.failures.total(),
        "environment": records.environment or None,
        "models": list(dict.fromkeys(task.owners.values())),
        "best_s": results.now_s,
        "best": _values(records, key, results.best.config) if results.best else None,
        "config": list(results.best.config) if results.best else None,
    }


def _values(records: Records, key: str, config: Config) -> dict[str, Any]:
    """The values of the knobs that act in a configuration; empty where the records do not tell."""
    task = records.tasks[key]
    if not {"knobs", "sketches"} <= task.knobs.keys():
        return {}
    acting = task.knobs["sketches"][config[0] if len(task.knobs["sketches"]) > 1 else 0]
    knobs = task.knobs["knobs"]
    return {knobs[i]["name"]: knobs[i]["values"][config[i]] for i in sorted({0, *acting})}


def _to_metaschedule(
    run: Path, records: Records, keys: Sequence[str], output: Path, model: str | None, best: int | None
) -> str:
    try:
        with _say.stage("importing TVM"):
            from chameleon.exchange.metaschedule import export_run
    except ModuleNotFoundError as error:
        raise ChameleonError(
            f"a database of MetaSchedule needs {error.name} (pip install 'chameleon-tvm[tvm]')"
        ) from error
    return f"wrote {export_run(run, records, keys, output, model, best, _say)} schedules to {output}"


def _to_t4(records: Records, keys: Sequence[str], folder: Path, *, chosen: bool) -> str:
    from chameleon.exchange.book import write_new
    from chameleon.exchange.landscapes import t4_of
    from chameleon.store.lines import RecordsError

    written = 0
    for key in keys:
        try:
            document = t4_of(records, key)
        except RecordsError as error:
            if chosen:
                raise
            _say(str(error))
            continue
        write_new(folder / f"{slug(records.tasks[key].name)[:80]}-{slug(key)[:8]}.t4.json", [document])
        written += 1
    if not written:
        raise ChameleonError(f"no task of {records.place} makes a landscape")
    return f"wrote {written} landscapes to {folder}; `chameleon replay` reads them"


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")
