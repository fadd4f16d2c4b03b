"""Ends a run in which all candidates fail for one reason."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from chameleon.errors import ChameleonError
from chameleon.jobs.task_tuner import TaskTuner
from chameleon.search import Trial
from chameleon.workers.faults import last_line
from tuners.outcomes import failure_reason

logger = logging.getLogger("chameleon")


class FailureRow:
    """Notices that all candidates fail for the same reason, which then is hardly the candidates' own.

    Args:
        longest: so many equal failures in a row, without a success between them, are too many.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._row: list[tuple[TaskTuner, Trial]] = []

    def note(self, tuner: TaskTuner, trial: Trial, others: Sequence[TaskTuner]) -> None:
        """Take the next trial of one of the tasks.

        Raises:
            ChameleonError: if the row is too long and all tasks are affected. Where it is one task alone, and others
                succeed, only this task is given up.
        """
        reason = failure_reason(trial.message) if trial.seconds is None else None
        if self._row and (reason is None or reason != failure_reason(self._row[-1][1].message)):
            self._row = []
        if reason is None:
            return
        self._row.append((tuner, trial))
        if len(self._row) < self._longest:
            return
        text = f"{len(self._row)} candidates in a row failed with {reason!r}: {last_line(trial.message)}"
        alone = all(t is tuner for t, _ in self._row)
        self._row = []
        if alone and tuner.best is None and any(t.best for t in others):
            logger.warning("%s is given up: %s", tuner.task.name, text)
            tuner.give_up()
            return
        raise ChameleonError(
            f"{text}; what every candidate fails at is seldom the candidates' fault. Once the cause is removed, "
            "`--retry-failed` measures them again (`max_failures_in_row` in the configuration: how many are too many)"
        )
