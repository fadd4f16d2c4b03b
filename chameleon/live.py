"""Shows the progress of a job: a live table on a terminal, a line now and then elsewhere, or JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from chameleon.errors import described
from chameleon.wording import task_text, time_text

if TYPE_CHECKING:  # importing TVM takes seconds, which are to be shown
    from chameleon.jobs.run_folder import TuneReport
    from chameleon.jobs.session import Session
    from chameleon.jobs.task_tuner import TaskTuner


class ProgressKind(str, Enum):
    """How progress is shown."""

    AUTO = "auto"  # `rich` where the output is a terminal, otherwise `plain`
    RICH = "rich"  # a table that changes in its place
    PLAIN = "plain"  # a line now and then
    JSON = "json"  # an event a line, for programs


class Progress:
    """What a job tells while it takes its time; use as a context manager.

    Attributes:
        say: takes messages for people and stages, see `chameleon.jobs.stages`.
        watch: is called with the session before each batch and after each trial.
        console: for the result; None where programs read the output.
    """

    def __init__(self, kind: ProgressKind, out: Console, err: Console) -> None:
        self._events: Events | None = None
        self._elsewhere = ExitStack()
        if kind is ProgressKind.JSON:
            self.console = None
            self.say = self.watch = self._events = Events(sys.stdout)
            return
        if kind is not ProgressKind.AUTO:
            terminal = kind is ProgressKind.RICH
            out, err = Console(force_terminal=terminal), Console(stderr=True, force_terminal=terminal)
        self.console, self.say, self.watch = out, Notes(err), Watcher(out)

    def ended(self, model: str, folder: Path | None, report: TuneReport | None, error: str = "") -> None:
        """One model is done with: its report, or why it failed."""
        if self._events:
            self._events.end(model, folder, report, error)

    def event(self, name: str, **content: Any) -> None:
        """Tell programs something; people are not told."""
        if self._events:
            self._events.write(name, **content)

    def __enter__(self) -> Progress:
        if self._events:  # whatever a library prints would be no event
            self._elsewhere.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(self.watch, Watcher):
            self.watch.stop()
        if self._events:
            self._events.exit(error)
        self._elsewhere.close()


class Events:
    """Writes one JSON object a line; docs/tune.md lists them. It is both what is told messages and what watches."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._session: Session | None = None
        self._task: int | None = None
        self._seen: list[_Seen] = []

    def __call__(self, told: str | Session) -> None:
        if isinstance(told, str):
            self.write("message", text=told)
        else:
            self._watch(told)

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Tell that a stage begins, and how long it took."""
        start_s = time.monotonic()
        self.write("stage", text=text)
        yield
        self.write("stage", text=text, took_s=round(time.monotonic() - start_s, 3))

    def _watch(self, session: Session) -> None:
        if session is not self._session:
            self._begin(session)
        if session.current is not None and session.current != self._task:
            self.write("task", model=session.model, task=session.tasks[session.current].task.name)
        self._task = session.current
        for tuner, seen in zip(session.tasks, self._seen, strict=True):
            self._task_news(session, tuner, seen)

    def _begin(self, session: Session) -> None:
        self._session, self._task = session, None
        self._seen = [_Seen(len(t.trials), t.now_s) for t in session.tasks]
        tasks = [{"task": t.task.name, "key": t.key, "weight": t.task.weight} for t in session.tasks]
        config, before = session.config, round(session.before_s, 3)
        self.write(
            "run",
            model=session.model,
            target=session.target,
            searcher=config.searcher,
            seed=config.seed,
            trials=config.trials,
            time_budget_s=config.time_budget_s,
            trials_before=session.trials,
            elapsed_s=before,
            tasks=tasks,
        )

    def _task_news(self, session: Session, tuner: TaskTuner, seen: _Seen) -> None:
        where = {"model": session.model, "task": tuner.task.name}
        for trial in tuner.trials[seen.trials :]:
            self.write("trial", **where, elapsed_s=round(session.elapsed_s, 3), **trial.to_json())
        seen.trials = len(tuner.trials)
        if tuner.now_s is not None and tuner.now_s != seen.now_s:
            seen.now_s = tuner.now_s
            times_s = [t.task.weight * t.now_s for t in session.tasks if t.now_s is not None]
            together_s = sum(times_s) if len(times_s) == len(session.tasks) else None
            self.write("best", **where, trials=session.trials, seconds=tuner.now_s, together_s=together_s)

    def end(self, model: str, folder: Path | None, report: TuneReport | None, error: str) -> None:
        """Tell that a model is done with."""
        content = report.to_json() if report else None
        self.write("end", model=model, folder=folder and str(folder), error=error or None, report=content)

    def exit(self, error: BaseException | None) -> None:
        """Tell that the command ends: the last line."""
        self.write("exit", error=None if error is None else str(error) or described(error))

    def write(self, event: str, **content: Any) -> None:
        """Write one line."""
        self._stream.write(json.dumps({"event": event, **content}) + "\n")
        self._stream.flush()


@dataclass
class _Seen:
    """What was told of a task."""

    trials: int
    now_s: float | None


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
    """Shows a tuning session: call it with the session."""

    def __init__(self, console: Console, every_s: float = 15.0) -> None:
        self._console = console
        self._every_s = every_s
        self._last_s = 0.0
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def stop(self) -> None:
        """Give the terminal to what comes next."""
        if self._live:
            self._live.stop()

    def __call__(self, session: Session) -> None:
        now = time.monotonic()
        if self._live:
            if session.current is None:  # nothing is measured any more
                self.stop()
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
        task_text(tuner.task.name),
        str(tuner.task.weight),
        f"{len(tuner.best_s)} (shared)" if tuner.shared else str(len(tuner.best_s)),
        time_text(seconds * 1e3) if seconds else "-",
        f"{tuner.task.flop / seconds / 1e9:.1f}" if seconds and tuner.task.flop else "-",
        failures_text(tuner.failures),
    )
