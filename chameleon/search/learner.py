"""The learner: gives a score to any configuration, learnt from the history."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chameleon.search.cost_model import CostModel, CostModelConfig
from chameleon.search.history import History, Prior
from chameleon.search.program_features import Featurize, ProgramFeatures, distinct
from chameleon.search.space import Digits, KnobSpace

Floats = NDArray[np.float64]


class _Look:
    """The two models of one stage of the search, which see the same features."""

    def __init__(self, config: CostModelConfig) -> None:
        self.throughput = CostModel(config)
        self.success = CostModel(config)
        self.fitted = -1
        self.prior: Prior | None = None
        self.columns = np.empty(0, dtype=np.int64)  # those of the host's features that the models see


class Learner:
    """Keeps the cost model fitted to the history.

    There are two models. One learns throughput from the measured trials; a failure counts as zero. The other learns
    from all trials whether a configuration succeeds, or fails or is refused. The prediction is the product of the two.
    A fit depends only on the history and on a seed that is drawn once, so no fitted model needs saving.

    Where the host has features of its own, there is a second pair of models that sees them beside the knobs'. It
    learns the same from the same trials, so that the predictions of both pairs are on one scale.
    """

    def __init__(
        self, space: KnobSpace, config: CostModelConfig, seed: int, featurize: Featurize | None = None
    ) -> None:
        self._space = space
        self._config = config
        self._seed = seed
        self._programs = ProgramFeatures(featurize) if featurize else None
        self._first, self._second = _Look(config), _Look(config)

    @property
    def has_second_look(self) -> bool:
        return self._programs is not None

    def ready(self, history: History) -> bool:
        """Whether there is anything to learn: two trials that differ in throughput."""
        return len(np.unique(history.throughput())) > 1

    def predict(
        self, history: History, configs: Digits, success: bool = True, rich: bool = False
    ) -> tuple[Floats, Floats]:
        """Expected relative throughput of `[n, n_knobs]` and its spread, both `[n]`.

        Args:
            success: whether both are scaled by the chance that the configuration works.
            rich: whether the models also see the host's features, which are computed for all of `configs`.
        """
        programs = self._programs if rich else None
        look = self._second if programs else self._first
        self._fit(look, programs, history)
        features = self._features(configs, programs, np.ones(len(configs), dtype=bool), look)
        mean, spread = look.throughput.predict(features)
        scaled = success and look.success.fitted
        chance = np.clip(look.success.predict(features)[0], 0.0, 1.0) if scaled else 1.0
        return mean * chance, spread * chance

    def _fit(self, look: _Look, programs: ProgramFeatures | None, history: History) -> None:
        if look.fitted == len(history) and look.prior is history.prior:
            return
        rows = self._rows(history)
        throughput = history.throughput()
        configs = np.vstack([history.configs[rows], history.prior.configs])
        targets = np.concatenate([throughput[rows], history.prior.throughput])
        if programs:
            look.columns = distinct(programs.of(history.configs[rows], np.ones(len(rows), dtype=bool)))
        # What was measured elsewhere, or refused here, has no program here: the host's features are missing.
        measured = np.arange(len(configs)) < len(rows)
        look.throughput.fit(self._features(configs, programs, measured, look), targets, self._seed)
        success = history.succeeded.astype(np.float64)
        newest = slice(max(len(history) - self._config.newest, 0), None)
        look.success = CostModel(self._config)  # where all of the newest are alike, there is nothing to learn
        if 0 < success[newest].sum() < len(success[newest]):
            features = self._features(history.configs[newest], programs, ~history.refused[newest], look)
            look.success.fit(features, success[newest], self._seed + 1)
        look.fitted, look.prior = len(history), history.prior

    def _features(
        self, configs: Digits, programs: ProgramFeatures | None, asked: NDArray[np.bool_], look: _Look
    ) -> NDArray[np.float32]:
        """The knobs' features of `[n, n_knobs]`, and beside them the host's where there are `programs`, `[n, f]`."""
        knobs = self._space.features(configs)
        return np.hstack([knobs, programs.of(configs, asked)[:, look.columns]]) if programs else knobs

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

    def state(self) -> dict[str, int]:
        return {"seed": self._seed}

    def restore(self, state: dict[str, int]) -> None:
        self._seed = int(state["seed"])
        self._first, self._second = _Look(self._config), _Look(self._config)
