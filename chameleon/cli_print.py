"""What the commands print of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from chameleon.errors import ChameleonError
from chameleon.wording import range_text, ratio_text, speed_text, task_text, time_text

if TYPE_CHECKING:
    from chameleon.jobs.bench import BenchResult
    from chameleon.jobs.run_folder import TuneReport
    from chameleon.jobs.zoo import ZooResult


def print_report(report: TuneReport, folder: Path, console: Console) -> None:
    """Print what tuning a network came to: a row for each task, failures, latency, comparison of the outputs."""
    finish = f", then {report.finish_s:.0f} s of compiling and timing" if report.finish_s else ""
    console.print(
        f"{report.model}: {report.trials} trials in {report.tuning_s:.0f} s of tuning{finish}; "
        f"searcher {report.searcher}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table()
    table.add_column("task", overflow="fold")
    for name in ("weight", "trials", "best", "GFLOP/s"):
        table.add_column(name, justify="right")
    chosen = any(t.algorithm for t in report.tasks)
    if chosen:
        table.add_column("algorithm")
    for t in report.tasks:
        speed = f"{t.flop / t.best_us / 1e3:.1f}" if t.best_us and t.flop else "-"
        best = time_text(t.best_us / 1e3) if t.best_us else "-"
        algorithm = [t.algorithm or ""] if chosen else []
        table.add_row(task_text(t.name), str(t.weight), str(t.trials), best, speed, *algorithm)
    console.print(table)
    failures = ", ".join(f"{reason} {n}" for reason, n in report.failures.items()) or "none"
    console.print(f"failures: {failures}")
    if text := _latency_text(report):
        console.print(text, highlight=False, soft_wrap=True)
    if report.breakdown and report.breakdown["alone_ms"]:
        console.print(_breakdown_text(report.breakdown), highlight=False, soft_wrap=True)
    if report.comparison:
        console.print(report.comparison["summary"], highlight=False, soft_wrap=True)
    console.print(f"records, artifact and report are in {folder}", soft_wrap=True)


def _latency_text(report: TuneReport) -> str:
    """The latencies with their quartiles, what became of them, and when they were measured if not now."""
    before, after = report.latency_ms["untuned"], report.latency_ms["tuned"]
    if not before or not after:
        return ""
    times = [
        f"{name} {time_text(median)}"
        + (f" (quartiles {range_text(*report.quartiles_ms[name])})" if name in report.quartiles_ms else "")
        for name, median in (("untuned", before), ("tuned", after))
    ]
    when = f", measured before, on {report.measured_on}" if report.measured_before else ""
    tuned = any(t.best_us for t in report.tasks)
    return f"latency: {', '.join(times)}: {speed_text(before, after) if tuned else 'nothing was tuned'}{when}"


def _breakdown_text(found: Mapping[str, Any]) -> str:
    """Where the latency goes (`chameleon.jobs.in_network.Breakdown`), in one or two lines."""
    parts = [
        ("cold_ms", "for cold caches"),
        ("slower_ms", "slower beside the others"),
        ("untimed_ms", "of kernels not timed alone"),
        ("allocation_ms", "of allocation"),
        ("calls_ms", "of calls"),
    ]
    text = f"in the network: {time_text(found['alone_ms'])} of kernels as timed alone"
    for key, what in parts:
        if abs(found[key]) >= 0.0005 * found["network_ms"]:
            text += f" {'-' if found[key] < 0 else '+'} {time_text(abs(found[key]))} {what}"
    text += f" = {time_text(found['network_ms'])}"
    if found["layout_ms"] > 0:
        text += f"\nlayout changes take {time_text(found['layout_ms'])} of it"
    return text


def zoo_table(results: Sequence[ZooResult]) -> Table:
    """One row for each model: trials, time, latency before and after, and whether it was skipped."""
    table = Table("model", "trials", "tuning s", "untuned", "tuned", "the tuned is", "failures", "note")
    for result in results:
        if result.report is None:
            table.add_row(result.entry.spec.model, *["-"] * 6, result.error)
            continue
        r = result.report
        before, after = r.latency_ms["untuned"], r.latency_ms["tuned"]
        times = speed_text(before, after) if before and after else "-"
        numbers = [time_text(v) if v else "-" for v in (before, after)]
        failures = str(sum(r.failures.values()))
        when = f"measured before, on {r.measured_on or 'an unknown date'}" if r.measured_before else ""
        note = f"skipped, {when}" if result.skipped else when
        table.add_row(r.model, str(r.trials), f"{r.tuning_s:.0f}", *numbers, times, failures, note)
    return table


def print_bench(result: BenchResult, console: Console) -> None:
    """Print the latencies of a network and how its outputs compare.

    Raises:
        ChameleonError: if the outputs are wrong.
    """
    table = Table("", "median", "quartiles", "times the tuned")
    from chameleon.jobs.bench import PEERS  # whoever has a result has imported TVM

    names = {"default": "default schedules", **PEERS}
    for name, t in result.latency.items():
        times = ratio_text(t.median_ms / result.latency["tuned"].median_ms)
        table.add_row(names.get(name, name), time_text(t.median_ms), range_text(t.low_ms, t.high_ms), times)
    console.print(table)
    for name, d in result.difference.items():
        console.print(
            f"as timed, outputs differ from those of {names.get(name, name)} by {d.absolute:.1e} at most, "
            f"{d.relative:.1e} of the largest",
            soft_wrap=True,
        )
    if result.verdict is not None:
        console.print(str(result.verdict), highlight=False, soft_wrap=True)
    if not result.agrees:
        faults = [d.fault for d in (result.verdict and result.verdict.difference, *result.difference.values()) if d]
        raise ChameleonError(
            f"the tuned network's outputs are wrong: {'; '.join(dict.fromkeys(filter(None, faults)))}"
        )
