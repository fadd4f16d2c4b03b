"""`chameleon replay`: compares searchers on recorded landscapes; the results are tables, plots and JSON."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chameleon.errors import UsageError
from chameleon.files import check_picture, check_writable
from chameleon.search import KnobSpace, make_searcher
from tuners.replay import Landscape, LandscapeWarning, ReplayRun, load_landscape, replay_all

MARKS = (25, 50, 100, 220)
"""The numbers of trials after which the fraction of the optimum is reported; it is reported at the end as well."""
GOAL = 0.95


@dataclass(frozen=True)
class ReplaySummary:
    """One searcher on one landscape, over all seeds.

    Attributes:
        space_size: number of configurations that the landscape lists.
        fraction: of the best on record, mean over seeds, after each of the `MARKS` within the budget and at its end.
        trials_to_95: trials until 95 % of the best, median over seeds; None if the median seed never gets there.
        engine_s_per_trial: seconds the searcher took for each trial.
        curves: fraction after each trial, `[seeds, trials]`, flat where a run ended early.
    """

    landscape: str
    searcher: str
    seeds: int
    trials: int
    space_size: int
    fraction: dict[int, float]
    trials_to_95: float | None
    engine_s_per_trial: float
    curves: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Plain data of everything but the curves."""
        names = (
            "landscape",
            "searcher",
            "seeds",
            "trials",
            "space_size",
            "fraction",
            "trials_to_95",
            "engine_s_per_trial",
        )
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "fraction": {str(mark): value for mark, value in self.fraction.items()}}


def run_replay(
    files: Sequence[Path],
    searchers: Sequence[str],
    trials: int = 220,
    seeds: int = 10,
    json_out: Path | None = None,
    plot: Path | None = None,
    jobs: int | None = None,
    *,
    console: Console | None = None,
) -> list[ReplaySummary]:
    """Compare searchers on recorded landscapes: print tables, write JSON and a plot where asked.

    Args:
        jobs: number of worker processes, by default one for each core; the results do not depend on it.
        console: where the tables go, by default the standard output.

    Raises:
        UsageError: on an unknown searcher, numbers below 1, nothing to replay, or an output that cannot be written.
        LandscapeError: on a file that is no recorded landscape.
    """
    searchers = list(dict.fromkeys(searchers))
    _check_numbers(files, searchers, trials=trials, seeds=seeds, jobs=1 if jobs is None else jobs)
    for path in (json_out, plot):
        check_writable(path)
    if plot is not None:
        check_picture(plot)
    landscapes = _load(files)
    _check_searchers(searchers, landscapes[0].space)
    runs = _run_all(landscapes, searchers, trials, seeds, jobs)
    groups = [runs[i : i + seeds] for i in range(0, len(runs), seeds)]
    where = [landscape for landscape in landscapes for _ in searchers]
    summaries = [summarise(landscape, group, trials) for landscape, group in zip(where, groups, strict=True)]
    print_replay(summaries, len(searchers), console or Console())
    if json_out is not None:
        json_out.write_text(json.dumps({"results": [s.to_json() for s in summaries]}, indent=1) + "\n")
    if plot is not None:
        plot_replay(summaries, len(searchers), plot)
    return summaries


def _load(files: Sequence[Path]) -> list[Landscape]:
    """Read the files; what was left out of one is said in a line on the standard error."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        Console(stderr=True).print(f"warning: {message}", highlight=False, soft_wrap=True, markup=False)

    with warnings.catch_warnings():
        warnings.simplefilter("always", LandscapeWarning)
        warnings.showwarning = show
        return [load_landscape(path) for path in files]


def summarise(landscape: Landscape, runs: Sequence[ReplayRun], trials: int) -> ReplaySummary:
    """Summarise the runs of one searcher on one landscape, one run for each seed."""
    curves = np.array([[run.fraction_at(n) for n in range(1, trials + 1)] for run in runs])
    reached = float(np.median([run.trials_to(GOAL) for run in runs]))
    return ReplaySummary(
        landscape=landscape.name,
        searcher=runs[0].searcher,
        seeds=len(runs),
        trials=trials,
        space_size=len(landscape),
        fraction={mark: float(curves[:, mark - 1].mean()) for mark in marks_within(trials)},
        trials_to_95=reached if math.isfinite(reached) else None,
        engine_s_per_trial=sum(run.engine_s for run in runs) / max(1, sum(run.trials for run in runs)),
        curves=curves,
    )


def marks_within(trials: int) -> tuple[int, ...]:
    """The marks below a budget, and the budget itself."""
    return (*(mark for mark in MARKS if mark < trials), trials)


def print_replay(summaries: Sequence[ReplaySummary], n_searchers: int, console: Console) -> None:
    """Print one table for each landscape and, if there are several, one with the means over them.

    The best value of a column is bold.
    """
    groups = [summaries[i : i + n_searchers] for i in range(0, len(summaries), n_searchers)]
    for group in groups:
        first = group[0]
        title = f"{first.landscape}: {first.space_size:,} configurations, {first.trials} trials, {first.seeds} seeds"
        console.print(_table(title, [_row(s) for s in group], group))
    if len(groups) > 1:
        by_searcher = [[group[i] for group in groups] for i in range(n_searchers)]
        console.print(
            _table(f"Mean over {len(groups)} landscapes", [_mean_row(row) for row in by_searcher], summaries)
        )
    console.print(
        f"Fraction of the best on record, mean over seeds; a failed trial counts as a trial. To {GOAL:.0%}: median."
    )


def plot_replay(summaries: Sequence[ReplaySummary], n_searchers: int, path: Path) -> None:
    """Draw the median over seeds and the band between the quartiles, one panel for each landscape."""
    from matplotlib.figure import Figure  # slow to load, and only a plot needs it

    groups = [summaries[i : i + n_searchers] for i in range(0, len(summaries), n_searchers)]
    columns = min(3, math.ceil(math.sqrt(len(groups))))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, group in zip(axes, groups, strict=False):
        _panel(axis, group)
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, n_searchers), frameon=False)
    figure.savefig(path, dpi=150)


def _panel(axis: Any, group: Sequence[ReplaySummary]) -> None:
    floor = 1.0
    for i, summary in enumerate(group):
        low, median, high = np.quantile(summary.curves, (0.25, 0.5, 0.75), axis=0)
        x = np.arange(1, summary.trials + 1)
        axis.plot(x, median, color=f"C{i}", linewidth=1.8, label=summary.searcher)
        axis.fill_between(x, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
        floor = min(floor, float(median[min(7, len(median) - 1)]))
    axis.set(title=group[0].landscape, xlabel="trials", ylabel="fraction of the best", xlim=(1, None))
    axis.set_ylim(max(0.0, floor - 0.1), 1.01)
    axis.grid(alpha=0.3)


def _check_numbers(files: Sequence[Path], searchers: Sequence[str], **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"--{name} must be at least 1, got {number}")
    if not files or not searchers:
        raise UsageError(f"nothing to replay: expected files and searchers, got {len(files)} and {len(searchers)}")


def _check_searchers(names: Sequence[str], space: KnobSpace) -> None:
    """Make sure that a misspelt name is reported before anything runs."""
    for name in names:
        make_searcher(name, space, np.random.default_rng(0))


def _run_all(
    landscapes: Sequence[Landscape], searchers: Sequence[str], trials: int, seeds: int, jobs: int | None
) -> list[ReplayRun]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("replaying", total=len(landscapes) * len(searchers) * seeds)
        return replay_all(
            landscapes, searchers, trials=trials, seeds=seeds, jobs=jobs, done=lambda: progress.advance(bar)
        )


Row = tuple[str, dict[int, float], str, float]
"""Searcher, fraction at each mark, trials to the goal, engine seconds for each trial."""


def _row(summary: ReplaySummary) -> Row:
    reached = "never" if summary.trials_to_95 is None else f"{summary.trials_to_95:.0f}"
    return summary.searcher, summary.fraction, reached, summary.engine_s_per_trial


def _mean_row(summaries: Sequence[ReplaySummary]) -> Row:
    fraction = {mark: float(np.mean([s.fraction[mark] for s in summaries])) for mark in summaries[0].fraction}
    reached = sum(s.trials_to_95 is not None for s in summaries)
    engine = float(np.mean([s.engine_s_per_trial for s in summaries]))
    return summaries[0].searcher, fraction, f"on {reached} of {len(summaries)}", engine


def _table(title: str, rows: Sequence[Row], summaries: Sequence[ReplaySummary]) -> Table:
    marks = list(summaries[0].fraction)
    table = Table(title=title, title_justify="left")
    table.add_column("searcher")
    for mark in marks:
        table.add_column(f"@{mark}", justify="right")
    table.add_column(f"to {GOAL:.0%}", justify="right")
    table.add_column("engine ms/trial", justify="right")
    best = {mark: max(f"{row[1][mark]:.3f}" for row in rows) for mark in marks}
    for name, fraction, reached, engine in rows:
        shown = {mark: f"{value:.3f}" for mark, value in fraction.items()}
        cells = [f"[bold]{shown[mark]}[/bold]" if shown[mark] == best[mark] else shown[mark] for mark in marks]
        table.add_row(name, *cells, reached, f"{engine * 1e3:.1f}")
    return table
