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
    from chameleon.jobs.records import Config, Records

records_app = typer.Typer(
    help="Look into records of tuning, carry them to other tools and back, and keep them in order.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()
_say = Notes(Console(stderr=True))

SourceArg = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="A run's folder, a file of records, an AutoTVM log, a folder of a MetaSchedule database, or a landscape.",
    ),
]
TaskOpt = Annotated[str | None, typer.Option("--task", help="Only this task: its name, or the beginning of its key.")]
TargetOpt = Annotated[
    str | None, typer.Option("--target", help="The target, where PATH has records of several or names none.")
]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write the result to this file as JSON.")]
NewFileOpt = Annotated[Path, typer.Option("-o", "--output", help="The file to write; it must not exist.")]


class Format(str, Enum):
    """What `export` writes."""

    METASCHEDULE = "metaschedule"
    AUTOTVM = "autotvm"
    T4 = "t4"


@records_app.command("list")
def list_command(path: SourceArg, target: TargetOpt = None, json_out: JsonOpt = None) -> None:
    """List the tasks on record: trials, failures, best time."""
    check_writable(json_out)
    records = _book(path, target).records()
    rows = [_task_row(records, key) for key in records.tasks]
    table = Table("task", title=f"target {escape(records.target)}", title_justify="left")
    table.add_column("key", no_wrap=True)
    for name in ("trials", "failed", "best", "knobs"):
        table.add_column(name, justify="right")
    table.add_column("models")
    for row in rows:
        best = time_text(row["best_s"] * 1e3) if row["best_s"] else "-"
        numbers = (str(row["trials"]), str(row["failed"]), best, str(len(row["knobs"])))
        table.add_row(escape(row["task"]), escape(row["key"][:8]), *numbers, escape(", ".join(row["models"])))
    console.print(table)
    _write(json_out, {"target": records.target, "tasks": rows})


@records_app.command("show")
def show_command(
    path: SourceArg,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Its name, or the beginning of its key.")],
    limit: Annotated[int, typer.Option(help="Show so many trials, the fastest first.", min=1)] = 20,
    target: TargetOpt = None,
    json_out: JsonOpt = None,
) -> None:
    """Show the knobs and the trials of one task."""
    check_writable(json_out)
    records = _book(path, target).records()
    (key,) = _chosen(records, task)
    row = _task_row(records, key)
    knobs = Table("knob", "kind", "values", title=escape(f"{row['task']} ({key})"), title_justify="left")
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
def best_command(path: SourceArg, task: TaskOpt = None, target: TargetOpt = None, json_out: JsonOpt = None) -> None:
    """Show the best schedule of each task: its time, and the value of each knob."""
    check_writable(json_out)
    records = _book(path, target).records()
    rows = [_task_row(records, key) for key in _chosen(records, task)]
    table = Table("task", "best", "knobs")
    for row in rows:
        values = ", ".join(f"{name}={json.dumps(value)}" for name, value in (row["best"] or {}).items())
        best = time_text(row["best_s"] * 1e3) if row["best_s"] else "-"
        table.add_row(escape(row["task"]), best, escape(values))
    console.print(table)
    _write(json_out, {"target": records.target, "tasks": rows})


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
    target: TargetOpt = None,
) -> None:
    """Write records in the format of another tool."""
    if output.exists():
        raise UsageError(f"{output} exists; give another -o, or remove it first")
    for name, given in (("--best", best), ("--model", model)):
        if given is not None and to is not Format.METASCHEDULE:
            raise UsageError(f"{name} is for --to metaschedule")
    book = _book(path, target)
    records = book.records()
    keys = _chosen(records, task)
    if to is Format.METASCHEDULE:
        console.print(_to_metaschedule(path, records, keys, output, model, best), highlight=False, soft_wrap=True)
    elif to is Format.AUTOTVM:
        from chameleon.exchange.autotvm import log_of_lines
        from chameleon.exchange.book import write_new

        lines = log_of_lines(path, book.lines, keys)
        write_new(output, lines)
        console.print(f"wrote {len(lines)} records to {output}", highlight=False, soft_wrap=True)
    else:
        console.print(_to_t4(records, keys, output, chosen=task is not None), highlight=False, soft_wrap=True)


@records_app.command("import")
def import_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="AutoTVM logs, MetaSchedule databases, landscapes.")
    ],
    output: NewFileOpt,
    target: TargetOpt = None,
) -> None:
    """Write what other tools recorded as records of ours; several PATHs must be of one target."""
    _put_together(paths, output, target)


@records_app.command("merge")
def merge_command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files of records, or folders of runs.")],
    output: NewFileOpt,
    target: TargetOpt = None,
) -> None:
    """Put records of one target together; what occurs twice is kept once."""
    _put_together(paths, output, target)


@records_app.command("prune")
def prune_command(
    path: SourceArg,
    output: NewFileOpt,
    keep: Annotated[int, typer.Option(help="Keep so many trials of each task, the fastest.", min=1)] = 16,
) -> None:
    """Write a new file with the best trials of each task only."""
    from chameleon.exchange.book import write_new

    book = _book(path, None)
    gone = book.prune(keep)
    write_new(output, book.lines)
    console.print(f"wrote {book.n_trials} trials to {output}, {gone} left out", highlight=False, soft_wrap=True)


@records_app.command("check")
def check_command(path: SourceArg, json_out: JsonOpt = None) -> None:
    """Look for torn lines, unknown fields, records of another environment, and say what to do."""
    from dataclasses import asdict

    from chameleon.exchange.check import ERROR, check_records
    from chameleon.exchange.sources import DATABASE, in_folder

    check_writable(json_out)
    if (path / DATABASE).exists():
        raise UsageError(f"{path} is a database of MetaSchedule; `chameleon records import` makes records of it")
    path = in_folder(path) if path.is_dir() else path
    findings = check_records(path)
    _write(json_out, {"findings": [asdict(f) for f in findings]})
    if not findings:
        console.print(f"{path}: nothing to find fault with", highlight=False, soft_wrap=True)
        return
    table = Table("", "line", "lines", "what", "what to do")
    for f in findings:
        table.add_row(f.level, str(f.line or "-"), str(f.times), escape(f.what), escape(f.advice))
    console.print(table)
    if broken := sum(f.level == ERROR for f in findings):
        raise ChameleonError(f"{path} cannot be used as it is: {broken} errors; see the table")


def _book(path: Path, target: str | None) -> Book:
    from chameleon.exchange.book import Book
    from chameleon.exchange.sources import lines_of

    return Book(path, lines_of(path, target))


def _put_together(paths: Sequence[Path], output: Path, target: str | None) -> None:
    from chameleon.exchange.book import write_new

    book, *others = [_book(path, target) for path in paths]
    for other in others:
        book.merge(other)
    write_new(output, book.lines)
    tasks = len(book.records().tasks)
    console.print(f"wrote {book.n_trials} trials of {tasks} tasks to {output}", highlight=False, soft_wrap=True)


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
    raise UsageError(f"{len(found) or 'no'} tasks are called {task!r} in {records.path}; there are {names or 'none'}")


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
    from chameleon.jobs.records import RecordsError

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
        raise ChameleonError(f"no task of {records.path} makes a landscape")
    return f"wrote {written} landscapes to {folder}; `chameleon replay` reads them"


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")
