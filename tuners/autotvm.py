"""Chameleon as tuners of AutoTVM, the tuner of TVM up to 0.19.

    tuner = ChameleonTuner(task)
    tuner.tune(n_trial=1000, early_stopping=400, measure_option=measure_option, callbacks=callbacks)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.autotvm.tuner.tuner import Tuner

from chameleon.search import Status, Trial, make_searcher
from tuners.config_space import ConfigKnobs


class SearcherTuner(Tuner):
    def __init__(self, task: Any, searcher: str = "chameleon", *, seed: int = 0, **options: Any) -> None:
        super().__init__(task)
        self._knobs = ConfigKnobs(task.config_space)
        self._searcher = make_searcher(searcher, self._knobs.space, np.random.default_rng(seed), **options)
        self._ready = []
        self.trials: list[Trial] = []

    def has_next(self) -> bool:
        if not self._ready:
            self._ready = list(self._searcher.ask(8))
        return bool(self._ready)

    def next_batch(self, batch_size: int):
        out = []
        while len(out) < batch_size and self.has_next():
            out.append(self._knobs.config(self._ready.pop(0)))
        return out

    def update(self, inputs, results):
        trials = []
        for inp, res in zip(inputs, results):
            c = tuple(self._knobs.digits(inp.config.index))
            ok = res.error_no == 0
            trials.append(Trial(c, Status.OK if ok else Status.RUN_ERROR, float(np.mean(res.costs)) if ok else None))
        self.trials += trials
        self._searcher.tell(trials)


class ChameleonTuner(SearcherTuner):
    def __init__(self, task: Any, *, seed: int = 0, **options: Any) -> None:
        super().__init__(task, "chameleon", seed=seed, **options)
