"""Tells, without a replay, which configurations of a GPU's trace ask for more or fewer threads than are allowed.

`VerifyGPUCode` refuses most random tilings, but only after a replay and all post-processors. The number of threads
that a tiling asks for is a product of tile factors. The trace says which factors these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search.space import Digits, Knob

THREADS = "threadIdx.x"
LIMITS = {"meta_schedule.thread_extent_low_inclusive": "low", "meta_schedule.thread_extent_high_inclusive": "high"}


@dataclass(frozen=True)
class ThreadLimit:
    """The number of threads in one sketch, and its bounds.

    The number is `constant` times all tile `factors`; each of these is named by its knob's column and its part.
    """

    factors: tuple[tuple[int, int], ...]
    constant: int
    low: int
    high: int

    def holds(self, configs: Digits, knobs: Sequence[Knob]) -> NDArray[np.bool_]:
        """Which of the configurations `[n, n_knobs]` keep to the bounds, `[n]`."""
        threads = np.full(len(configs), self.constant, dtype=np.int64)
        for column, part in self.factors:
            threads *= np.array([v[part] for v in knobs[column].values], dtype=np.int64)[configs[:, column]]
        return (self.low <= threads) & (threads <= self.high)


def thread_limit(
    rows: Sequence[Any], columns: Mapping[int, int], tiles: Mapping[int, Sequence[int]]
) -> ThreadLimit | None:
    """The limit of a trace in JSON; None if it does not bind threads by tiling, or does so more than once.

    Args:
        rows: the instructions of the trace.
        columns: the column of the knob of each searched instruction, by the instruction's position.
        tiles: the generator's own factors of every tile, by position; they apply where there is no knob.
    """
    factor: dict[str, tuple[int | None, int]] = {}  # by variable: its knob's column and part, or None and the factor
    loops: dict[str, list[tuple[int | None, int]]] = {}
    bound: list[list[tuple[int | None, int]] | None] = []
    limits: dict[str, int] = {}
    for position, (kind, inputs, attrs, outputs) in enumerate(rows):
        if kind == "SamplePerfectTile":
            column = columns.get(position)
            factor.update(
                (v, (None, tiles[position][i]) if column is None else (column, i)) for i, v in enumerate(outputs)
            )
        elif kind == "Split":
            parts = zip(inputs[1:], outputs, strict=True)
            loops.update((loop, [factor[v]]) for v, loop in parts if isinstance(v, str) and v in factor)
        elif kind == "Fuse" and all(x in loops for x in inputs):
            loops[outputs[0]] = [f for x in inputs for f in loops[x]]
        elif kind == "Bind" and str(attrs[0]) == THREADS:
            bound.append(loops.get(inputs[0]))
        elif kind == "Annotate" and str(attrs[0]) in LIMITS:
            limits[LIMITS[str(attrs[0])]] = int(getattr(inputs[1], "value", inputs[1]))
    if len(bound) != 1 or bound[0] is None or len(limits) != 2:
        return None
    constant = int(np.prod([f for column, f in bound[0] if column is None], dtype=object))
    return ThreadLimit(tuple((c, p) for c, p in bound[0] if c is not None), constant, limits["low"], limits["high"])
