"""Tune a list of models: what is finished is skipped, what they share is tuned once.

python scripts/tune_zoo.py configs/zoo-small.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from chameleon.cli import guarded
from chameleon.deploy.config import read_yaml
from chameleon.deploy.zoo import ZooResult, read_zoo, tune_zoo
from chameleon.errors import ChameleonError
from chameleon.live import Watcher

console = Console()


def tune_zoo_command(
    file: Annotated[Path, typer.Argument(help="The list of models, targets and budgets (YAML).")],
) -> None:
    """Tune every model of the list through the same code as `chameleon tune`, then print one table."""
    entries = read_zoo(read_yaml(file))
    with Watcher(console) as watch:
        results = tune_zoo(entries, watch, lambda text: console.print(text, highlight=False, soft_wrap=True))
    console.print(summary(results))
    if failed := [r.entry.spec.model for r in results if r.report is None]:
        raise ChameleonError(f"{len(failed)} of {len(results)} models failed: {', '.join(failed)}")


def summary(results: list[ZooResult]) -> Table:
    """One row a model: trials, time, latency before and after, what was shared."""
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
        table.add_row(
            r.model, str(r.trials), f"{r.tuning_s:.0f}", *numbers, times, failures, "skipped" if result.skipped else ""
        )
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(tune_zoo_command)
    sys.exit(guarded(app, sys.argv[1:]))
