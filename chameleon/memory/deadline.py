"""A time limit that all searches of one command share: orders, rewrites, and the places of tensors.

Each search gets what is left. A search that begins after the end still gives a valid result, the first that it finds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

from chameleon.serenity.graph import Graph
from chameleon.serenity.order.schedule import Schedule, ScheduleOptions, schedule

LEAST_S = 0.05
"""Seconds that a search gets when no time is left."""

SEARCH_LIMIT_S = 5.0
"""Seconds for the order of each graph that a search of rewrites looks at."""


class Deadline:
    """A limit that begins now.

    Args:
        limit_s: in seconds; by default there is none.
    """

    def __init__(self, limit_s: float = math.inf) -> None:
        self.limit_s = limit_s
        self._end_s = time.perf_counter() + limit_s

    @property
    def left_s(self) -> float:
        """The seconds until the end; `LEAST_S` or more."""
        return max(self._end_s - time.perf_counter(), LEAST_S)

    def passed(self) -> bool:
        """Whether the end was reached."""
        return time.perf_counter() >= self._end_s

    def part(self, share: float) -> Deadline:
        """A limit that begins now and takes this share of the time that is left."""
        return Deadline(share * self.left_s)

    def solver(self, at_most_s: float = math.inf) -> Callable[[Graph], Schedule]:
        """A function that orders graphs, each in the time that is left and at most in so many seconds.

        It remembers its orders, so that a graph whose order took long is not ordered again when less time is left.
        """
        return cache(lambda graph: schedule(graph, ScheduleOptions(time_limit_s=min(self.left_s, at_most_s))))
