"""Features of the program that a configuration makes, which the host computes for a second look at the finalists."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from chameleon.search.space import Digits, KnobSpace

Featurize = Callable[[Digits], NDArray[np.floating]]
"""Gives the host's features `[n, f]` of configurations `[n, n_knobs]`; a row of NaN where there is no program.

The features depend on nothing but the configuration, and `f` is always the same.
"""


class ProgramFeatures:
    """The host's features; they are computed once for each configuration."""

    def __init__(self, featurize: Featurize) -> None:
        self._featurize = featurize
        self._rows: dict[bytes, NDArray[np.float32]] = {}
        self._width: int | None = None

    def of(self, configs: Digits, asked: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The features of `[n, n_knobs]`, `[n, f]`; rows of NaN for those that are not `asked` for, `[n]`.

        Raises:
            ValueError: if the host gives another shape than `[n, f]` with the `f` of its first answer.
        """
        keys = KnobSpace.keys(configs)
        wanted = np.flatnonzero(asked).tolist()
        missing = list({keys[i]: i for i in wanted if keys[i] not in self._rows}.values())
        if missing:
            fresh = self._checked(self._featurize(configs[missing]), len(missing))
            self._rows.update(zip([keys[i] for i in missing], fresh, strict=True))
        found = np.full((len(configs), self._width or 0), np.nan, dtype=np.float32)
        for i in wanted:
            found[i] = self._rows[keys[i]]
        return found

    def _checked(self, given: object, n: int) -> NDArray[np.float32]:
        features = np.asarray(given, dtype=np.float32)
        width = self._width if self._width is not None else features.shape[-1] if features.ndim == 2 else None
        if features.shape != (n, width):
            raise ValueError(
                f"expected `featurize` to return an array of shape ({n}, {'f' if width is None else width}) for {n} "
                f"configurations, got {features.shape}"
            )
        self._width = width
        return np.where(np.isfinite(features), features, np.float32(np.nan))


def distinct(features: NDArray[np.float32]) -> NDArray[np.int64]:
    """The columns of `[n, f]` that a tree can tell apart, in order.

    A tree sees only how a column orders the rows. So a constant column is left out, and of columns that order the rows
    alike the first one stays. Hosts give hundreds of columns, and most of them go; fitting costs time for each.
    """
    order = np.argsort(features, axis=0, kind="stable")
    ordered = np.take_along_axis(np.nan_to_num(features, nan=np.inf), order, axis=0)
    ranks = np.zeros(features.shape, dtype=np.int32)
    np.put_along_axis(ranks, order[1:], np.cumsum(ordered[1:] != ordered[:-1], axis=0, dtype=np.int32), axis=0)
    varying = np.flatnonzero(ranks.any(axis=0))
    first = {ranks[:, column].tobytes(): column for column in reversed(varying.tolist())}
    return np.array(sorted(first.values()), dtype=np.int64)
