"""Analytic landscapes with known structure, for the engine's tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chameleon.search import Digits, KnobSpace, location, option, split
from chameleon.testing.landscapes import Cost, bowl, constrained, listed, measure, sketched

__all__ = ["bowl", "constrained", "listed", "measure", "sketched", "tiled_matmul"]


def tiled_matmul() -> tuple[KnobSpace, Cost]:
    """A space of 2e9 points like a CPU matmul's: splits, options, a location; the cost is that of a cache model.

    The cost multiplies penalties for register tiles that do not suit 16 accumulators of 8 lanes, for outer tiles that
    miss a 32 kB cache, for too few parallel chunks, and for unrolling that does not fit.
    """
    space = KnobSpace(
        [
            split("i", 512, 4),
            split("j", 512, 4),
            split("k", 1024, 3),
            option("unroll", [0, 16, 64, 512]),
            option("parallel", [1, 2, 4, 8, 16, 32]),
            option("vector", [1, 4, 8, 16]),
            option("pack", [False, True]),
            location("write_back", ["root", "outer", "inner"]),
        ]
    )
    return space, lambda configs: _matmul_seconds(space, configs)


def _matmul_seconds(space: KnobSpace, configs: Digits) -> NDArray[np.float64]:
    i, j = (np.log2(np.array(space.knobs[a].values)[configs[:, a]]) for a in (0, 1))
    k = np.log2(np.array(space.knobs[2].values)[configs[:, 2]])[:, 1:].sum(axis=1)
    unroll, parallel, vector = (np.array(space.knobs[a].values)[configs[:, a]] for a in (3, 4, 5))
    registers = np.abs(i[:, 3] - 2) * 0.25 + np.abs(j[:, 3] - np.log2(vector) - 1) * 0.3
    tile = np.abs(i[:, 2:].sum(axis=1) + k - 11) * 0.12 + np.abs(j[:, 2:].sum(axis=1) + k - 12) * 0.12
    chunks = np.abs(i[:, 0] + j[:, 0] - np.log2(parallel) - 2) * 0.15
    lanes = np.abs(np.log2(vector) - 3) * 0.35
    body = np.abs(np.log2(1 + unroll) - np.minimum(i[:, 3] + k, 6)) * 0.05
    return 1e-3 * np.exp(
        registers + tile + chunks + lanes + body + 0.2 * (1 - configs[:, 6]) + 0.1 * np.abs(configs[:, 7] - 1)
    )
