"""From the history to a score for any configuration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from chameleon.search.cost_model import CostModel, CostModelConfig
from chameleon.search.history import History
from chameleon.search.space import Digits, KnobSpace

Featurize = Callable[[Digits], NDArray[np.floating]]


class Learner:
    """Keeps the cost model fitted to the history.

    The fit is a pure function of the history and of the seed drawn once, so nothing of it needs saving.
    """

    def __init__(self, space: KnobSpace, config: CostModelConfig, seed: int, featurize: Featurize | None = None) -> None:
        self._space = space
        self._config = config
        self._seed = seed
        self._featurize = featurize
        self._model = CostModel(config)
        self._fitted = -1

    def ready(self, history: History) -> bool:
        """Whether there is anything to learn: two trials that differ in throughput."""
        return len(np.unique(history.throughput())) > 1

    def predict(self, history: History, configs: Digits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Expected relative throughput of `[n, n_knobs]` and its spread, both `[n]`."""
        if self._fitted != len(history):
            self._model.fit(self._space.features(history.configs), history.throughput(), self._seed)
            self._fitted = len(history)
        return self._model.predict(self._space.features(configs))

    def state(self) -> dict[str, int]:
        return {"seed": self._seed}

    def restore(self, state: dict[str, int]) -> None:
        self._seed = int(state["seed"])
        self._fitted = -1
