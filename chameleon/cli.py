"""The command line: parse, call, print. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (records are kept)."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import chameleon
from chameleon.errors import ChameleonError
from chameleon.files import check_writable

if TYPE_CHECKING:
    from chameleon.jobs.bench import BenchResult
    from chameleon.jobs.run_folder import JobSpec, TuneReport
    from chameleon.jobs.zoo import ZooResult

app = typer.Typer(
    name="chameleon",
    help="Fast schedules for Apache TVM with few hardware measurements.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
notes = Console(stderr=True)


def _searcher_names() -> list[str]:
    """For the shell's completion."""
    from chameleon.search import SEARCHERS

    return list(SEARCHERS)


def _preset_names() -> list[str]:
    """For the shell's completion."""
    from chameleon.jobs.config import preset_names

    return preset_names()


ModelArg = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name of `chameleon models`, an .onnx or a .pt2 file.")
]
TargetOpt = Annotated[
    str | None, typer.Option("--target", help="A TVM target: kind, tag or JSON. Default: this machine.")
]
OutOpt = Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: one under runs/.")]
ShapeOpt = Annotated[
    str | None, typer.Option("--input-shape", help="For a model that leaves it open, such as 1,3,224,224.")
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
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write the result to this file as JSON.")]


@app.callback()
def _global_options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and end.")] = False,
) -> None:
    if version:
        console.print(f"chameleon-tvm {chameleon.__version__}", highlight=False)
        raise typer.Exit


@app.command("tune")
def tune_command(
    model: ModelArg,
    target: TargetOpt = None,
    trials: Annotated[int | None, typer.Option(help="Measurements over all tasks, earlier runs included.")] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(help="Time for tuning, such as 90s, 10m, 1.5h. Default: 10m where --trials is not given."),
    ] = None,
    searcher: SearcherOpt = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. Default: 0.")] = None,
    out: OutOpt = None,
    config: ConfigOpt = None,
    input_shape: ShapeOpt = None,
    tracker: Annotated[
        str | None, typer.Option(help="host:port of a TVM RPC tracker to measure on its devices.")
    ] = None,
    device_key: Annotated[
        str | None, typer.Option(help="The key under which the devices registered at the tracker.")
    ] = None,
    rewrite: RewriteOpt = False,
    json_out: JsonOpt = None,
) -> None:
    """Tune a network's tasks; run the same command again to go on where it ended."""
    from chameleon.jobs.config import read_preset, tune_config
    from chameleon.jobs.tune import tune_model
    from chameleon.live import Watcher

    flags = {"trials": trials, "time_budget": time_budget, "searcher": searcher, "seed": seed}
    resolved = tune_config(read_preset(config) if config else {}, flags)
    check_writable(json_out)
    with Watcher(console) as watch:
        spec = _spec(model, target, out, input_shape, tracker, device_key, rewrite)
        report, folder = tune_model(spec, resolved, watch, _say)
    _print_report(report, folder)
    _write_json(json_out, report.to_json())


@app.command("compile")
def compile_command(
    model: ModelArg,
    output: Annotated[Path, typer.Option("-o", "--output", help="The library to write, such as network.so.")],
    target: TargetOpt = None,
    out: OutOpt = None,
    input_shape: ShapeOpt = None,
    rewrite: RewriteOpt = False,
    memory_aware: Annotated[
        bool, typer.Option("--memory-aware", help="Order it for the least memory; all its tensors in one arena.")
    ] = False,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for the order and the arena of --memory-aware; then the best so far.")
    ] = 120.0,
) -> None:
    """Build a network with the best schedules that were found; plain TVM runs the result."""
    from chameleon.cli_memory import check_time_limit
    from chameleon.jobs.compile import compile_tuned

    check_writable(output)
    check_time_limit(time_limit)
    spec = dataclasses.replace(_spec(model, target, out, input_shape, rewrite=rewrite), time_limit_s=time_limit)
    compiled = compile_tuned(spec, output, _say, memory_aware=memory_aware)
    console.print(f"wrote {output}", soft_wrap=True)
    if compiled.untuned:
        console.print(
            f"{len(compiled.untuned)} tasks had no tuned schedule: {', '.join(compiled.untuned)}", soft_wrap=True
        )
    if compiled.memory is not None:
        from chameleon.cli_memory import plan_text

        console.print(plan_text(compiled.memory), highlight=False, soft_wrap=True)


@app.command("bench")
def bench_command(
    model: ModelArg,
    target: TargetOpt = None,
    out: OutOpt = None,
    input_shape: ShapeOpt = None,
    json_out: JsonOpt = None,
) -> None:
    """Time a network untuned, tuned and in ONNX Runtime, interleaved in one process."""
    from chameleon.jobs.bench import bench_tuned

    check_writable(json_out)
    result = bench_tuned(_spec(model, target, out, input_shape), _say)
    _write_json(json_out, result.to_json())
    _print_bench(result)


@app.command("memory")
def memory_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name of `chameleon models`, an .onnx or .pt2 file, or a graph.json."),
    ],
    target: TargetOpt = None,
    input_shape: ShapeOpt = None,
    budget: Annotated[
        str | None, typer.Option(help="Does it fit into 512KB, 256KiB, 2MB? Exit code 1 if it provably does not.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for orders, rewrites and arena together; then the best so far.")
    ] = 120.0,
    rewrite: Annotated[bool, typer.Option(help="Rewrite the graph where that lowers the peak.")] = True,
    measure: Annotated[bool, typer.Option(help="Build and run a model to measure its peak.")] = True,
    count_inputs: Annotated[
        bool, typer.Option(help="Count the model's inputs, which are the caller's, as TFLite does.")
    ] = False,
    alignment: Annotated[
        int | None, typer.Option(help="Of the tensors of a graph.json, in bytes. Default: 64.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw footprint and arena into this file (.png, .svg, .pdf).")
    ] = None,
    graph_out: Annotated[
        Path | None, typer.Option("--graph", help="Write the network's graph to this file as JSON.")
    ] = None,
    json_out: JsonOpt = None,
) -> None:
    """Order a network for the least memory: as it is, Kahn, best, rewritten; arena and measured peak."""
    from chameleon.cli_memory import MemoryRequest, run_memory

    run_memory(
        MemoryRequest(
            model=model,
            target=target,
            input_shape=input_shape,
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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The list of models, targets and budgets (YAML).")],
) -> None:
    """Tune a list of models: what is finished is skipped, what they share is tuned once."""
    from chameleon.jobs.config import read_yaml
    from chameleon.jobs.zoo import read_zoo, tune_zoo
    from chameleon.live import Watcher

    entries = read_zoo(read_yaml(file))
    with Watcher(console) as watch:
        results = tune_zoo(entries, watch, _say)
    console.print(_zoo_table(results))
    if failed := [r.entry.spec.model for r in results if r.report is None]:
        raise ChameleonError(f"{len(failed)} of {len(results)} models failed: {', '.join(failed)}")


@app.command("autotvm")
def autotvm_command(
    network: Annotated[
        str, typer.Argument(metavar="NETWORK", help="resnet-18, resnet-50, mobilenet, resnet-8 or conv2d.")
    ],
    tuner: Annotated[
        str, typer.Option(help="chameleon, release, annealing, or AutoTVM's xgb, ga, random.")
    ] = "chameleon",
    trials: Annotated[int, typer.Option(help="Measurements of a task, at most.", min=1)] = 128,
    early_stopping: Annotated[int | None, typer.Option(help="End a task after so many without a better one.")] = None,
    size: Annotated[int, typer.Option(help="Height and width of the input image.", min=1)] = 224,
    tasks: Annotated[int | None, typer.Option(help="Only so many of the network's tasks.", min=1)] = None,
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
        f"latency: untuned {before:.2f} ms, tuned with {tuner} {after:.2f} ms ({before / after:.2f} times faster)"
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
    trials: Annotated[int, typer.Option(help="Measurements of each run.")] = 220,
    seeds: Annotated[int, typer.Option(help="Runs of each searcher on each landscape.")] = 10,
    jobs: Annotated[int | None, typer.Option(help="Processes. Default: one a core.")] = None,
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
    """Run any typer application and return its exit code; people see messages, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        command(list(argv))
    except ChameleonError as error:
        return _fail(str(error), error.exit_code)
    except (
        SystemExit
    ) as ended:  # typer's own end: it has shown what is wrong with the usage; 130 is its word for Ctrl-C
        if ended.code == 130:
            return _fail(
                "interrupted; everything measured is in the records, the same command goes on from there", 130
            )
        return ended.code if isinstance(ended.code, int) else 0
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        return _fail(f"{what}; everything measured before is in the records", 1)
    return 0


def _fail(message: str, code: int) -> int:
    notes.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return code


def _spec(
    model: str,
    target: str | None,
    out: Path | None,
    input_shape: str | None,
    tracker: str | None = None,
    device_key: str | None = None,
    rewrite: bool = False,
) -> JobSpec:
    from chameleon.jobs.run_folder import JobSpec
    from chameleon.models.shapes import parse_shape

    return JobSpec(
        model, target, out, parse_shape(input_shape) if input_shape else None, tracker, device_key, rewrite=rewrite
    )


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")


def _print_report(report: TuneReport, folder: Path) -> None:
    table = Table(
        title=f"{report.model}: {report.trials} trials in {report.tuning_s:.0f} s, searcher {report.searcher}"
    )
    table.add_column("task", overflow="fold")
    for name in ("weight", "trials", "best us", "GFLOP/s"):
        table.add_column(name, justify="right")
    for t in report.tasks:
        speed = f"{t.flop / t.best_us / 1e3:.1f}" if t.best_us and t.flop else "-"
        table.add_row(t.name, str(t.weight), str(t.trials), f"{t.best_us:.1f}" if t.best_us else "-", speed)
    console.print(table)
    failures = ", ".join(f"{reason} {n}" for reason, n in report.failures.items()) or "none"
    console.print(f"failures: {failures}")
    before, after = report.latency_ms["untuned"], report.latency_ms["tuned"]
    if before and after:
        console.print(f"latency: untuned {before:.2f} ms, tuned {after:.2f} ms ({before / after:.1f} times faster)")
    console.print(f"records, artifact and report are in {folder}", soft_wrap=True)


def _zoo_table(results: Sequence[ZooResult]) -> Table:
    """One row a model: trials, time, latency before and after, what was skipped."""
    table = Table("model", "trials", "tuning s", "untuned ms", "tuned ms", "times faster", "failures", "note")
    for result in results:
        if result.report is None:
            table.add_row(result.entry.spec.model, *["-"] * 6, result.error)
            continue
        r = result.report
        before, after = r.latency_ms["untuned"], r.latency_ms["tuned"]
        times = f"{before / after:.1f}" if before and after else "-"
        numbers = [f"{v:.2f}" if v else "-" for v in (before, after)]
        failures = str(sum(r.failures.values()))
        note = "skipped" if result.skipped else ""
        table.add_row(r.model, str(r.trials), f"{r.tuning_s:.0f}", *numbers, times, failures, note)
    return table


def _print_bench(result: BenchResult) -> None:
    table = Table("", "median ms", "quartiles ms", "times the tuned")
    names = {"onnxruntime": "ONNX Runtime"}
    for name, t in result.latencies().items():
        times = f"{t.median_ms / result.tuned.median_ms:.2f}"
        table.add_row(names.get(name, name), f"{t.median_ms:.2f}", f"{t.low_ms:.2f} - {t.high_ms:.2f}", times)
    console.print(table)
    for name, d in result.difference.items():
        console.print(
            f"outputs differ from {names.get(name, name)}'s by {d.absolute:.1e} at most, {d.relative:.1e} of the largest"
        )
    if not result.agrees:
        raise ChameleonError(f"the tuned network's outputs are not within {result.tolerance:g} of the others'")


def _say(text: str) -> None:
    notes.print(escape(text), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
