"""Steps that a network can do without, such as a better schedule for one kernel or a rewrite of one place.

TVM raises many kinds of errors where such a step does not fit a kernel. Whatever a step raises, it only means that the
step is not possible for this kernel or place. `if_possible` is the one way to say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")


def if_possible(step: str, place: object, run: Callable[[], T], otherwise: U) -> T | U:
    """Take an optional step; if it raises anything, note that at debug level and do without it.

    Args:
        step: what is tried, for the log.
        place: the kernel or the site that it is tried for, for the log.
        run: takes the step. It must leave everything as it is until it returns.
        otherwise: the result if the step is not possible.
    """
    try:
        return run()
    except Exception as error:  # from ScheduleError over IndexError to InternalError
        logger.debug("%s is not possible for %s: %s: %s", step, place, type(error).__name__, _first_line(error))
        return otherwise


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]
