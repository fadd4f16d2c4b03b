"""The command line: reads the arguments, calls the code that does the work, and prints the result.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (everything measured is kept in the records).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import chameleon
from chameleon.cli_print import print_bench, print_report
from chameleon.cli_records import records_app
from chameleon.error_log import write_log
from chameleon.errors import ChameleonError, UnforeseenError, described, first_line
from chameleon.files import check_writable
from chameleon.live import Notes, Progress, ProgressKind
from chameleon.stderr_filter import without_known_notes
from chameleon.wording import names_text, speed_text, time_text

if TYPE_CHECKING:
    from chameleon.jobs.run_folder import JobSpec
    from chameleon.measure.link import Toolchain
    from chameleon.store.place import Place

app = typer.Typer(
    name="chameleon",
    help="Fast schedules for Apache TVM with few hardware measurements.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(records_app, name="records")
DEBUG = "--debug"
TRACEBACK = "Traceback (most recent call last)"
console = Console()
notes = Console(stderr=True)
_say = Notes(notes)


def _searcher_names() -> list[str]:
    """The names that the shell offers as completions of `--searcher`."""
    from chameleon.search import SEARCHERS

    return list(SEARCHERS)


def _preset_names() -> list[str]:
    """The names that the shell offers as completions of `--config`."""
    from chameleon.jobs.config import preset_names

    return preset_names()


ModelArg = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name of `chameleon models`, an .onnx or a .pt2 file.")
]
TargetOpt = Annotated[
    str | None, typer.Option("--target", help="A TVM target: kind, tag or JSON. Default: this machine.")
]
StoreOpt = Annotated[
    str | None,
    typer.Option(
        "--store", help="Where the records are: sqlite:///runs/records.db, postgresql://... Default: in the folder."
    ),
]
OutOpt = Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: one under runs/.")]
ShapeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape", help="The shape of an open input: 1,3,224,224, or input_ids=1,16 once for each input."
    ),
]
DimOpt = Annotated[
    list[str] | None, typer.Option("--dim", help="The size of an open dimension by name, such as batch=1; repeatable.")
]
RewriteOpt = Annotated[
    bool, typer.Option("--rewrite", help="Rewrite the network first where that lowers its peak memory.")
]
SearcherOpt = Annotated[
    str | None,
    typer.Option(help="A name of `chameleon searchers`. Default: chameleon.", autocompletion=_searcher_names),
]
ConfigOpt = Annotated[
    str | None,
    typer.Option(
        "--config", help="A preset: quick, release, or a YAML file. Flags override it.", autocompletion=_preset_names
    ),
]
CompilerOpt = Annotated[
    str | None,
    typer.Option("--cc", help="C++ compiler that links for the target, such as aarch64-linux-gnu-g++."),
]
SysrootOpt = Annotated[
    Path | None, typer.Option("--sysroot", help="Folder with the target's headers and libraries, for --cc.")
]
RayOpt = Annotated[
    str | None,
    typer.Option("--ray", help="Measure on the nodes of a running Ray cluster: its address, or auto."),
]
ProgressOpt = Annotated[
    ProgressKind,
    typer.Option("--progress", help="A table on a terminal, plain lines, or JSON lines. Default: as the output is."),
]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write the result to this file as JSON.")]


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"chameleon-tvm {chameleon.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and end.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and all of TVM's notes.")
    ] = False,
) -> None:
    """Fast schedules for Apache TVM with few hardware measurements."""
    del version, debug  # `guarded` reads --debug, at any place of the command line


@app.command("tune")
def tune_command(
    model: ModelArg,
    target: TargetOpt = None,
    trials: Annotated[
        int | None, typer.Option(help="Measurements over all tasks, earlier runs included.", min=1)
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(help="Time for tuning, such as 90s, 10m, 1.5h. Default: 10m where --trials is not given."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="End early when the rest of the budget is expected to gain less than this, such as 1%."),
    ] = None,
    searcher: SearcherOpt = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. Default: 0.", min=0)] = None,
    out: OutOpt = None,
    store: StoreOpt = None,
    config: ConfigOpt = None,
    input_shape: ShapeOpt = None,
    dim: DimOpt = None,
    tracker: Annotated[
        str | None, typer.Option(help="host:port of a TVM RPC tracker to measure on its devices.")
    ] = None,
    device_key: Annotated[
        str | None, typer.Option(help="The key under which the devices registered at the tracker.")
    ] = None,
    ray: RayOpt = None,
    rewrite: RewriteOpt = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Forget the failed trials of earlier runs; they may be tried again.")
    ] = False,
    learn: Annotated[
        bool | None,
        typer.Option(
            "--learn/--no-learn",
            help="Begin a task with what was fastest in tasks like it, in this run and those beside it. Default: yes.",
        ),
    ] = None,
    learn_from: Annotated[
        list[Path] | None, typer.Option(help="A folder of another run to learn from as well; may be repeated.")
    ] = None,
    share: Annotated[
        bool | None,
        typer.Option("--share/--no-share", help="One search for tasks with the same main block. Default: --share."),
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option("--exact", help="Only algorithms that round as the network is written; no Winograd."),
    ] = None,
    compiler: CompilerOpt = None,
    sysroot: SysrootOpt = None,
    progress: ProgressOpt = ProgressKind.AUTO,
    json_out: JsonOpt = None,
) -> None:
    """Tune a network's tasks; run the same command again to go on where it ended."""
    from chameleon.jobs.config import read_preset, tune_config

    flags = {
        "trials": trials,
        "time_budget": time_budget,
        "until": until,
        "searcher": searcher,
        "seed": seed,
        "share": share,
        "learn": learn,
        "exact": exact,
    }
    with Progress(progress, console, notes) as told:
        with told.say.stage("importing TVM"):
            from chameleon.jobs.tune import tune_model

        preset = read_preset(config) if config else {}
        in_preset = preset.pop("store", None)  # it may have a password, and the configuration is recorded
        resolved = tune_config(preset, flags)
        check_writable(json_out)
        spec = _spec(model, target, out, input_shape, dim, tracker, device_key, rewrite)
        spec = dataclasses.replace(
            spec,
            ray=ray,
            records=_place(store or in_preset),
            retry_failed=retry_failed,
            toolchain=_toolchain(compiler, sysroot),
            learn_from=tuple(learn_from or ()),
        )
        report, folder = tune_model(spec, resolved, told.watch, told.say)
        told.ended(report.model, folder, report)
        if told.console:
            print_report(report, folder, told.console)
        _write_json(json_out, report.to_json())


@app.command("compile")
def compile_command(
    model: ModelArg,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The library to write, such as network.so; .tar: its objects, unlinked."),
    ],
    target: TargetOpt = None,
    out: OutOpt = None,
    store: StoreOpt = None,
    input_shape: ShapeOpt = None,
    dim: DimOpt = None,
    rewrite: RewriteOpt = False,
    memory_aware: Annotated[
        bool, typer.Option("--memory-aware", help="Order the network for the least memory; all tensors in one arena.")
    ] = False,
    compiler: CompilerOpt = None,
    sysroot: SysrootOpt = None,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for the order and the arena of --memory-aware; then the best so far.")
    ] = 120.0,
) -> None:
    """Build a network with the best schedules that were found; plain TVM runs the result."""
    from chameleon.cli_memory import check_time_limit

    check_writable(output)
    check_time_limit(time_limit)
    with _say.stage("importing TVM"):
        from chameleon.jobs.ship import compile_tuned

    spec = _spec(model, target, out, input_shape, dim, rewrite=rewrite)
    spec = dataclasses.replace(
        spec, records=_place(store), toolchain=_toolchain(compiler, sysroot), time_limit_s=time_limit
    )
    shipped = compile_tuned(spec, output, _say, memory_aware=memory_aware)
    compiled = shipped.compiled
    console.print(f"wrote {output}", soft_wrap=True)
    if compiled.untuned:
        console.print(
            f"{len(compiled.untuned)} tasks had no tuned schedule: {names_text(compiled.untuned)}", soft_wrap=True
        )
    console.print(str(shipped.verdict), highlight=False, soft_wrap=True)
    if compiled.memory is not None:
        from chameleon.cli_memory import plan_text

        console.print(plan_text(compiled.memory), highlight=False, soft_wrap=True)


@app.command("bench")
def bench_command(
    model: ModelArg,
    target: TargetOpt = None,
    out: OutOpt = None,
    store: StoreOpt = None,
    input_shape: ShapeOpt = None,
    dim: DimOpt = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Other programs, separated by commas: onnxruntime, openvino, inductor. Default: all that can run it."
        ),
    ] = None,
    json_out: JsonOpt = None,
) -> None:
    """Time a network untuned, with default schedules, tuned, and in other programs, interleaved in one process."""
    with _say.stage("importing TVM"):
        from chameleon.jobs.bench import PEERS, bench_tuned

    check_writable(json_out)
    names = list(PEERS) if against is None else [name.strip() for name in against.split(",") if name.strip()]
    spec = dataclasses.replace(_spec(model, target, out, input_shape, dim), records=_place(store))
    result = bench_tuned(spec, _say, names)
    _write_json(json_out, result.to_json())
    print_bench(result, console)


@app.command("memory")
def memory_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name of `chameleon models`, an .onnx or .pt2 file, or a graph.json."),
    ],
    target: TargetOpt = None,
    input_shape: ShapeOpt = None,
    dim: DimOpt = None,
    budget: Annotated[
        str | None,
        typer.Option(help="A budget, such as 512KB, 256KiB, 2MB. Exit code 1 if the network provably does not fit."),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for orders, rewrites and arena together; then the best so far.")
    ] = 120.0,
    rewrite: Annotated[bool, typer.Option(help="Rewrite the graph where that lowers the peak.")] = True,
    measure: Annotated[bool, typer.Option(help="Build and run a model to measure its peak.")] = True,
    count_inputs: Annotated[
        bool, typer.Option(help="Count the model's inputs as well, as TFLite does. They belong to the caller.")
    ] = False,
    alignment: Annotated[
        int | None, typer.Option(help="Alignment of the tensors of a graph.json, in bytes. Default: 64.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw footprint and arena into this file (.png, .svg, .pdf).")
    ] = None,
    graph_out: Annotated[
        Path | None, typer.Option("--graph", help="Write the network's graph to this file as JSON.")
    ] = None,
    json_out: JsonOpt = None,
) -> None:
    """Find the order of a network that needs the least memory.

    The table has the network's peak memory as it is, in Kahn's order, in the best order, and rewritten.
    Below the table are the size of the arena and the measured peak.
    """
    from chameleon.cli_memory import MemoryRequest, run_memory

    run_memory(
        MemoryRequest(
            model=model,
            target=target,
            input_shape=tuple(input_shape or ()),
            dims=tuple(dim or ()),
            budget=budget,
            time_limit_s=time_limit,
            rewrite=rewrite,
            measure=measure,
            count_inputs=count_inputs,
            alignment=alignment,
            plot=plot,
            json_out=json_out,
            graph_out=graph_out,
        ),
        console,
        _say,
    )


@app.command("report")
def report_command(
    source: Annotated[
        str,
        typer.Argument(metavar="DIR", help="The folder of a run, or of a zoo with several; or the URL of a store."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page to write. Default: report.html in DIR, or here.")
    ] = None,
    store: StoreOpt = None,
    json_out: JsonOpt = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page, which refreshes itself while a run goes on; Ctrl-C ends.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="The address to serve on; with another than this, other machines can read the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to serve on; 0: any that is free.", min=0, max=65535)] = 8000,
) -> None:
    """Make one page about a run that has ended, goes on or was interrupted: curves, kernels, failures, knobs."""
    from chameleon.cli_report import ReportRequest, run_report
    from chameleon.store.place import place_of

    request = ReportRequest(place_of(source), _place(store), output, json_out, serve, host, port)
    run_report(request, console)


@app.command("models")
def models_command(contains: Annotated[str, typer.Argument(help="List names that contain this.")] = "") -> None:
    """List the names of the networks in the zoo."""
    from chameleon.models.load import model_names

    for name in model_names():
        if contains in name:
            console.print(name, highlight=False)


@app.command("searchers")
def searchers_command() -> None:
    """List the searchers that --searcher takes, and what each is made of."""
    from chameleon.search import SEARCHERS

    table = Table("searcher", "what it is", "options")
    for name, recipe in SEARCHERS.items():
        table.add_row(name, recipe.about, ", ".join(recipe.options) or "none")
    console.print(table)


@app.command("zoo")
def zoo_command(
    place: Annotated[
        Path, typer.Argument(metavar="FILE", help="The list of models, targets and budgets (YAML); with --watch DIR.")
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow a zoo that runs elsewhere, by its FILE or its folder; only reads.")
    ] = False,
    ray: RayOpt = None,
    progress: ProgressOpt = ProgressKind.AUTO,
) -> None:
    """Tune a list of models; finished models are skipped, and a task that several models share is tuned once."""
    from chameleon.cli_zoo import run_zoo, watch_zoo

    with Progress(progress, console, notes) as told:
        if watch:
            watch_zoo(place, told)
        else:
            run_zoo(place, told, ray)


@app.command("autotvm")
def autotvm_command(
    network: Annotated[
        str, typer.Argument(metavar="NETWORK", help="resnet-18, resnet-50, mobilenet, resnet-8 or conv2d.")
    ],
    tuner: Annotated[
        str, typer.Option(help="chameleon, release, annealing, or AutoTVM's xgb, ga, random.")
    ] = "chameleon",
    trials: Annotated[int, typer.Option(help="At most so many measurements of each task.", min=1)] = 128,
    early_stopping: Annotated[
        int | None, typer.Option(help="End a task after so many measurements without a better one.", min=1)
    ] = None,
    size: Annotated[int, typer.Option(help="Height and width of the input image.", min=1)] = 224,
    tasks: Annotated[
        int | None, typer.Option(help="Tune only the first so many of the network's tasks.", min=1)
    ] = None,
    target: TargetOpt = None,
    log: Annotated[Path, typer.Option(help="AutoTVM's log; it is appended to.")] = Path("tune.log"),
    json_out: JsonOpt = None,
) -> None:
    """Tune a network with AutoTVM (TVM up to 0.19) and time it before and after."""
    from chameleon.jobs.autotvm import AutoTvmSpec, tune_autotvm

    check_writable(json_out)
    report = tune_autotvm(AutoTvmSpec(network, tuner, trials, early_stopping, size, tasks, target, log))
    table = Table("task", "trials", "GFLOP/s", "tuning s")
    for row in report.rows:
        table.add_row(row["task"], str(row["trials"]), f"{row['gflops']:.1f}", f"{row['tuning_s']:.0f}")
    console.print(table)
    before, after = report.untuned_ms, report.tuned_ms
    console.print(
        f"latency: untuned {time_text(before)}, tuned with {tuner} {time_text(after)} ({speed_text(before, after)})"
    )
    if json_out is not None:
        report.write(json_out)


@app.command("doctor")
def doctor_command() -> None:
    """Check the installation: versions, compiler, cores, a tiny build and run."""
    from chameleon.doctor.checks import checks

    table = Table("check", "", "found", "advice")
    results = list(checks())
    for check in results:
        table.add_row(check.name, "ok" if check.ok else "[bold red]no[/]", check.detail, check.advice)
    console.print(table)
    if not all(check.ok for check in results):
        raise ChameleonError("the installation is not complete; see the advice above")


@app.command("replay")
def replay_command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Recorded landscapes: T4, Kernel Tuner or our JSONL.")
    ],
    searcher: Annotated[str, typer.Option(help="Searchers, separated by commas.")] = "chameleon,annealing,random",
    trials: Annotated[int, typer.Option(help="Measurements of each run.", min=1)] = 220,
    seeds: Annotated[int, typer.Option(help="Runs of each searcher on each landscape.", min=1)] = 10,
    jobs: Annotated[int | None, typer.Option(help="Number of processes. Default: one for each core.", min=1)] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this file (.png, .svg, .pdf).")] = None,
    json_out: JsonOpt = None,
) -> None:
    """Compare searchers on recorded landscapes, without the hardware."""
    from chameleon.report import run_replay

    names = [name.strip() for name in searcher.split(",") if name.strip()]
    run_replay(files, names, trials, seeds, json_out, plot, jobs, console=console)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    return guarded(app, sys.argv[1:] if argv is None else argv)


def guarded(command: typer.Typer, argv: Sequence[str]) -> int:
    """Run any typer application and return its exit code; people see a message, never a traceback.

    The traceback of an error that no check foresaw goes into a file, whose path is in the message. `--debug` shows it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    debug = DEBUG in argv
    try:
        with contextlib.nullcontext() if debug else without_known_notes():
            command([word for word in argv if word != DEBUG])
    except UnforeseenError as error:
        return _unforeseen(str(error), error, error.folder, argv, debug=debug)
    except ChameleonError as error:
        if TRACEBACK in str(error):  # of a worker that could not start
            return _unforeseen(first_line(error), error, None, argv, debug=debug)
        return _fail(str(error), error.exit_code)
    except SystemExit as ended:
        # Typer ends this way when the usage is wrong, and has said what is wrong. After Ctrl-C its code is 130.
        if ended.code == 130:
            return _fail(
                "interrupted; everything measured is in the records, the same command goes on from there", 130
            )
        return ended.code if isinstance(ended.code, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted; everything measured is in the records, the same command goes on from there", 130)
    except OSError as error:
        if error.errno == errno.ENOSPC and not debug:  # foreseen, and a traceback would only fill it more
            return _fail("the disk is full; everything measured before is in the records", 1)
        return _unforeseen(f"{error}; everything measured before is in the records", error, None, argv, debug=debug)
    except Exception as error:
        return _unforeseen(described(error), error, None, argv, debug=debug)
    return 0


def _unforeseen(message: str, error: Exception, folder: Path | None, argv: Sequence[str], *, debug: bool) -> int:
    """Print an error that no check foresaw in one line, and leave its traceback in a file."""
    text = "".join(traceback.format_exception(error))
    if debug:
        notes.print(escape(text), highlight=False, soft_wrap=True)
        return _fail(message, 1)
    path = write_log(text, argv, folder)
    return _fail(f"{message}{f'; the traceback is in {path}' if path else ''}", 1)


def _fail(message: str, code: int) -> int:
    notes.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return code


def _spec(
    model: str,
    target: str | None,
    out: Path | None,
    input_shape: list[str] | None,
    dim: list[str] | None,
    tracker: str | None = None,
    device_key: str | None = None,
    rewrite: bool = False,
) -> JobSpec:
    from chameleon.jobs.run_folder import JobSpec
    from chameleon.models.shapes import parse_dims, parse_shapes

    return JobSpec(
        model,
        target,
        out,
        parse_shapes(input_shape),
        tracker,
        device_key,
        rewrite=rewrite,
        dims=parse_dims(dim),
    )


def _place(store: str | None) -> Place | None:
    from chameleon.store.place import place_of

    return None if store is None else place_of(store)


def _toolchain(compiler: str | None, sysroot: Path | None) -> Toolchain:
    from chameleon.measure.link import Toolchain

    return Toolchain(compiler, sysroot)


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
