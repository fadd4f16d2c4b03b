"""Simulated annealing on the cost model, many chains in parallel: AutoTVM's explorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search.moves import Moves
from chameleon.search.ranges import AtLeastZero, Count, Whole, check_ranges
from chameleon.search.space import Digits, KnobSpace

Score = Callable[[Digits], NDArray[np.float64]]


@dataclass(frozen=True)
class AnnealingConfig:
    """AutoTVM's settings (Chen 2018)."""

    chains: Count = 128  # parallel chains, kept from one plan to the next
    steps: Count = 500  # most steps in one exploration
    patience: Whole = 50  # steps without a better candidate before an exploration stops early
    temperature: AtLeastZero = 1.0  # at the start; falls linearly to 0
    keep: Count = 64  # how many of the best-scored configurations an exploration returns

    def __post_init__(self) -> None:
        check_ranges(self)


class Annealer:
    """Explores with many chains, each of which changes one knob in a step.

    Metropolis' rule decides whether a chain accepts its change. The chains are kept from one plan to the next.
    """

    def __init__(self, space: KnobSpace, config: AnnealingConfig) -> None:
        self.elite = 0
        self.starts = config.chains
        self._space = space
        self._moves = Moves(space)
        self._config = config
        self._chains: Digits | None = None

    def explore(
        self, score: Score, starts: Digits, known: set[bytes], rng: np.random.Generator
    ) -> tuple[Digits, NDArray[np.float64]]:
        """Runs all chains and returns the best-scored configurations that they met.

        Args:
            score: gives the predicted throughput `[n]` of configurations `[n, n_knobs]`.
            starts: valid configurations for the chains to start at, `[chains, n_knobs]`; used only the first time.
            known: keys of configurations that are taken already; none of them is returned.

        Returns:
            Configurations that are not `known`, best first, `[m <= keep, n_knobs]`, and their scores `[m]`.
        """
        config = self._config
        points = starts if self._chains is None else self._chains
        values = score(points)
        best = _Heap(config.keep, known)
        best.offer(points, values)
        stale = 0
        for step in range(config.steps):
            temperature = config.temperature * (1 - step / config.steps)
            proposed = self._moves.mutate(points, rng)
            new_values = score(proposed)
            gain = np.minimum(new_values - values, 0.0) / max(temperature, 1e-5)
            accept = rng.random(len(points)) < np.exp(gain)
            points = np.where(accept[:, None], proposed, points)
            values = np.where(accept, new_values, values)
            stale = 0 if best.offer(proposed, new_values) else stale + 1
            if stale > config.patience:
                break
        self._chains = points
        return best.rows(self._space.n_knobs)

    def state(self) -> dict[str, Any]:
        return {"chains": None if self._chains is None else self._chains.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self._chains = None if state["chains"] is None else np.array(state["chains"], dtype=np.int64)


class _Heap:
    """The best-scored distinct configurations seen so far."""

    def __init__(self, size: int, known: set[bytes]) -> None:
        self._size = size
        self._known = known
        self._scores: dict[bytes, float] = {}
        self._least = -np.inf

    def offer(self, configs: Digits, scores: NDArray[np.float64]) -> bool:
        """Takes those of `configs` `[n, n_knobs]` that score well enough; returns whether there were any."""
        entered = False
        for i in np.flatnonzero(scores > self._least):
            key = configs[i].tobytes()
            if key not in self._known and key not in self._scores:
                self._scores[key] = float(scores[i])
                entered = True
        if len(self._scores) > self._size:
            kept = sorted(self._scores.items(), key=lambda item: -item[1])[: self._size]
            self._scores = dict(kept)
            self._least = kept[-1][1]
        return entered

    def rows(self, n_knobs: int) -> tuple[Digits, NDArray[np.float64]]:
        keys = sorted(self._scores, key=lambda k: -self._scores[k])
        rows = np.frombuffer(b"".join(keys), dtype=np.int64).reshape(-1, n_knobs)
        return rows, np.array([self._scores[k] for k in keys], dtype=np.float64)
