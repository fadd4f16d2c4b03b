"""Shows the progress while a network is tuned: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chameleon.jobs.session import Session, TaskTuner


class Watcher:
    """Shows a tuning session; use as a context manager and call it with the session."""

    def __init__(self, console: Console, every_s: float = 15.0) -> None:
        self._console = console
        self._every_s = every_s
        self._last_s = 0.0
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Watcher:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, session: Session) -> None:
        now = time.monotonic()
        if self._live:
            if now - self._last_s >= 0.5:
                self._last_s = now
                self._live.update(Group(session_table(session), headline(session)))
        elif now - self._last_s >= self._every_s:
            self._last_s = now
            self._console.print(headline(session), soft_wrap=True)


def headline(session: Session) -> Text:
    """Trials, the sum of the best times, failures and the time left, in one line."""
    times_s = [t.task.weight * t.now_s for t in session.tasks if t.now_s is not None]
    left = session.left_s
    parts = [
        f"{session.elapsed_s:5.0f} s",
        f"{session.trials} trials",
        f"{len(times_s)}/{len(session.tasks)} tasks measured, together {sum(times_s) * 1e3:.2f} ms",
        f"failures: {failures_text(session.failures)}",
    ]
    if left is not None:
        parts.append(f"about {left:.0f} s left")
    return Text(" | ".join(parts))


def session_table(session: Session) -> Table:
    """One row for each task: occurrences, trials, best time and throughput, failures by reason."""
    table = Table(title=f"searcher {session.config.searcher}, seed {session.config.seed}")
    table.add_column("task", overflow="fold")
    for name in ("weight", "trials", "best us", "GFLOP/s"):
        table.add_column(name, justify="right")
    table.add_column("failures")
    for i, tuner in enumerate(session.tasks):
        table.add_row(*_row(tuner), style="bold" if i == session.current else "")
    return table


def failures_text(failures: Counter[str]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in failures.most_common()) or "none"


def _row(tuner: TaskTuner) -> tuple[str, ...]:
    seconds = tuner.now_s
    return (
        tuner.task.name,
        str(tuner.task.weight),
        f"{len(tuner.best_s)} (shared)" if tuner.shared else str(len(tuner.best_s)),
        f"{seconds * 1e6:.1f}" if seconds else "-",
        f"{tuner.task.flop / seconds / 1e9:.1f}" if seconds and tuner.task.flop else "-",
        failures_text(tuner.failures),
    )
