"""Replay a searcher on a recorded landscape: the same loop as on hardware, with the record as the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search.trial import Status
from tuners.landscape import Landscape, LandscapeError, LandscapeWarning, load_landscape, save_landscape

__all__ = ["Landscape", "LandscapeError", "LandscapeWarning", "ReplayRun", "load_landscape", "replay", "save_landscape"]

REFUSALS_PER_TRIAL = 100
"""How many free refusals per budgeted trial end a run, so that no searcher proposes nonsense for ever."""


@dataclass(frozen=True)
class ReplayRun:
    """One searcher's run on one landscape.

    Attributes:
        seconds: time of each trial in the order made, `[n]`, NaN where it failed; `n` is at most the budget.
        fraction: best time on record / best found so far, `[n]`, 0 until something valid was found.
        engine_s: seconds spent in the searcher (ask and tell), all trials together.
        refused: proposals outside of the landscape, which are free.
    """

    landscape: str
    searcher: str
    seed: int
    seconds: NDArray[np.float64]
    fraction: NDArray[np.float64]
    engine_s: float
    refused: int

    @property
    def trials(self) -> int:
        """Trials actually made: fewer than the budget where the space was exhausted."""
        return len(self.seconds)

    def fraction_at(self, n: int) -> float:
        """The fraction after `n` trials; a run that ended earlier stays where it ended."""
        return float(self.fraction[min(n, self.trials) - 1]) if self.trials and n > 0 else 0.0

    def trials_to(self, fraction: float) -> float:
        """How many trials reached `fraction` of the best, infinity if none did."""
        reached = np.flatnonzero(self.fraction >= fraction)
        return float(reached[0] + 1) if len(reached) else float("inf")


def replay(
    landscape: Landscape,
    searcher_name: str,
    *,
    trials: int,
    seed: int,
    batch: int = 16,
    make: Callable[..., Any] | None = None,
    **options: Any,
) -> ReplayRun:
    """Let a searcher spend a budget of trials on a landscape.

    A listed configuration costs one trial, failed or not; one that is not listed is refused and free.

    Args:
        trials: the budget.
        batch: at most so many configurations are asked for at once.
        make: builds the searcher, `make(name, space, rng, **options)`; by default `chameleon.search.make_searcher`.
        options: handed to the searcher.

    Raises:
        ValueError: on a budget or batch below 1.
        RuntimeError: if the searcher proposes hardly anything but configurations outside of the landscape.
    """
    if trials < 1 or batch < 1:
        raise ValueError(f"a replay needs trials >= 1 and batch >= 1, got trials={trials}, batch={batch}")
    if make is None:
        from chameleon.search import make_searcher as make  # noqa: PLC0415 - loading a landscape needs no searcher
    searcher = make(searcher_name, landscape.space, np.random.default_rng(seed), **options)
    seconds: list[float] = []
    refused, engine_s = 0, 0.0
    while len(seconds) < trials:
        started = time.perf_counter()
        configs = searcher.ask(min(batch, trials - len(seconds)))
        engine_s += time.perf_counter() - started
        if not len(configs):
            break
        outcome = landscape.measure(configs)
        started = time.perf_counter()
        searcher.tell(outcome)
        engine_s += time.perf_counter() - started
        made = [t for t in outcome if t.status is not Status.INVALID]
        seconds += [np.nan if t.seconds is None else t.seconds for t in made]
        refused += len(outcome) - len(made)
        if refused > REFUSALS_PER_TRIAL * trials:
            raise RuntimeError(f"searcher {searcher_name!r} proposed {refused} configurations outside of {landscape.name}")
    times = np.array(seconds, dtype=np.float64)
    fraction = best_so_far(times, landscape.best_seconds)
    return ReplayRun(landscape.name, searcher_name, seed, times, fraction, engine_s, refused)


def best_so_far(seconds: NDArray[np.float64], best_seconds: float) -> NDArray[np.float64]:
    """`best_seconds` over the running minimum of `[n]` times with NaN for failures; 0 before the first success, `[n]`."""
    return best_seconds / np.minimum.accumulate(np.where(np.isnan(seconds), np.inf, seconds))
