"""The cost model: predicts from a configuration's knobs its throughput, relative to the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search.ranges import AtLeastZero, Count, SomeShare, Within, check_ranges


@dataclass(frozen=True)
class CostModelConfig:
    """Settings of the cost model: an ensemble of gradient-boosted trees (XGBoost).

    Each member learns from resampled data. Where the members disagree, little is known.
    """

    members: Count = 4  # models in the ensemble, each on its own bootstrap sample
    trees: Count = 60  # boosting rounds of each member
    max_depth: Count = 4  # depth of a tree (AutoTVM: 3)
    eta: SomeShare = 0.2  # shrinkage (AutoTVM: 0.3)
    min_child_weight: AtLeastZero = 0.3  # least weight in a leaf (AutoTVM: 1)
    column_share: SomeShare = 0.7  # share of the features that a tree may use
    believed: AtLeastZero = 32.0  # what was measured elsewhere weighs as much as so many trials, all of it together
    newest: Annotated[int, Within(2, whole=True)] = 2000  # most trials to learn from: of more, the best and the newest

    def __post_init__(self) -> None:
        check_ranges(self)


class CostModel:
    """An ensemble of XGBoost regressors that predict throughput relative to the best (Ahn 2020, sec. 3.1; Chen 2018).

    We differ from the papers in that we use an ensemble: its spread tells where the model guesses.
    """

    def __init__(self, config: CostModelConfig) -> None:
        # The import takes a second. Here, not at the first fit, it can run beside the host's other preparations.
        import xgboost

        self._xgboost = xgboost
        self._config = config
        self._boosters: list[Any] = []

    @property
    def fitted(self) -> bool:
        return bool(self._boosters)

    def fit(
        self,
        features: NDArray[np.float32],
        targets: NDArray[np.float64],
        seed: int,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Learns to predict `targets` `[n]` from `features` `[n, f]`; the result depends on the arguments alone.

        Args:
            weights: what each of them counts, `[n]`; 1 by default. Those of weight 0 are left out.
        """
        xgboost, config = self._xgboost, self._config
        if weights is not None:
            features, targets, weights = features[weights > 0], targets[weights > 0], weights[weights > 0]
        rng = np.random.default_rng(seed)
        self._boosters = []
        for member in range(config.members):
            drawn = rng.exponential(size=len(targets)) if config.members > 1 else np.ones(len(targets))
            counts = drawn if weights is None else drawn * weights
            data = xgboost.DMatrix(features, targets, weight=counts, nthread=1)
            params = {
                "max_depth": config.max_depth,
                "eta": config.eta,
                "min_child_weight": config.min_child_weight,
                "colsample_bytree": config.column_share,
                "seed": seed % (1 << 31) + member,
                "nthread": 1,
                "tree_method": "exact" if len(targets) < 500 else "hist",
                "base_score": float(np.average(targets, weights=weights)),
                "verbosity": 0,
            }
            self._boosters.append(xgboost.train(params, data, config.trees))

    def predict(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of the members' predictions for `features` `[n, f]`, both `[n]`."""
        each = np.array([b.inplace_predict(features) for b in self._boosters], dtype=np.float64)
        return each.mean(axis=0), each.std(axis=0)
