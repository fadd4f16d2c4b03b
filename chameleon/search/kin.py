"""Warm start: what was measured in kin spaces starts the search of a new one.

A kin space has knobs with the same names, which play the same roles, perhaps with other extents: the same operator
with another shape, or on another device. The idea is AutoTVM's transfer learning (Chen 2018, sec. 4). There the model
sees features of the loops; here a configuration is translated into one of the new space.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search.searcher import Searcher
from chameleon.search.space import Digits, Knob, KnobSpace
from chameleon.search.trial import Trial

Values = Mapping[str, Any]
"""A configuration by the names of its knobs, as `KnobSpace.values` gives it."""


ALIKE = 0.8
"""Spaces are kin where at least this share of all their knobs is the same by name and kind."""

STARTS = 4
"""So many configurations like those that were fastest elsewhere are asked for first."""

MOST_KIN = 4
"""At most so many kin spaces teach a new one, the nearest."""


@dataclass(frozen=True)
class Kin:
    """The measured configurations of one kin space.

    Attributes:
        configs: by name of the knob, the fastest first.
        throughput: of each of them, relative to the best, `[n]` in 0..1.
        distance: how different its workload is, in any unit; the nearest are asked first.
    """

    configs: tuple[Values, ...]
    throughput: tuple[float, ...]
    distance: float = 0.0

    @classmethod
    def of(cls, space: KnobSpace, trials: Sequence[Trial], distance: float = 0.0) -> Kin:
        """What the successful `trials` of a space tell. Failures are left out: shapes decide what fails."""
        worked = sorted((t for t in trials if t.seconds is not None), key=lambda t: t.cost)
        return cls(
            tuple(space.values(t.config) for t in worked),
            tuple(worked[0].cost / t.cost for t in worked),
            distance,
        )


def distance(one: KnobSpace, other: KnobSpace) -> float:
    """How much the loops of two spaces differ in extent, in doublings; infinite where most knobs are not the same."""
    ours, theirs = ({(k.name, k.kind): k for k in space.knobs} for space in (one, other))
    shared = ours.keys() & theirs.keys()
    if len(shared) < ALIKE * len(ours.keys() | theirs.keys()):
        return math.inf
    splits = [(ours[key].values[0], theirs[key].values[0]) for key in shared if key[1] == "split"]
    return sum(abs(math.log2(math.prod(a) / math.prod(b))) for a, b in splits)


def kin_among(space: KnobSpace, others: Iterable[tuple[KnobSpace, Sequence[Trial]]]) -> list[Kin]:
    """The nearest of `others` that are kin of `space` and have successful trials, nearest first."""
    near = sorted(
        ((distance(space, other), i, other, trials) for i, (other, trials) in enumerate(others)), key=lambda o: o[:2]
    )
    found = (Kin.of(other, trials, far) for far, _, other, trials in near if far < math.inf)
    return list(itertools.islice((kin for kin in found if kin.configs), MOST_KIN))


class Translator:
    """Finds the configurations of a space that are most like given ones. Knobs are matched by name.

    For a split the inner factors and the sizes of the tiles are compared, in doublings, since they have to suit the
    machine; the outermost factor is only what the loop's extent leaves. Of numbers the nearest is taken, and of other
    values the equal one, or else the first.
    """

    def __init__(self, space: KnobSpace) -> None:
        self._space = space
        self._tiles = [_tiles(k.values) if k.kind == "split" else None for k in space.knobs]
        self._found: dict[tuple[int, Any], int] = {}

    def nearest(self, values: Values) -> Digits | None:
        """The digits `[n_knobs]` of the configuration that is most like `values`, valid or not.

        It is None if no knob has one of these names.
        """
        if not set(values) & set(self._space.names):
            return None
        digits = [self._digit(i, values[n]) if n in values else 0 for i, n in enumerate(self._space.names)]
        return self._space.canonical(np.array([digits], dtype=np.int64))[0]

    def _digit(self, position: int, value: Any) -> int:
        try:
            if (position, value) not in self._found:
                self._found[position, value] = self._searched(position, value)
            return self._found[position, value]
        except TypeError:  # a list or the like cannot be kept
            return self._searched(position, value)

    def _searched(self, position: int, value: Any) -> int:
        knob, tiles = self._space.knobs[position], self._tiles[position]
        if tiles is not None:
            fits = isinstance(value, tuple) and len(value) == len(knob.values[0])
            return int(np.abs(tiles - _tiles([value])).sum(axis=1).argmin()) if fits else 0
        if value in knob.values:
            return knob.values.index(value)
        return _nearest_number(knob, value)


def _tiles(splits: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """The logarithms of the inner factors and of the sizes of the inner tiles, `[n, 2 * (parts - 1)]`."""
    logs = np.log2(np.array([s[1:] for s in splits], dtype=np.float64))
    return np.hstack([logs, np.cumsum(logs[:, ::-1], axis=1)])


def _nearest_number(knob: Knob, value: Any) -> int:
    numbers = [isinstance(v, (int, float)) and not isinstance(v, bool) for v in (value, *knob.values)]
    return int(np.argmin([abs(v - value) for v in knob.values])) if all(numbers) else 0


def starting_points(space: KnobSpace, kin: Sequence[Kin], most: int) -> Digits:
    """The valid configurations that are most like what was fastest elsewhere, `[m <= most, n_knobs]`, all different.

    They come in rounds: first the best of every kin, nearest kin first; then the second best of every kin; and so on.
    """
    translator, found = Translator(space), dict[bytes, Digits]()
    kin = sorted(kin, key=lambda k: k.distance)
    for place in range(most):
        for group in kin:
            row = translator.nearest(group.configs[place]) if place < len(group.configs) else None
            if row is not None and space.is_valid(row[None])[0]:
                found.setdefault(row.tobytes(), row)
            if len(found) == most:
                return np.array(list(found.values()))
    return np.array(list(found.values()), dtype=np.int64).reshape(-1, space.n_knobs)


def beliefs(space: KnobSpace, kin: Sequence[Kin], most: int) -> tuple[Digits, NDArray[np.float64]]:
    """What was measured elsewhere as configurations here `[n, n_knobs]`, valid or not, and their throughput `[n]`.

    At most `most` are taken from all kin together. They are spread evenly over good and bad ones.
    """
    translator, rows, throughput = Translator(space), list[Digits](), list[float]()
    for group in kin:
        take = min(len(group.configs), max(most // len(kin), 1))
        for i in np.linspace(0, len(group.configs) - 1, take).astype(int).tolist():
            row = translator.nearest(group.configs[i])
            if row is not None:
                rows.append(row)
                throughput.append(group.throughput[i])
    return np.array(rows, dtype=np.int64).reshape(-1, space.n_knobs), np.array(throughput, dtype=np.float64)


def warm_start(searcher: Searcher, kin: Sequence[Kin], *, starts: int = STARTS, most: int = 512) -> int:
    """Lets a searcher begin with what was fastest in kin spaces, and its cost model learn from what was slow there.

    It may be wrong: `Learner` says how the beliefs fade.

    Args:
        kin: what was measured in other spaces; it replaces what the searcher believed before.
        starts: at most so many configurations are asked for first.
        most: at most so many configurations are believed.

    Returns:
        How many starting points will be asked for first.
    """
    searcher.believe(*beliefs(searcher.space, kin, most))
    return searcher.begin_with(starting_points(searcher.space, kin, starts))
