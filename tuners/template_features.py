"""Features of instantiated templates, as AutoTVM computes them, for a second look at a searcher's finalists.

AutoTVM describes a program by its loops (`itervar`: extent, annotation, and how each buffer is touched at that level),
or by curves sampled from these (`curve`, always 480 numbers). Both need the template to be instantiated and lowered,
which takes some ten milliseconds each.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chameleon.search import Digits
from tuners.autotvm_results import message_of
from tuners.config_space import ConfigKnobs

Kind = Literal["itervar", "curve"]

SAMPLES = 20
"""Points of a curve, as AutoTVM takes them."""
PROBED = 16
"""So many configurations, always the same ones, tell how long the rows are.

A loop nest may have fewer loops than another, and then its `itervar` row is shorter. What is longer is cut off.
"""


class TemplateFeatures:
    """Computes the features of a task's configurations, and keeps what it learnt of the template's refusals.

    Args:
        task: an `autotvm.task.Task`.
        knobs: its space.
        kind: which of AutoTVM's features.
    """

    def __init__(self, task: Any, knobs: ConfigKnobs, kind: Kind) -> None:
        self._task, self._knobs, self._kind = task, knobs, kind
        self._width: int | None = None
        self._refusals: dict[tuple[int, ...], str | None] = {}

    def __call__(self, configs: Digits) -> NDArray[np.float32]:
        """The features of `[n, n_knobs]`, `[n, f]`; NaN where there is no program, and at the end of short rows."""
        if self._width is None:
            drawn = self._knobs.space.sample(PROBED, np.random.default_rng(0))
            self._width = max(len(self._of(row)) for row in drawn)
        found = np.full((len(configs), self._width), np.nan, dtype=np.float32)
        for i, config in enumerate(configs):
            row = self._of(config)[: self._width]
            found[i, : len(row)] = row
        return found

    def refusal(self, row: Digits) -> str | None:
        """Why the template refuses a configuration; None if it does not. The template is not instantiated twice."""
        key = tuple(int(d) for d in row)
        return self._refusals.pop(key) if key in self._refusals else instantiated(self._task, self._knobs, row)[1]

    def _of(self, row: Digits) -> NDArray[np.float32]:
        """The features of one configuration; none if there is no program."""
        made, refusal = instantiated(self._task, self._knobs, row)
        self._refusals[tuple(int(d) for d in row)] = refusal
        if made is None:
            return np.empty(0, dtype=np.float32)
        feature = importlib.import_module("tvm.autotvm.feature")
        try:
            if self._kind == "itervar":
                return np.array(feature.get_itervar_feature_flatten(*made, take_log=True), dtype=np.float32)
            return np.array(feature.get_buffer_curve_sample_flatten(*made, sample_n=SAMPLES), dtype=np.float32)
        except Exception:  # a schedule that cannot be lowered: the builder will say why
            return np.empty(0, dtype=np.float32)


def instantiated(task: Any, knobs: ConfigKnobs, row: Digits) -> tuple[tuple[Any, Any] | None, str | None]:
    """The schedule and arguments of a configuration, None if there are none; and why the template refuses it, if so.

    Instantiating the template tells this in milliseconds. AutoTVM would find out in the builder, at the price of a
    trial. Any other error that happens here is left to the builder.
    """
    config = knobs.config(row)
    try:
        with task.target:
            made = task.instantiate(config)
    except Exception as error:  # a template may raise anything; only AutoTVM's own error is a refusal
        return None, message_of(error) if type(error).__name__ == "InstantiationError" else None
    refusal = None if config.valid() else "; ".join(dict.fromkeys(str(e) for e in config.errors))
    return (None if refusal else made), refusal
