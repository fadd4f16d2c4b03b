"""The cost model: predicts relative throughput from the knobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CostModelConfig:
    """Gradient-boosted trees (XGBoost), several on resampled data for a sense of what is not known."""

    members: int = 4  # models in the ensemble, each on its own bootstrap sample
    trees: int = 60  # boosting rounds of each
    max_depth: int = 4  # depth of a tree (AutoTVM: 3)
    eta: float = 0.2  # shrinkage (AutoTVM: 0.3)
    min_child_weight: float = 1.0  # least weight in a leaf
    column_share: float = 0.7  # features that a tree may use
    newest: int = 2000  # at most this many trials are learnt from: the best and the newest


class CostModel:
    """An ensemble of XGBoost regressors on throughput relative to the best (Ahn 2020, sec. 3.1; Chen 2018).

    We differ in the ensemble: its spread tells where the model guesses.
    """

    def __init__(self, config: CostModelConfig) -> None:
        import xgboost  # here rather than at the first fit: its second of import falls beside a host's other preparations

        self._xgboost = xgboost
        self._config = config
        self._boosters: list[Any] = []

    @property
    def fitted(self) -> bool:
        return bool(self._boosters)

    def fit(self, features: NDArray[np.float32], targets: NDArray[np.float64], seed: int) -> None:
        """Learns `targets` `[n]` from `features` `[n, f]`; a pure function of its arguments."""
        xgboost, config = self._xgboost, self._config
        rng = np.random.default_rng(seed)
        self._boosters = []
        for member in range(config.members):
            weights = rng.exponential(size=len(targets)) if config.members > 1 else np.ones(len(targets))
            data = xgboost.DMatrix(features, targets, weight=weights, nthread=1)
            params = {
                "max_depth": config.max_depth,
                "eta": config.eta,
                "min_child_weight": config.min_child_weight * 0.3,
                "colsample_bytree": config.column_share,
                "seed": seed % (1 << 31) + member,
                "nthread": 1,
                "tree_method": "exact" if len(targets) < 500 else "hist",
                "base_score": float(targets.mean()),
                "verbosity": 0,
            }
            self._boosters.append(xgboost.train(params, data, config.trees))

    def predict(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and spread of the ensemble, both `[n]`."""
        each = np.array([b.inplace_predict(features) for b in self._boosters], dtype=np.float64)
        return each.mean(axis=0), each.std(axis=0)
