"""Finds valid configurations where random draws hardly meet any: constraints may leave one in many millions.

A predicate says of a whole configuration only whether it is valid. So there is nothing to follow, but two things help.
Valid configurations lie together: from one that is known, small changes lead to others. And constraints of schedules
are often met by regular configurations: all knobs at their first values (a limit on a product), at the same height (an
equality), or on a line that rises or falls (an order, or values that differ). Those that are not met can be repaired
by changing one or two knobs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chameleon.search.moves import unique_rows
from chameleon.search.space import Digits, KnobSpace

Rng = np.random.Generator

WALKERS = 1 << 10
"""Configurations that walk at the same time."""
MOST_CHANGES = 3
"""A step of a walk changes 1 knob to this many."""


def walk(space: KnobSpace, seeds: Digits, known: set[bytes], n: int, draws: int, rng: Rng) -> Digits:
    """Random walks from valid configurations through valid ones, until `n` new ones are found.

    A step gives some knobs random values, moves them to neighbouring values, or exchanges the digits of two knobs. The
    last is what a constraint such as "all different" needs.

    Args:
        seeds: valid configurations, `[m >= 1, n_knobs]`.
        known: keys of configurations that are not returned.
        draws: most configurations to try.

    Returns:
        Different valid configurations that are not known, `[k <= n, n_knobs]`.
    """
    points = seeds[rng.permutation(len(seeds))[: WALKERS // 4]]
    found = unique_rows(points, known)
    for _ in range(max(1, draws // WALKERS)):
        if len(found) >= n:
            break
        starts = points[rng.integers(len(points), size=WALKERS)]
        moved = _changed(space, starts, rng)
        moved = moved[space.is_valid(moved)]
        if len(moved):
            points = unique_rows(np.vstack([moved, points]))[:WALKERS]
            found = unique_rows(np.vstack([found, moved]), known)
    return found[:n]


def regular(space: KnobSpace, draws: int, rng: Rng) -> Digits:
    """Valid configurations among the regular ones, or next to one of them, `[m, n_knobs]`; none if there is none.

    Args:
        draws: most configurations to try.
    """
    lines = space.canonical(_lines(space))
    valid = lines[space.is_valid(lines)]
    for _ in range(max(1, draws // WALKERS)):
        if len(valid):
            break
        near = _changed(space, lines[rng.integers(len(lines), size=WALKERS)], rng)
        valid = near[space.is_valid(near)]
    return unique_rows(valid)


def _lines(space: KnobSpace) -> Digits:
    """Configurations whose digits lie on a line over the knobs, `[m, n_knobs]`, in every sketch."""
    n, last = space.n_knobs, space.cardinalities - 1
    heights = np.linspace(0.0, 1.0, 9)
    ends = np.array([(a, b) for a in heights for b in heights])
    along = np.linspace(0.0, 1.0, n) if n > 1 else np.zeros(1)
    scaled = np.rint((ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * along) * last).astype(np.int64)
    rising = np.minimum(np.array([step * np.arange(n) for step in (1, 2, 3)]), last)
    rows = np.vstack([scaled, rising, rising[:, ::-1], last - rising, (last - rising)[:, ::-1]])
    each = np.repeat(np.clip(rows, 0, last), len(space.active), axis=0)
    if len(space.active) > 1:
        each[:, 0] = np.tile(np.arange(len(space.active)), len(rows))
    return unique_rows(space.canonical(each))


def _changed(space: KnobSpace, configs: Digits, rng: Rng) -> Digits:
    """Each of `configs` with a few of its knobs changed, `[n, n_knobs]`; all are canonical, not all are valid."""
    chosen = _some_knobs(space, configs, rng)
    random = rng.integers(space.cardinalities, size=configs.shape)
    near = np.clip(configs + rng.choice((-1, 1), size=configs.shape), 0, space.cardinalities - 1)
    kind = rng.integers(3, size=len(configs))[:, None]
    moved = np.where(chosen, np.where(kind == 0, random, near), configs)
    return space.canonical(np.where(kind == 2, _exchanged(space, configs, rng), moved))


def _some_knobs(space: KnobSpace, configs: Digits, rng: Rng) -> NDArray[np.bool_]:
    """1 to `MOST_CHANGES` active knobs of each configuration, `[n, n_knobs]`."""
    can = space.mask(configs) & (space.cardinalities > 1)
    dice = np.where(can, rng.random(configs.shape), 2.0)
    order = np.argsort(dice, axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(configs.shape[1])[None], axis=1)
    return can & (rank < rng.integers(1, MOST_CHANGES + 1, size=len(configs))[:, None])


def _exchanged(space: KnobSpace, configs: Digits, rng: Rng) -> Digits:
    """Each of `configs` with the digits of two knobs exchanged, where both knobs have that many values."""
    rows = np.arange(len(configs))
    a, b = rng.integers(configs.shape[1], size=(2, len(configs)))
    moved = configs.copy()
    moved[rows, a], moved[rows, b] = configs[rows, b], configs[rows, a]
    return np.minimum(moved, space.cardinalities - 1)
