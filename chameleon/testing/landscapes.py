"""Small spaces of every kind, and formulas in place of the hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from chameleon.search.space import Digits, KnobSpace, option, split
from chameleon.search.trial import Status, Trial

Cost = Callable[[Digits], NDArray[np.float64]]


def measure(configs: Digits, cost: Cost) -> list[Trial]:
    """Trials of `configs`; a cost that is not finite is a failure."""
    return [
        Trial(tuple(c), Status.OK, float(s))
        if np.isfinite(s)
        else Trial(tuple(c), Status.RUN_ERROR, message="it crashed")
        for c, s in zip(configs.tolist(), cost(configs), strict=True)
    ]


def bowl(space: KnobSpace, centre: NDArray[np.int64]) -> Cost:
    """Distance from `centre` in digits, over all knobs."""
    return lambda configs: 1e-3 * (1 + np.abs(configs - centre).sum(axis=1))


def everything(space: KnobSpace) -> set[tuple[int, ...]]:
    """All valid configurations of a space that can be listed."""
    rows = space.rows(0, space.size)
    return {tuple(r) for r in rows[space.is_valid(rows)].tolist()}


def plain() -> KnobSpace:
    """Three knobs, all combinations of which exist."""
    return KnobSpace([split("s", 12, 2), option("o", [0, 4, 16]), option("p", ["a", "b", "c", "d"])])


def sketched() -> KnobSpace:
    """Three sketches that share some knobs."""
    return KnobSpace(
        [option("sketch", [0, 1, 2]), split("a", 12, 2), option("b", [0, 1, 2, 3]), split("c", 8, 3)],
        sketches=[(0, 1), (0, 1, 2), (0, 3)],
    )


def listed() -> KnobSpace:
    """A space of which only every third configuration exists."""
    full = KnobSpace([option("x", list(range(6))), option("y", [1, 2, 4, 8]), option("z", ["p", "q", "r"])])
    return KnobSpace(full.knobs, listed=full.rows(0, full.size)[::3])


def constrained() -> KnobSpace:
    """A free predicate forbids two thirds."""
    knobs = [option("x", list(range(6))), option("y", list(range(6))), split("s", 8, 2)]
    return KnobSpace(knobs, valid=lambda configs: (configs[:, 0] + configs[:, 1]) % 3 == 0)


SPACES: Mapping[str, Callable[[], KnobSpace]] = {
    "plain": plain,
    "sketched": sketched,
    "listed": listed,
    "constrained": constrained,
}
"""One small space of each kind, by name."""
