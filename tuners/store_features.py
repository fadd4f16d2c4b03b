"""Features of finished schedules, as MetaSchedule computes them, for a second look at a searcher's finalists.

MetaSchedule describes each statement that stores to a buffer by 164 numbers: the arithmetic around it, the loops and
their annotations, how often and how far apart each buffer is touched, the arithmetic intensity at every loop level.
A program has one or more such rows. The cost model needs one row of a fixed length, so this is taken of them:

- the row of the store with most arithmetic, which is the operator itself;
- the largest value of each column over all stores: what writing back, padding or packing adds;
- the number of stores.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate
from tvm.target import Target

from chameleon.search import Digits
from tuners.trace_space import Refused, TraceSpace
from tuners.tune_context import bare_context

ARITHMETIC = slice(0, 7)
"""The floating-point operations of a store: multiply-add, add, multiply, divide, compare, functions, others."""
KEPT = 128
"""So many of the latest finished schedules are kept: those that are picked need not be made again."""


class StoreFeatures:
    """Computes the features of a space's configurations, and keeps the schedules that it made for that.

    Args:
        traces: the space; its schedules are replayed and post-processed.
        target: what the workload is tuned for; some features differ between CPUs and GPUs.
    """

    def __init__(self, traces: TraceSpace, target: Target | None) -> None:
        self._traces = traces
        self._context = bare_context(traces.modules[0], target)
        self._extractor = ms.feature_extractor.PerStoreFeature()
        self._made: dict[tuple[int, ...], tuple[Schedule, Digits]] = {}

    @property
    def width(self) -> int:
        """How many features a configuration has."""
        return 2 * int(self._extractor.feature_vector_length) + 1

    def __call__(self, configs: Digits) -> NDArray[np.float32]:
        """The features of `[n, n_knobs]`, `[n, width]`; NaN for configurations that give no schedule."""
        found = np.full((len(configs), self.width), np.nan, dtype=np.float32)
        for i, row in enumerate(configs):
            config = tuple(int(d) for d in row)
            try:
                schedule, digits = self._traces.replay(config)
                self._traces.post_process(schedule, digits)
                found[i] = self._of(schedule)
            except Refused:
                continue
            self._made.pop(config, None)
            self._made[config] = schedule, digits
        for config in list(self._made)[:-KEPT]:
            del self._made[config]
        return found

    def take(self, config: tuple[int, ...]) -> tuple[Schedule, Digits] | None:
        """The finished schedule of a configuration and its canonical digits, if it is kept; then no more."""
        return self._made.pop(config, None)

    def _of(self, schedule: Schedule) -> NDArray[np.float32]:
        try:
            [stores] = self._extractor.extract_from(self._context, [MeasureCandidate(schedule, [])])
        except Exception as error:  # TVM's passes may raise anything; the configuration then has no features
            raise Refused(f"features: {type(error).__name__}") from error
        return summary(stores.numpy())


def summary(stores: NDArray[np.floating]) -> NDArray[np.float32]:
    """One row of features, `[2 * f + 1]`, of a program's stores, `[n_stores, f]`; NaN where there are none."""
    if not len(stores):
        return np.full(2 * stores.shape[1] + 1, np.nan, dtype=np.float32)
    main = stores[np.argmax(stores[:, ARITHMETIC].max(axis=1))]
    return np.concatenate([main, stores.max(axis=0), [len(stores)]]).astype(np.float32)
