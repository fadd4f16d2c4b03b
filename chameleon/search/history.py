"""What a searcher has been told so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search.space import Digits, KnobSpace
from chameleon.search.trial import Status, Trial


@dataclass(frozen=True)
class Prior:
    """What is believed about configurations because of measurements elsewhere, such as those of a similar workload.

    Attributes:
        configs: `[n, n_knobs]`, repeats possible.
        throughput: of each configuration, relative to the best one there, `[n]` in 0..1.
    """

    configs: Digits
    throughput: NDArray[np.float64]

    @classmethod
    def none(cls, space: KnobSpace) -> Prior:
        return cls(np.empty((0, space.n_knobs), dtype=np.int64), np.empty(0, dtype=np.float64))

    @classmethod
    def checked(cls, space: KnobSpace, configs: NDArray[Any], throughput: NDArray[np.float64]) -> Prior:
        """What is believed, once it is sure that it fits the space.

        Raises:
            ValueError: on other shapes, digits that are not of this space, or throughputs outside of 0..1.
        """
        shaped = configs.shape == (len(throughput), space.n_knobs)
        if not shaped or not space.contains(configs) or not ((throughput >= 0) & (throughput <= 1)).all():
            raise ValueError(
                f"expected [n, {space.n_knobs}] digits of this space and [n] throughputs in 0..1, got shapes "
                f"{configs.shape} and {throughput.shape}"
            )
        return cls(configs.astype(np.int64), throughput)


class History:
    """All trials of one space in the order they were told, also as arrays for the learners."""

    def __init__(self, space: KnobSpace) -> None:
        self.space = space
        self.trials: list[Trial] = []
        self.best: Trial | None = None
        self.prior = Prior.none(space)
        self._keys: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.trials)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, trials: Sequence[Trial]) -> None:
        """Takes all of `trials`, or none of them if one is wrong.

        Raises:
            ValueError: if a configuration does not belong to the space, or is told twice.
        """
        if not trials:
            return
        _check_scores([*([self.best] if self.best else []), *trials])
        keys = [self._checked_key(t) for t in trials]
        fresh: set[bytes] = set()
        for trial, key in zip(trials, keys, strict=True):
            if key in self._keys or key in fresh:
                raise ValueError(f"configuration {trial.config} was told before; tell each configuration once")
            fresh.add(key)
        self.trials.extend(trials)
        self._keys |= fresh
        for trial in trials:
            if trial.cost < (np.inf if self.best is None else self.best.cost):
                self.best = trial

    def _checked_key(self, trial: Trial) -> bytes:
        space = self.space
        cards = space.cardinalities.tolist()
        inside = len(trial.config) == len(cards) and all(0 <= d < n for d, n in zip(trial.config, cards, strict=True))
        row = np.array([trial.config if inside else [0] * len(cards)], dtype=np.int64)
        if not inside or (space.canonical(row) != row).any():
            raise ValueError(
                f"configuration {trial.config} is not one of this space: expected {space.n_knobs} digits below "
                f"{cards}, 0 for knobs that its sketch does not use; was it recorded elsewhere?"
            )
        return KnobSpace.keys(row)[0]

    @property
    def configs(self) -> Digits:
        """The configurations of all trials, `[n, n_knobs]`."""
        return np.array([t.config for t in self.trials], dtype=np.int64).reshape(len(self), self.space.n_knobs)

    @property
    def costs(self) -> NDArray[np.float64]:
        """The costs of all trials, `[n]`: their seconds or minus their scores; NaN where one failed or was refused."""
        costs = np.array([t.cost for t in self.trials], dtype=np.float64)
        return np.where(np.isfinite(costs), costs, np.nan)

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Which trials ended `OK`, `[n]`."""
        return np.array([t.status is Status.OK for t in self.trials], dtype=bool)

    @property
    def refused(self) -> NDArray[np.bool_]:
        """Which trials were refused before anything was built, `[n]`."""
        return np.array([t.status is Status.INVALID for t in self.trials], dtype=bool)

    @property
    def measured(self) -> int:
        """How many trials cost a measurement: all but the refused."""
        return int((~self.refused).sum())

    def throughput(self) -> NDArray[np.float64]:
        """Throughput of all trials relative to the best, `[n]` in 0..1; failures and refusals are 0.

        As in Ahn 2020, failures are never dropped. Scores may have any sign, so they are placed between the worst
        score (0) and the best (1).
        """
        costs, best = self.costs, self.best
        if best is None:
            return np.zeros(len(self))
        if best.score is None:
            return np.nan_to_num(best.cost / costs, nan=0.0)
        above = np.nanmax(costs) / 2 - costs / 2  # halves, so that the widest span is still a number
        span = np.nanmax(costs) / 2 - best.cost / 2
        return np.nan_to_num(above / span if span else costs * 0.0 + 1.0, nan=0.0)


def _check_scores(trials: Sequence[Trial]) -> None:
    """Seconds and scores cannot be compared, so one search has only one of them."""
    kinds = {t.score is not None for t in trials if t.status is Status.OK}
    if len(kinds) > 1:
        raise ValueError("a search takes trials with seconds or trials with scores, got both; tell one kind only")
