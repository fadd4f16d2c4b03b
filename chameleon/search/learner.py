"""The learner: gives a score to any configuration, learnt from the history."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from chameleon.search.cost_model import CostModel, CostModelConfig
from chameleon.search.history import History, Prior
from chameleon.search.space import Digits, KnobSpace

Featurize = Callable[[Digits], NDArray[np.floating]]
Floats = NDArray[np.float64]


class Learner:
    """Keeps the cost model fitted to the history.

    There are two models. One learns throughput from the measured trials; a failure counts as zero. The other learns
    from all trials whether a configuration succeeds, or fails or is refused. The prediction is the product of the two.
    A fit depends only on the history and on a seed that is drawn once, so no fitted model needs saving.
    """

    def __init__(
        self, space: KnobSpace, config: CostModelConfig, seed: int, featurize: Featurize | None = None
    ) -> None:
        self._space = space
        self._config = config
        self._seed = seed
        self._featurize = featurize
        self._host_features: dict[bytes, NDArray[np.float32]] = {}
        self._throughput = CostModel(config)
        self._success = CostModel(config)
        self._second = CostModel(config)
        self._fitted = self._second_fitted = -1
        self._prior: Prior | None = None

    @property
    def has_second_look(self) -> bool:
        return self._featurize is not None

    def ready(self, history: History) -> bool:
        """Whether there is anything to learn: two trials that differ in throughput."""
        return len(np.unique(history.throughput())) > 1

    def predict(self, history: History, configs: Digits, success: bool = True) -> tuple[Floats, Floats]:
        """Expected relative throughput of `[n, n_knobs]` and its spread, both `[n]`.

        Args:
            success: whether both are scaled by the chance that the configuration works.
        """
        self._fit(history)
        features = self._space.features(configs)
        mean, spread = self._throughput.predict(features)
        scaled = success and self._success.fitted
        chance = np.clip(self._success.predict(features)[0], 0.0, 1.0) if scaled else 1.0
        return mean * chance, spread * chance

    def second_look(self, history: History, configs: Digits) -> Floats:
        """Expected relative throughput of `[n, n_knobs]` by a model that also sees the host's features, `[n]`."""
        if self._second_fitted != len(history):
            rows = self._rows(history)
            self._second.fit(self._rich(history.configs[rows]), history.throughput()[rows], self._seed)
            self._second_fitted = len(history)
        return self._second.predict(self._rich(configs))[0]

    def _fit(self, history: History) -> None:
        if self._fitted == len(history) and self._prior is history.prior:
            return
        rows = self._rows(history)
        throughput = history.throughput()
        configs = np.vstack([history.configs[rows], history.prior.configs])
        targets = np.concatenate([throughput[rows], history.prior.throughput])
        self._throughput.fit(self._space.features(configs), targets, self._seed)
        success = history.succeeded.astype(np.float64)
        newest = slice(max(len(history) - self._config.newest, 0), None)
        self._success = CostModel(self._config)  # where all of the newest are alike, there is nothing to learn
        if 0 < success[newest].sum() < len(success[newest]):
            self._success.fit(self._space.features(history.configs[newest]), success[newest], self._seed + 1)
        self._fitted, self._prior = len(history), history.prior

    def _rows(self, history: History) -> NDArray[np.int64]:
        """Positions of the measured trials to learn from.

        If there are more than `newest` trials: the best `newest / 2` of them and the newest `newest / 2`.
        """
        rows = np.flatnonzero(~history.refused)
        half = self._config.newest // 2
        if len(rows) <= self._config.newest:
            return rows
        best = rows[np.argsort(-history.throughput()[rows], kind="stable")[:half]]
        return np.union1d(best, rows[-half:])

    def _rich(self, configs: Digits) -> NDArray[np.float32]:
        """The knobs' features and the host's, `[n, f]`; the host's are computed once for each configuration."""
        keys = KnobSpace.keys(configs)
        missing = [i for i, key in enumerate(keys) if key not in self._host_features]
        if missing and self._featurize:
            for i, row in zip(missing, self._featurize(configs[missing]), strict=True):
                self._host_features[keys[i]] = np.asarray(row, dtype=np.float32)
        host = np.array([self._host_features[key] for key in keys], dtype=np.float32)
        return np.hstack([self._space.features(configs), host])

    def state(self) -> dict[str, int]:
        return {"seed": self._seed}

    def restore(self, state: dict[str, int]) -> None:
        self._seed = int(state["seed"])
        self._fitted = self._second_fitted = -1
        self._success = CostModel(self._config)
