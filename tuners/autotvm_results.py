"""Turns the answers of AutoTVM's builders and runners into trials, and notices when a device stops answering."""

from __future__ import annotations

import importlib
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chameleon.search import Status, Trial
from tuners.outcomes import FAILED_S, MESSAGE_LENGTH, environment_cause

ERRORS = (
    "no_error",
    "instantiation_error",
    "compile_host",
    "compile_device",
    "runtime_device",
    "wrong_answer",
    "build_timeout",
    "run_timeout",
    "unknown_error",
)
"""AutoTVM's `MeasureErrorNo` in lower case, by number; the numbers have not changed from TVM 0.5 to 0.19."""

_BUILDING = ("instantiation_error", "compile_host", "compile_device", "build_timeout")
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception)\b")
_SILENT = ("runtime_device", "run_timeout", "unknown_error")


@dataclass(frozen=True)
class Outcome:
    """One result of AutoTVM.

    Attributes:
        trial: for the searcher.
        error: one of `ERRORS`.
        silent: whether nothing shows that the device was there: it never answered, or the connection broke. It looks
            the same when a kernel hangs or crashes.
    """

    trial: Trial
    error: str
    silent: bool

    @property
    def built(self) -> bool:
        """Whether the build succeeded, so that the rest was up to the device."""
        return self.error not in _BUILDING

    @property
    def fault(self) -> str | None:
        """What is wrong with the environment; None if the configuration may be to blame."""
        return environment_cause(self.trial.message) if self.trial.seconds is None else None


def outcome_of(config: Sequence[int], result: Any) -> Outcome:
    """The outcome that a `MeasureResult` reports for a configuration `[n_knobs]`.

    The costs of a failure are exceptions; from TVM 0.9 on, a traceback comes before them. If the result was read from
    a log, the cost of a failure is 1e9.
    """
    config = tuple(int(d) for d in config)
    number = int(result.error_no)
    error = ERRORS[number] if 0 <= number < len(ERRORS) else "unknown_error"
    timings = {"all": float(result.all_cost)} if result.all_cost else {}
    if number == 0:
        seconds = float(np.mean([float(c) for c in result.costs])) if len(result.costs) else 0.0
        if 0 < seconds < FAILED_S:
            return Outcome(Trial(config, Status.OK, seconds, timings=timings), error, False)
        return Outcome(
            Trial(config, Status.RUN_ERROR, None, f"no usable run time: {seconds}", timings), "unknown_error", False
        )
    status = Status.TIMEOUT if "timeout" in error else Status.BUILD_ERROR if error in _BUILDING else Status.RUN_ERROR
    return Outcome(Trial(config, status, None, message_of(result.costs), timings), error, error in _SILENT)


def message_of(costs: Any) -> str:
    """What went wrong, in one line, from a failure's nested (traceback, exception) pairs.

    TVM puts its message below a long trace of its own. AutoTVM cuts the exception's text off before that message.
    """
    parts = list(_parts(costs))
    if not parts or isinstance(parts[-1], (int, float)):
        return "read from a log, which keeps no messages"
    for text in map(str, parts):
        named = [line for line in text.splitlines() if _ERROR_LINE.match(line)]
        if named:
            return named[-1].strip()[:MESSAGE_LENGTH]
    text = next(iter(str(parts[-1]).strip().splitlines()), "")
    named = f"{type(parts[-1]).__name__}: {text}" if isinstance(parts[-1], BaseException) else text
    return named.strip(": ")[:MESSAGE_LENGTH]


def _parts(costs: Any) -> Iterator[Any]:
    if isinstance(costs, (tuple, list)):
        for part in costs:
            yield from _parts(part)
    else:
        yield costs


def measured_pair(task: Any, config: Any, seconds: float) -> tuple[Any, Any]:
    """AutoTVM's record of a configuration that ran: its `MeasureInput` and `MeasureResult`."""
    measure = importlib.import_module("tvm.autotvm.measure")
    return measure.MeasureInput(task.target, task, config), measure.MeasureResult((seconds,), 0, 0.0, time.time())


@dataclass
class Outages:
    """Decides whether runs failed because the device is gone or because of their configurations.

    AutoTVM reports a server that died as runs that failed or took too long. Kernels that crash or hang are reported in
    the same way. So such outcomes are held back until the device answers again. Then the length of the row is compared
    with how often runs have failed before. If so long a row is unlikely, the device is to blame: the first run of the
    row may have brought it down, and the other runs say nothing about their configurations. A device that has not
    answered even once is not blamed.

    Args:
        unlikely: a row of failures with a probability below this is not taken for a coincidence.
    """

    unlikely: float = 0.001
    held: list[Outcome] = field(default_factory=list)
    _run: int = 0
    _failed: int = 0

    @property
    def suspected(self) -> bool:
        """Whether the device seems to be gone."""
        share = (1 + self._failed) / (2 + self._run)  # share of the runs that fail, by Laplace's rule
        answered = self._run > self._failed
        return answered and len(self.held) > 1 and len(self.held) * math.log(share) < math.log(self.unlikely)

    def settle(self, outcome: Outcome) -> tuple[list[Outcome], list[Outcome]]:
        """Takes the next outcome; returns those to learn from now, and those that the device is to blame for."""
        if not outcome.built:
            return [outcome], []
        if outcome.silent:
            self.held.append(outcome)
            return [], []
        known, lost = self.close()
        self._run += 1
        return [*known, outcome], lost

    def close(self) -> tuple[list[Outcome], list[Outcome]]:
        """Decides about the outcomes held back, once the device has answered or was replaced; returns as `settle`."""
        guilty = 1 if self.suspected else len(self.held)
        known, lost, self.held = self.held[:guilty], self.held[guilty:], []
        self._run += len(known)
        self._failed += len(known)
        return known, lost
