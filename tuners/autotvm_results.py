"""What AutoTVM's builders and runners answered, as trials; and what to think of a device that stops answering."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chameleon.search import Status, Trial
from tuners.outcomes import FAILED_S, MESSAGE_LENGTH

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
_SILENT = ("runtime_device", "run_timeout", "unknown_error")


@dataclass(frozen=True)
class Outcome:
    """One result of AutoTVM.

    Attributes:
        trial: for the searcher.
        error: one of `ERRORS`.
        silent: whether nothing shows that the device was there: it never answered, or the connection broke. A kernel that
            hangs or crashes looks the same.
    """

    trial: Trial
    error: str
    silent: bool

    @property
    def built(self) -> bool:
        """Whether it was up to the device."""
        return self.error not in _BUILDING


def outcome_of(config: Sequence[int], result: Any) -> Outcome:
    """The outcome that a `MeasureResult` reports for a configuration `[n_knobs]`.

    A failure's costs are exceptions, with a traceback before them from TVM 0.9 on, and 1e9 where they were read from a log.
    """
    config = tuple(int(d) for d in config)
    number = int(result.error_no)
    error = ERRORS[number] if 0 <= number < len(ERRORS) else "unknown_error"
    timings = {"all": float(result.all_cost)} if result.all_cost else {}
    if number == 0:
        seconds = float(np.mean([float(c) for c in result.costs])) if len(result.costs) else 0.0
        if 0 < seconds < FAILED_S:
            return Outcome(Trial(config, Status.OK, seconds, timings=timings), error, False)
        return Outcome(Trial(config, Status.RUN_ERROR, None, f"no usable run time: {seconds}", timings), "unknown_error", False)
    status = Status.TIMEOUT if "timeout" in error else Status.BUILD_ERROR if error in _BUILDING else Status.RUN_ERROR
    return Outcome(Trial(config, status, None, message_of(result.costs), timings), error, error in _SILENT)


def message_of(costs: Any) -> str:
    """The innermost of a failure's nested (traceback, exception) pairs, as text."""
    reason = costs
    while isinstance(reason, (tuple, list)) and reason:
        reason = reason[-1]
    if isinstance(reason, (int, float)):
        return "read from a log, which keeps no messages"
    text = str(reason).strip()
    named = f"{type(reason).__name__}: {text}" if isinstance(reason, BaseException) else text
    return named.strip(": ")[:MESSAGE_LENGTH]


def measured_pair(task: Any, config: Any, seconds: float) -> tuple[Any, Any]:
    """AutoTVM's record of a configuration that ran."""
    measure = importlib.import_module("tvm.autotvm.measure")
    return measure.MeasureInput(task.target, task, config), measure.MeasureResult((seconds,), 0, 0.0, time.time())


@dataclass
class Outages:
    """Tells a device that is gone from configurations that make it fail.

    AutoTVM reports a server that died as a run that failed or took too long, like a kernel that crashes or hangs. Such outcomes
    are held back until the device answers again. If so many in a row are unlikely given how often running has failed before,
    they are put down to the device: they say nothing about their configurations. Until it has answered once, a device is not
    blamed.

    Args:
        unlikely: the probability below which a row of failures is no coincidence.
    """

    unlikely: float = 0.01
    held: list[Outcome] = field(default_factory=list)
    _run: int = 0
    _failed: int = 0

    def settle(self, outcome: Outcome) -> tuple[list[Outcome], list[Outcome]]:
        """Takes the next outcome; which ones may be learnt from now, and which ones the device is to blame for."""
        if not outcome.built:
            return [outcome], []
        if outcome.silent:
            self.held.append(outcome)
            return [], []
        held, self.held = self.held, []
        share = (1 + self._failed) / (2 + self._run)  # of runs that fail, by Laplace's rule
        gone = self._run > self._failed and len(held) * math.log(share) < math.log(self.unlikely)
        self._run += 1
        if gone:
            return [outcome], held
        self._run += len(held)
        self._failed += len(held)
        return [*held, outcome], []
