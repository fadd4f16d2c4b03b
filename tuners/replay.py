"""Replays a searcher on a recorded landscape: the same loop as on hardware, but the record gives the outcomes."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chameleon.cores import usable_cores
from chameleon.errors import ChameleonError
from chameleon.search import Digits, Status, Trial, make_searcher
from chameleon.search.agent import one_thread
from tuners.landscape import Landscape, LandscapeError, LandscapeWarning, load_landscape, save_landscape

__all__ = [
    "Landscape",
    "LandscapeError",
    "LandscapeWarning",
    "ReplayRun",
    "load_landscape",
    "replay",
    "replay_all",
    "save_landscape",
]

REFUSALS_PER_TRIAL = 100
"""A run ends after this many free refusals for each trial of the budget, so that no searcher goes on for ever."""


class AskTell(Protocol):
    """The part of a searcher that a replay needs."""

    def ask_planned(self, n: int) -> Digits: ...

    def tell(self, trials: Sequence[Trial]) -> object: ...


@dataclass(frozen=True)
class ReplayRun:
    """One searcher's run on one landscape.

    Attributes:
        values: what was measured in each trial, in their order, `[n]`; NaN where it failed. `n` is at most the budget.
        fraction: how good the best found so far is (`Landscape.fraction`), after each trial, `[n]`; 0 until a trial
            succeeds.
        engine_s: seconds spent in the searcher (ask and tell), all trials together.
        refused: proposals outside of the landscape, which are free.
    """

    landscape: str
    searcher: str
    seed: int
    values: NDArray[np.float64]
    fraction: NDArray[np.float64]
    engine_s: float
    refused: int

    @property
    def trials(self) -> int:
        """How many trials were made; fewer than the budget if the space was exhausted."""
        return len(self.values)

    def fraction_at(self, n: int) -> float:
        """The fraction after `n` trials; a run that ended earlier stays where it ended."""
        return float(self.fraction[min(n, self.trials) - 1]) if self.trials and n > 0 else 0.0

    def trials_to(self, fraction: float) -> float:
        """How many trials it took to reach `fraction` of the best; infinity if it was not reached."""
        reached = np.flatnonzero(self.fraction >= fraction)
        return float(reached[0] + 1) if len(reached) else float("inf")


def replay(
    landscape: Landscape, searcher_name: str, *, trials: int, seed: int, batch: int = 16, **options: Any
) -> ReplayRun:
    """Let a searcher of that name spend a budget of trials on a landscape.

    Args:
        trials: the budget.
        batch: at most this many configurations are asked for at once; the searcher's plan may hand out fewer.
        options: handed to the searcher.

    Raises:
        ValueError: on a budget or batch below 1.
        UnknownSearcherError: on an unknown searcher or an unknown option of it.
    """
    searcher = make_searcher(searcher_name, landscape.space, np.random.default_rng(seed), **options)
    values, engine_s, refused = drive(landscape, searcher, trials, batch)
    fraction = best_so_far(landscape, values)
    return ReplayRun(landscape.name, searcher_name, seed, values, fraction, engine_s, refused)


def drive(landscape: Landscape, searcher: AskTell, trials: int, batch: int) -> tuple[NDArray[np.float64], float, int]:
    """Runs the loop of ask, look up and tell until the budget is spent.

    A listed configuration costs one trial, failed or not. A configuration that is not listed is refused and free.

    Returns:
        The value of each trial `[n]`, NaN where it failed; the seconds spent in the searcher; the number of refused
        proposals.

    Raises:
        ValueError: on a budget or batch below 1.
        RuntimeError: if the searcher proposes hardly anything but configurations outside of the landscape.
    """
    if trials < 1 or batch < 1:
        raise ValueError(f"a replay needs trials >= 1 and batch >= 1, got trials={trials}, batch={batch}")
    values: list[float] = []
    refused, engine_s = 0, 0.0
    while len(values) < trials:
        started = time.perf_counter()
        configs = searcher.ask_planned(min(batch, trials - len(values)))
        engine_s += time.perf_counter() - started
        if not len(configs):
            break
        outcome = landscape.measure(configs)
        started = time.perf_counter()
        searcher.tell(outcome)
        engine_s += time.perf_counter() - started
        made = [t for t in outcome if t.status is not Status.INVALID]
        values += [landscape.objective.value(t) for t in made]
        refused += len(outcome) - len(made)
        if refused > REFUSALS_PER_TRIAL * trials:
            raise RuntimeError(
                f"{type(searcher).__name__} proposed {refused} configurations outside of {landscape.name}"
            )
    return np.array(values, dtype=np.float64), engine_s, refused


def best_so_far(landscape: Landscape, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fraction after each trial, `[n]`: that of the best of the values `[n]` so far; 0 before a success."""
    return np.maximum.accumulate(landscape.fraction(values))


def replay_all(
    landscapes: Sequence[Landscape],
    searchers: Sequence[str],
    *,
    trials: int,
    seeds: int,
    jobs: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[ReplayRun]:
    """Replays every searcher on every landscape with the seeds 0 to `seeds - 1`.

    The runs are returned in that order, whichever finishes first.

    Args:
        jobs: how many runs at once, of one thread each, in processes of their own if that is more than one; by default
            one a core. The results do not depend on it.
        done: called after each finished run.

    Raises:
        ChameleonError: if a worker process died (most often: out of memory).
    """
    tasks = [(landscape, name, seed) for landscape in landscapes for name in searchers for seed in range(seeds)]
    workers = max(1, min(jobs or usable_cores(), len(tasks)))
    if workers == 1:
        return _one_after_the_other(tasks, trials, done)
    context = multiprocessing.get_context("spawn")
    life, holder = context.Pipe(duplex=False)  # the workers live as long as this process holds the other end
    pool = ProcessPoolExecutor(workers, context, _prepare_worker, (life,))
    with life, holder, pool:
        try:
            futures = [
                pool.submit(replay, landscape, name, trials=trials, seed=seed) for landscape, name, seed in tasks
            ]
            return _collect(futures, done)
        except BaseException as error:  # Ctrl-C included: nobody wants the other runs' results any more
            pool.shutdown(wait=False, cancel_futures=True)
            holder.close()
            if isinstance(error, BrokenProcessPool):
                raise ChameleonError("a replay process died, perhaps for lack of memory; try fewer --jobs") from error
            raise


def _one_after_the_other(
    tasks: Sequence[tuple[Landscape, str, int]], trials: int, done: Callable[[], None]
) -> list[ReplayRun]:
    threadpoolctl, runs = _load_engine(), []
    with one_thread(), threadpoolctl.threadpool_limits(1):
        for landscape, name, seed in tasks:
            runs.append(replay(landscape, name, trials=trials, seed=seed))
            done()
    return runs


def _load_engine() -> Any:
    """Load the engine's libraries, before anything is timed; returns threadpoolctl."""
    for name in ("sklearn.cluster", "sklearn.ensemble", "torch", "xgboost"):
        importlib.import_module(name)
    return importlib.import_module("threadpoolctl")


def _collect(futures: Sequence[Future[ReplayRun]], done: Callable[[], None]) -> list[ReplayRun]:
    for future in as_completed(futures):
        future.result()
        done()
    return [future.result() for future in futures]


def _prepare_worker(life: Connection) -> None:
    """Prepares a worker process: one thread, and the engine's libraries loaded before anything is timed.

    The process ends when its parent ends or gives up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with, args=(life,), daemon=True).start()
    threadpoolctl = _load_engine()
    importlib.import_module("torch").set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


def _exit_with(life: Connection) -> None:
    life.poll(None)  # nothing is ever sent: this returns when the parent closes the other end, or dies
    os._exit(1)
