"""Replay a searcher on a recorded landscape: the same loop as on hardware, with the record as the answer."""

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
"""How many free refusals per budgeted trial end a run, so that no searcher proposes nonsense for ever."""


class AskTell(Protocol):
    """What a replay needs of a searcher."""

    def ask(self, n: int) -> Digits: ...

    def tell(self, trials: Sequence[Trial]) -> object: ...


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
    landscape: Landscape, searcher_name: str, *, trials: int, seed: int, batch: int = 16, **options: Any
) -> ReplayRun:
    """Let a searcher of that name spend a budget of trials on a landscape.

    Args:
        trials: the budget.
        batch: at most so many configurations are asked for at once; the searcher's plan may hand out fewer.
        options: handed to the searcher.

    Raises:
        ValueError: on a budget or batch below 1.
        UnknownSearcherError: on an unknown searcher or an unknown option of it.
    """
    searcher = make_searcher(searcher_name, landscape.space, np.random.default_rng(seed), **options)
    seconds, engine_s, refused = drive(landscape, searcher, trials, batch)
    fraction = best_so_far(seconds, landscape.best_seconds)
    return ReplayRun(landscape.name, searcher_name, seed, seconds, fraction, engine_s, refused)


def drive(landscape: Landscape, searcher: AskTell, trials: int, batch: int) -> tuple[NDArray[np.float64], float, int]:
    """The loop: a listed configuration costs one trial, failed or not; one that is not listed is refused and free.

    Returns:
        The time of each trial `[n]`, NaN where it failed; seconds spent in the searcher; how many proposals were refused.

    Raises:
        ValueError: on a budget or batch below 1.
        RuntimeError: if the searcher proposes hardly anything but configurations outside of the landscape.
    """
    if trials < 1 or batch < 1:
        raise ValueError(f"a replay needs trials >= 1 and batch >= 1, got trials={trials}, batch={batch}")
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
            raise RuntimeError(
                f"{type(searcher).__name__} proposed {refused} configurations outside of {landscape.name}"
            )
    return np.array(seconds, dtype=np.float64), engine_s, refused


def best_so_far(seconds: NDArray[np.float64], best_seconds: float) -> NDArray[np.float64]:
    """`best_seconds` over the running minimum of `[n]` times with NaN for failures; 0 before the first success, `[n]`."""
    return best_seconds / np.minimum.accumulate(np.where(np.isnan(seconds), np.inf, seconds))


def replay_all(
    landscapes: Sequence[Landscape],
    searchers: Sequence[str],
    *,
    trials: int,
    seeds: int,
    jobs: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[ReplayRun]:
    """Every searcher on every landscape with the seeds 0 to `seeds - 1`, in that order, whatever finishes first.

    Args:
        jobs: worker processes of one thread each; by default one a core. What is found does not depend on it.
        done: called after each finished run.

    Raises:
        ChameleonError: if a worker process died (most often: out of memory).
    """
    tasks = [(landscape, name, seed) for landscape in landscapes for name in searchers for seed in range(seeds)]
    workers = max(1, min(jobs or usable_cores(), len(tasks)))
    context = multiprocessing.get_context("spawn")
    life, holder = context.Pipe(duplex=False)  # the workers live as long as this process holds the other end
    pool = ProcessPoolExecutor(workers, context, _prepare_worker, (life,))
    with life, holder, pool:
        try:
            futures = [
                pool.submit(replay, landscape, name, trials=trials, seed=seed) for landscape, name, seed in tasks
            ]
            return _collect(futures, done)
        except BaseException as error:  # Ctrl-C included: nobody waits for runs whose result is not wanted
            pool.shutdown(wait=False, cancel_futures=True)
            holder.close()
            if isinstance(error, BrokenProcessPool):
                raise ChameleonError("a replay process died, perhaps for lack of memory; try fewer --jobs") from error
            raise


def _collect(futures: Sequence[Future[ReplayRun]], done: Callable[[], None]) -> list[ReplayRun]:
    for future in as_completed(futures):
        future.result()
        done()
    return [future.result() for future in futures]


def _prepare_worker(life: Connection) -> None:
    """One thread, the engine's libraries loaded before anything is timed, and an end when the parent ends or gives up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with, args=(life,), daemon=True).start()
    torch, _, threadpoolctl = (importlib.import_module(name) for name in ("torch", "sklearn.cluster", "threadpoolctl"))
    importlib.import_module("xgboost")
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


def _exit_with(life: Connection) -> None:
    life.poll(None)  # nothing is ever sent: it returns when the other end is closed, by hand or by the parent's death
    os._exit(1)
