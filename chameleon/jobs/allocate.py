"""Decides which task of a network to measure next: the one whose next second of tuning is expected to save most time.

The rule is that of Ansor's task scheduler (Zheng et al. 2020, sec. 6.2) for one network. It follows the gradient of
the network's latency with respect to trials: how much the latency falls with one more trial of a task. The estimate of
this gradient mixes two numbers: what the last trials gained, and what an optimist would still hope for.

We differ from Ansor in three ways:

- The gain of a trial is divided by what a trial of the task costs. Trials differ manyfold in their seconds: a
  softmax builds in a fraction of the time of a large convolution.
- The hope is bounded. A task may hope for at most `headroom` times the best throughput seen among tasks of the same
  kind. So a task that already runs as well as the others of its kind gets few trials.
- A task that only ever failed is set aside after `max_barren` trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AllocationConfig:
    """How trials are spread over tasks."""

    alpha: float = 0.2  # weight of what the last trials gained; the hope for the next ones has the rest
    window: int = 32  # how many of the last trials the gain is taken over
    headroom: float = 1.5  # how much faster than the best of its kind a task may hope to become
    max_barren: int = 64  # a task without any success after so many trials is set aside


@dataclass(frozen=True)
class Progress:
    """The result of tuning one task so far.

    Attributes:
        kind: tasks of the same kind (conv2d, dense, ...) are compared by throughput.
        weight: how often the task occurs in the network.
        flop: floating-point operations of one run, 0 if unknown.
        best_s: after each trial the best time so far in seconds, inf before the first success.
        exhausted: nothing is left to measure.
        trial_s: seconds that a trial takes, building and running.
    """

    kind: str
    weight: int
    flop: float
    best_s: Sequence[float]
    exhausted: bool = False
    trial_s: float = 1.0

    @property
    def now_s(self) -> float:
        return self.best_s[-1] if self.best_s else float("inf")


def next_task(tasks: Sequence[Progress], config: AllocationConfig = AllocationConfig()) -> int | None:
    """The position of the task to measure next, `None` if there is none.

    A task is left out if it is exhausted, or if it is barren: `max_barren` trials without any success. Tasks that have
    not been measured come first. Of these, the one with the most floating-point operations is taken.
    """
    open_ = [i for i, t in enumerate(tasks) if not t.exhausted and not is_barren(t, config)]
    if not open_:
        return None
    fresh = [i for i in open_ if not tasks[i].best_s]
    if fresh:
        return max(fresh, key=lambda i: tasks[i].weight * tasks[i].flop)

    def gain_per_second(i: int) -> float:
        return expected_gain_s(tasks[i], _best_throughput(tasks, tasks[i].kind), config) / tasks[i].trial_s

    return max(open_, key=gain_per_second)


def forecast_gain(curve: Sequence[tuple[float, float]], left: float) -> float | None:
    """By which share the network's time is expected to fall until the budget is used up.

    Tuning gains about as much with each doubling of the time spent on it. So the forecast takes what the last doubling
    has gained, for as many doublings as are left. This rule is ours.

    Args:
        curve: what was spent so far (seconds or trials), and the sum of the kernels' times then; both in order.
        left: what is left to spend, in the same unit; infinite: until now is doubled once more.

    Returns:
        A share of the sum of now; None if nothing is known from as far back as half of what was spent.
    """
    if not curve or curve[-1][0] <= 0 or curve[0][0] > curve[-1][0] / 2:
        return None
    spent, now = curve[-1]
    before = [total for at, total in curve if at <= spent / 2][-1]
    doublings = math.log2(1 + left / spent) if left < math.inf else 1.0
    return max(before / now - 1, 0.0) * doublings


def expected_gain_s(task: Progress, best_throughput: float, config: AllocationConfig) -> float:
    """Seconds of network latency that one more trial of the task is expected to save.

    Args:
        best_throughput: the most FLOP/s that a task of this kind has reached, 0 if unknown.
    """
    now, n = task.now_s, len(task.best_s)
    if now == float("inf"):
        return task.weight * task.flop / max(best_throughput, 1.0)
    before = task.best_s[max(0, n - 1 - config.window)]
    # The best may have become slower: timed again, a lucky one loses.
    gained = max(0.0, before - now) / min(n, config.window) if before < float("inf") else 0.0
    hope = now / n
    if best_throughput > 0 and task.flop > 0:
        hope = min(hope, max(0.0, now - task.flop / (config.headroom * best_throughput)))
    return task.weight * (config.alpha * gained + (1 - config.alpha) * hope)


def is_barren(task: Progress, config: AllocationConfig) -> bool:
    """Whether a task only ever failed, too often."""
    return len(task.best_s) >= config.max_barren and task.now_s == float("inf")


def _best_throughput(tasks: Sequence[Progress], kind: str) -> float:
    return max((t.flop / t.now_s for t in tasks if t.kind == kind and t.now_s < float("inf")), default=0.0)
