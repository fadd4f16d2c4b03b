"""Makes the numbers, the table and the picture of experiment 1 from the runs of all tuners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.common.experiment_stats import Floats, Run, bootstrap, geomean_of_means, mean_of_means
from scripts.common.tables import markdown

GOALS = (0.95, 0.99)
BASELINE = "xgb-64"


class Comparison:
    """Runs of several tuners on several tasks; the best of a task is the best that any of them found.

    Some runs never reach a goal. Such a run counts with all that it spent. If its tuner gave up, it counts with the
    most that any run of the task spent. So a mean is only a lower bound if the `share` of runs that reached the goal
    is below 1.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self.tasks = list(dict.fromkeys(run.task for run in runs))
        self.tuners = list(dict.fromkeys(run.tuner for run in runs))
        self.best_s = {
            task: min(float(r.best_s.min(initial=np.inf)) for r in runs if r.task == task) for task in self.tasks
        }
        self.equal_s = {task: self._equal_time(task) for task in self.tasks}

    def of(self, task: str, tuner: str) -> list[Run]:
        return [run for run in self.runs if (run.task, run.tuner) == (task, tuner)]

    def _equal_time(self, task: str) -> float:
        """The time when the first tuner, by the median of its runs, had spent its trials.

        Until then all tuners are at work.
        """
        ends = [np.median([r.at_s[-1] for r in runs if r.at_s]) for t in self.tuners if (runs := self.of(task, t))]
        return float(min(ends))

    def trials_to(self, task: str, tuner: str, goal: float) -> Floats:
        """Trials until a run reached the fraction `goal` of the best, `[seeds]`."""
        most = max(len(r.seconds) for r in self.runs if r.task == task)
        return self._spent(task, tuner, goal, lambda run, i: float(i + 1), most)

    def seconds_to(self, task: str, tuner: str, goal: float) -> Floats:
        """Optimisation time until a run reached the fraction `goal` of the best, `[seeds]`."""
        most = max(r.at_s[-1] for r in self.runs if r.task == task and r.at_s)
        return self._spent(task, tuner, goal, lambda run, i: run.at_s[i], most)

    def _spent(self, task: str, tuner: str, goal: float, cost: Callable[[Run, int], float], most: float) -> Floats:
        goal_s, spent = self.best_s[task] / goal, []
        for run in self.of(task, tuner):
            at = run.reached(goal_s)
            spent.append(cost(run, at) if at is not None else most if run.gave_up else cost(run, len(run.seconds) - 1))
        return np.array(spent, dtype=np.float64)

    def share(self, task: str, tuner: str, goal: float) -> float:
        """Share of the runs that reached the fraction `goal` of the best."""
        return float(np.mean([r.reached(self.best_s[task] / goal) is not None for r in self.of(task, tuner)]))

    def at_equal_time(self, task: str, tuner: str) -> Floats:
        """Best of the task / best found at the equal time, `[seeds]`."""
        return np.array([self.best_s[task] / r.best_at(self.equal_s[task]) for r in self.of(task, tuner)])

    def final(self, task: str, tuner: str) -> Floats:
        """Best of the task / best found with the whole budget, `[seeds]`."""
        return np.array([self.best_s[task] / r.best_s.min(initial=np.inf) for r in self.of(task, tuner)])

    def complete(self, tuner: str) -> bool:
        """Whether the tuner ran on every task."""
        return all(self.of(task, tuner) for task in self.tasks)


def summarise(comparison: Comparison, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One row for each tuner, over all tasks it ran on, with 95 % bootstrap intervals over seeds."""
    rows = []
    for tuner in comparison.tuners:
        tasks = [task for task in comparison.tasks if comparison.of(task, tuner)]
        row: dict[str, Any] = {"tuner": tuner, "tasks": len(tasks), "runs": len(comparison.of(tasks[0], tuner))}
        for goal in GOALS:
            name = f"{goal:.0%}"
            trials = [comparison.trials_to(t, tuner, goal) for t in tasks]
            seconds = [comparison.seconds_to(t, tuner, goal) for t in tasks]
            row[f"share_{name}"] = float(np.mean([comparison.share(t, tuner, goal) for t in tasks]))
            row[f"trials_{name}"] = vars(bootstrap(trials, geomean_of_means, rng))
            row[f"seconds_{name}"] = vars(bootstrap(seconds, geomean_of_means, rng))
        row["equal_time"] = vars(bootstrap([comparison.at_equal_time(t, tuner) for t in tasks], mean_of_means, rng))
        row["final"] = vars(bootstrap([comparison.final(t, tuner) for t in tasks], mean_of_means, rng))
        row["tuner_s_per_trial"] = _tuner_s_per_trial([r for t in tasks for r in comparison.of(t, tuner)])
        rows.append(row)
    return rows


def _tuner_s_per_trial(runs: Sequence[Run]) -> float:
    return sum(r.tuner_s for r in runs) / max(1, sum(len(r.seconds) for r in runs))


def per_task(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each tuner on each task: means over seeds."""
    return [
        {
            "task": task,
            "tuner": tuner,
            **{f"trials_{g:.0%}": float(comparison.trials_to(task, tuner, g).mean()) for g in GOALS},
            **{f"seconds_{g:.0%}": float(comparison.seconds_to(task, tuner, g).mean()) for g in GOALS},
            **{f"share_{g:.0%}": comparison.share(task, tuner, g) for g in GOALS},
            "equal_time": float(comparison.at_equal_time(task, tuner).mean()),
            "final": float(comparison.final(task, tuner).mean()),
        }
        for task in comparison.tasks
        for tuner in comparison.tuners
        if comparison.of(task, tuner)
    ]


def table(rows: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """Make a table in Markdown: one row for each tuner, and how many times less time it took than the baseline."""
    base = next((row for row in rows if row["tuner"] == BASELINE), rows[0])
    names = [f"{goal:.0%}" for goal in GOALS]
    head = ["tuner", "what it is", *(f"trials to {n}" for n in names), *(f"s to {n}" for n in names)]
    head += [f"times less time to {n} than {base['tuner']}" for n in names]
    head += ["best at equal time", "best at the end", "tuner s/trial"]
    lines: list[list[str]] = []
    for row in rows:
        cells = [row["tuner"], about.get(row["tuner"], "")]
        for what, form in (("trials", "{:.0f}"), ("seconds", "{:.0f}")):
            cells += [_cell(row, what, name, form) for name in names]
        cells += [_ratio(base, row, name) for name in names]
        cells += [f"{row[k]['mean']:.3f} ({row[k]['low']:.3f}-{row[k]['high']:.3f})" for k in ("equal_time", "final")]
        lines.append([*cells, f"{row['tuner_s_per_trial']:.3f}"])
    return markdown(head, lines)


def _cell(row: Mapping[str, Any], what: str, name: str, form: str) -> str:
    """Mean and interval; if not all runs reached the goal, as a lower bound with the share of runs that did."""
    value, share = row[f"{what}_{name}"], row[f"share_{name}"]
    text = f"{form.format(value['mean'])} ({form.format(value['low'])}-{form.format(value['high'])})"
    return text if share == 1 else f">= {text}, {share:.0%} of runs"


def _ratio(base: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    if base["tasks"] != row["tasks"]:
        return "-"
    ratio = base[f"seconds_{name}"]["mean"] / row[f"seconds_{name}"]["mean"]
    certain = row[f"share_{name}"] == 1
    return f"{'' if certain else '<= '}{'>= ' if certain and base[f'share_{name}'] < 1 else ''}{ratio:.2f}"


def plot(comparison: Comparison, path: Path) -> None:
    """Draw one panel for each task: the fraction of the best (mean over seeds) over the optimisation time."""
    from matplotlib.figure import Figure

    columns = min(4, len(comparison.tasks))
    rows = -(-len(comparison.tasks) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, task in zip(axes, comparison.tasks, strict=False):
        _panel(axis, comparison, task)
    for axis in axes[len(comparison.tasks) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=120)


def _panel(axis: Any, comparison: Comparison, task: str) -> None:
    end_s = max(r.at_s[-1] for r in comparison.runs if r.task == task and r.at_s)
    grid = np.linspace(0, end_s, 200)[1:]
    for i, tuner in enumerate(comparison.tuners):
        runs = comparison.of(task, tuner)
        if runs:
            curves = np.array([[comparison.best_s[task] / r.best_at(t) for t in grid] for r in runs])
            style = "-" if i % 2 else "--"
            axis.plot(grid, curves.mean(axis=0), style, color=f"C{i % 10}", linewidth=1.4, label=tuner)
    axis.axvline(comparison.equal_s[task], color="0.7", linewidth=0.8)
    axis.set(title=task, xlabel="optimisation time, s", ylabel="fraction of the best", ylim=(0.6, 1.01))
    axis.grid(alpha=0.3)
