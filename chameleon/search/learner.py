"""The learner: gives a score to any configuration, learnt from the history."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chameleon.search.cost_model import CostModel, CostModelConfig
from chameleon.search.history import History, Prior
from chameleon.search.program_features import Featurize, ProgramFeatures, distinct
from chameleon.search.space import Digits, KnobSpace

Floats = NDArray[np.float64]


_FEW = 8
"""With fewer own trials than this, nobody can tell whether a belief is right."""


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

    What is believed because of measurements elsewhere (`History.prior`) counts for less and less: all of it together
    weighs as much as `CostModelConfig.believed` trials, however many own trials there are. It has to prove itself as
    well: once there are some own trials, this weight is multiplied by how well a model of the beliefs alone ranks
    them (Spearman's correlation). Where it ranks them at random, nothing is believed any more.

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
        self._elsewhere: tuple[Prior, CostModel] | None = None  # a model of the beliefs alone

    @property
    def has_second_look(self) -> bool:
        return self._programs is not None

    def ready(self, history: History, least: int) -> bool:
        """Whether there is anything to learn from: `least` trials that are not all alike, or a trusted belief."""
        if history.measured >= least and len(np.unique(history.throughput())) > 1:
            return True
        return self.trust(history) > 0

    def trust(self, history: History) -> float:
        """How far the beliefs are trusted, in 0..1: how well they rank the own trials, 1 as long as these are few."""
        prior = history.prior
        if len(np.unique(prior.throughput)) < 2:
            return 0.0
        rows = self._rows(history)
        if len(rows) < _FEW:
            return 1.0
        if self._elsewhere is None or self._elsewhere[0] is not prior:
            model = CostModel(self._config)
            model.fit(self._space.features(prior.configs), prior.throughput, self._seed)
            self._elsewhere = prior, model
        predicted = self._elsewhere[1].predict(self._space.features(history.configs[rows]))[0]
        return max(_rank_correlation(predicted, history.throughput()[rows]), 0.0)

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
        weights = None if measured.all() else np.where(measured, 1.0, self._belief(history))
        look.throughput.fit(self._features(configs, programs, measured, look), targets, self._seed, weights)
        success = history.succeeded.astype(np.float64)
        newest = slice(max(len(history) - self._config.newest, 0), None)
        look.success = CostModel(self._config)  # where all of the newest are alike, there is nothing to learn
        if 0 < success[newest].sum() < len(success[newest]):
            features = self._features(history.configs[newest], programs, ~history.refused[newest], look)
            look.success.fit(features, success[newest], self._seed + 1)
        look.fitted, look.prior = len(history), history.prior

    def _belief(self, history: History) -> float:
        """What one belief counts beside a trial, in 0..1."""
        return min(self._config.believed * self.trust(history) / len(history.prior.configs), 1.0)

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


def _rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's correlation of `[n]` and `[n]`, 0 where one of them is constant."""
    from scipy.stats import rankdata

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
