"""The command line: parse, call, print. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (records are kept)."""

from __future__ import annotations

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

from chameleon.errors import ChameleonError
from chameleon.report import check_writable

if TYPE_CHECKING:
    from chameleon.deploy.bench import BenchResult
    from chameleon.deploy.job import JobSpec, TuneReport

app = typer.Typer(
    name="chameleon",
    help="Fast schedules for Apache TVM with few hardware measurements.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
notes = Console(stderr=True)

ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="A name of `chameleon models`, an .onnx or a .pt2 file.")]
TargetOpt = Annotated[str | None, typer.Option("--target", help="A TVM target: kind, tag or JSON. Default: this machine.")]
OutOpt = Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: one under runs/.")]
ShapeOpt = Annotated[str | None, typer.Option("--input-shape", help="For a model that leaves it open, such as 1,3,224,224.")]
RewriteOpt = Annotated[bool, typer.Option("--rewrite", help="Rewrite the network first where that lowers its peak memory.")]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="Write the result to this file as JSON.")]


@app.command("tune")
def tune_command(
    model: ModelArg,
    target: TargetOpt = None,
    trials: Annotated[int | None, typer.Option(help="Measurements over all tasks, earlier runs included.")] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="Time for tuning, such as 90s, 10m, 1.5h. Default: 10m where --trials is not given.")
    ] = None,
    searcher: Annotated[str | None, typer.Option(help="Name of the searcher. Default: chameleon.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. Default: 0.")] = None,
    out: OutOpt = None,
    config: Annotated[Path | None, typer.Option("--config", help="A YAML preset (see configs/); flags override it.")] = None,
    input_shape: ShapeOpt = None,
    tracker: Annotated[str | None, typer.Option(help="host:port of a TVM RPC tracker to measure on its devices.")] = None,
    device_key: Annotated[str | None, typer.Option(help="The key under which the devices registered at the tracker.")] = None,
    rewrite: RewriteOpt = False,
    json_out: JsonOpt = None,
) -> None:
    """Tune a network's tasks; run the same command again to go on where it ended."""
    from chameleon.deploy.config import read_yaml, tune_config
    from chameleon.deploy.job import tune_model
    from chameleon.live import Watcher

    flags = {"trials": trials, "time_budget": time_budget, "searcher": searcher, "seed": seed}
    resolved = tune_config(read_yaml(config) if config else {}, flags)
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
) -> None:
    """Build a network with the best schedules that were found; plain TVM runs the result."""
    from chameleon.deploy.job import compile_tuned

    check_writable(output)
    compiled = compile_tuned(_spec(model, target, out, input_shape, rewrite=rewrite), output, _say, memory_aware=memory_aware)
    console.print(f"wrote {output}", soft_wrap=True)
    if compiled.untuned:
        console.print(f"{len(compiled.untuned)} tasks had no tuned schedule: {', '.join(compiled.untuned)}", soft_wrap=True)
    if compiled.memory is not None:
        from chameleon.memory_cli import plan_text

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
    from chameleon.deploy.job import bench_tuned

    check_writable(json_out)
    result = bench_tuned(_spec(model, target, out, input_shape), _say)
    _write_json(json_out, result.to_json())
    _print_bench(result)


@app.command("memory")
def memory_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name of `chameleon models`, an .onnx or .pt2 file, or a graph.json.")
    ],
    target: TargetOpt = None,
    input_shape: ShapeOpt = None,
    budget: Annotated[
        str | None, typer.Option(help="Does it fit into 512KB, 256KiB, 2MB? Exit code 1 if it provably does not.")
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for each order; then the best so far, with its gap.")] = 60.0,
    rewrite: Annotated[bool, typer.Option(help="Rewrite the graph where that lowers the peak.")] = True,
    measure: Annotated[bool, typer.Option(help="Build and run a model to measure its peak.")] = True,
    count_inputs: Annotated[
        bool, typer.Option(help="Count the model's inputs, which are the caller's, as TFLite does.")
    ] = False,
    alignment: Annotated[int | None, typer.Option(help="Of the tensors of a graph.json, in bytes. Default: 64.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw footprint and arena into this file (.png, .svg, .pdf).")] = None,
    graph_out: Annotated[Path | None, typer.Option("--graph", help="Write the network's graph to this file as JSON.")] = None,
    json_out: JsonOpt = None,
) -> None:
    """Order a network for the least memory: as it is, Kahn, best, rewritten; arena and measured peak."""
    from chameleon.memory_cli import MemoryRequest, run_memory

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
    from chameleon.deploy.model import model_names

    for name in model_names():
        if contains in name:
            console.print(name, highlight=False)


@app.command("doctor")
def doctor_command() -> None:
    """Check the installation: versions, compiler, cores, a tiny build and run."""
    from chameleon.deploy.doctor import checks

    table = Table("check", "", "found", "advice")
    results = list(checks())
    for check in results:
        table.add_row(check.name, "ok" if check.ok else "[bold red]no[/]", check.detail, check.advice)
    console.print(table)
    if not all(check.ok for check in results):
        raise ChameleonError("the installation is not complete; see the advice above")


@app.command("replay")
def replay_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recorded landscapes: T4, Kernel Tuner or our JSONL.")],
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
    except SystemExit as ended:  # typer's own end: it has shown what is wrong with the usage; 130 is its word for Ctrl-C
        if ended.code == 130:
            return _fail("interrupted; everything measured is in the records, the same command goes on from there", 130)
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
    from chameleon.deploy.job import JobSpec, parse_shape

    return JobSpec(model, target, out, parse_shape(input_shape) if input_shape else None, tracker, device_key, rewrite=rewrite)


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")


def _print_report(report: TuneReport, folder: Path) -> None:
    table = Table(title=f"{report.model}: {report.trials} trials in {report.tuning_s:.0f} s, searcher {report.searcher}")
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
