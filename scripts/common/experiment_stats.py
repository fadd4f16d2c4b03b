"""Statistics of the experiments: when a run came near to the best, how good a prediction is, how sure a mean is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One tuner's run on one task.

    Attributes:
        seconds: time of each trial in the order made, None where it failed.
        at_s: optimisation time at which each trial's result was known, from the start of the run.
        tuner_s: seconds of the optimisation time that the tuner itself took.
        gave_up: whether the tuner ended by itself, before its budget was spent.
    """

    task: str
    tuner: str
    seed: int
    seconds: tuple[float | None, ...]
    at_s: tuple[float, ...]
    tuner_s: float
    gave_up: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "at_s": [round(t, 3) for t in self.at_s]}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Run:
        return cls(**{**line, "seconds": tuple(line["seconds"]), "at_s": tuple(line["at_s"])})

    @property
    def best_s(self) -> Floats:
        """The best time after each trial, `[n]`, infinity before the first success."""
        times = np.array([np.inf if s is None else s for s in self.seconds], dtype=np.float64)
        return np.minimum.accumulate(times)

    def reached(self, goal_s: float) -> int | None:
        """Position of the first trial that is as fast as `goal_s`, None if there is none."""
        found = np.flatnonzero(self.best_s <= goal_s)
        return int(found[0]) if len(found) else None

    def best_at(self, time_s: float) -> float:
        """The best time that was known after `time_s` seconds, infinity if none was."""
        known = int(np.searchsorted(np.array(self.at_s), time_s, side="right"))
        return float(self.best_s[known - 1]) if known else float("inf")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(
    groups: Sequence[Floats],
    statistic: Callable[[list[Floats]], float],
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Interval:
    """Compute a statistic with its 95 % bootstrap interval, by resampling the seeds.

    The tasks are not resampled: the interval says how sure the result is on these tasks, not on others.

    Args:
        groups: one array for each task, with one value for each seed.
        statistic: computes the number from such groups.
        resamples: how often the seeds are resampled.
    """
    values = [
        statistic([group[rng.integers(len(group), size=len(group))] for group in groups]) for _ in range(resamples)
    ]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(statistic(list(groups)), float(low), float(high))


def mean_of_means(groups: Sequence[Floats]) -> float:
    """The mean over tasks of the mean over seeds."""
    return float(np.mean([group.mean() for group in groups]))


def geomean_of_means(groups: Sequence[Floats]) -> float:
    """The geometric mean over tasks of the mean over seeds."""
    return float(np.exp(np.mean([np.log(group.mean()) for group in groups])))


def rank_correlation(predicted: Floats, measured: Floats) -> float:
    """Spearman's correlation of two arrays `[n]`; 0 for a constant prediction, which ranks nothing."""
    return float(np.nan_to_num(spearmanr(predicted, measured)[0])) if np.ptp(predicted) > 0 else 0.0  # type: ignore[arg-type]


def prediction_scores(predicted: Floats, throughput: Floats, top: int) -> dict[str, float]:
    """How well `[n]` throughputs are predicted.

    Returns:
        `rank`: Spearman's correlation; `recall@TOP`: the share of the `top` fastest that are among the `top` best
        predicted; `best@TOP`: the throughput of the fastest among these / of the fastest of all.
    """
    n = min(top, len(throughput))
    chosen, fastest = (np.argsort(-x, kind="stable")[:n] for x in (predicted, throughput))
    return {
        "rank": rank_correlation(predicted, throughput),
        f"recall@{top}": len(np.intersect1d(chosen, fastest)) / n,
        f"best@{top}": float(throughput[chosen].max() / throughput.max()),
    }
