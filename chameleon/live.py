"""Shows the progress of a job: a live table or a spinner on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from chameleon.wording import time_text

if TYPE_CHECKING:  # importing TVM takes seconds, which are to be shown
    from chameleon.jobs.session import Session
    from chameleon.jobs.task_tuner import TaskTuner


class Notes:
    """Writes messages for people, and shows what a job is doing and for how long.

    Args:
        worth_s: a stage that took less is not mentioned again when it ends.
    """

    def __init__(self, console: Console, worth_s: float = 1.0) -> None:
        self._console = console
        self._worth_s = worth_s

    def __call__(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Show a stage while this context lasts: a spinner with seconds on a terminal, otherwise a line."""
        start_s = time.monotonic()
        if self._console.is_terminal:
            running = _Running(text, start_s)
            with Live(running, console=self._console, refresh_per_second=4, transient=True, redirect_stdout=False):
                yield
        else:
            self(text)
            yield
        took_s = time.monotonic() - start_s
        if took_s >= self._worth_s:
            self(f"{text}: {took_s:.1f} s")


class _Running:
    """A spinner, a text and the seconds since a start; rendered anew at each refresh."""

    def __init__(self, text: str, start_s: float) -> None:
        self._text, self._start_s = text, start_s
        self._spinner = Spinner("dots")

    def __rich__(self) -> Spinner:
        self._spinner.update(text=Text(f"{self._text}: {time.monotonic() - self._start_s:.0f} s"))
        return self._spinner


class Watcher:
    """Shows a tuning session; use as a context manager and call it with the session."""

    def __init__(self, console: Console, every_s: float = 15.0) -> None:
        self._console = console
        self._every_s = every_s
        self._last_s = 0.0
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, session: Session) -> None:
        now = time.monotonic()
        if self._live:
            if session.current is None:  # nothing is measured any more: what comes next has the terminal
                self._live.stop()
                return
            if not self._live.is_started:
                self._live.start()
            if now - self._last_s >= 0.5:
                self._last_s = now
                self._live.update(Group(session_table(session), headline(session)))
        elif session.current is not None and now - self._last_s >= self._every_s:
            self._last_s = now
            self._console.print(headline(session), soft_wrap=True)


def headline(session: Session) -> Text:
    """Trials, the sum of the best times, failures and the time left, in one line."""
    times_s = [t.task.weight * t.now_s for t in session.tasks if t.now_s is not None]
    left = session.left_s
    parts = [
        f"{session.elapsed_s:5.0f} s",
        f"{session.trials} trials",
        f"{len(times_s)}/{len(session.tasks)} tasks measured, together {time_text(sum(times_s) * 1e3)}",
        f"failures: {failures_text(session.failures)}",
    ]
    if left is not None:
        forecast = session.forecast
        gain = f", expected to gain {forecast:.1%}" if forecast is not None else ""
        parts.append(f"about {left:.0f} s left{gain}")
    return Text(" | ".join(parts))


def session_table(session: Session) -> Table:
    """One row for each task: occurrences, trials, best time and throughput, failures by reason."""
    table = Table(title=f"searcher {session.config.searcher}, seed {session.config.seed}")
    table.add_column("task", overflow="fold")
    for name in ("weight", "trials", "best", "GFLOP/s"):
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
        time_text(seconds * 1e3) if seconds else "-",
        f"{tuner.task.flop / seconds / 1e9:.1f}" if seconds and tuner.task.flop else "-",
        failures_text(tuner.failures),
    )
