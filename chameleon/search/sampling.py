"""Chooses which candidates to measure: adaptive sampling with synthesis (Ahn 2020, sec. 3.3), or epsilon-greedy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chameleon.search.moves import unique_rows
from chameleon.search.space import Digits, KnobSpace

Floats = NDArray[np.float64]


def normalised(features: NDArray[np.float32]) -> Floats:
    """Scales the columns of `[n, f]` to mean 0 and deviation 1; constant columns and inactive knobs (NaN) become 0."""
    x = features.astype(np.float64)
    known = np.isfinite(x)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, x, 0.0).sum(axis=0) / count
    centred = np.where(known, x - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    return centred / np.where(deviation > 1e-9, deviation, 1.0)


def clusters(points: Floats, k: int, seed: int) -> NDArray[np.int64]:
    """The cluster of each of `points` `[n, f]`, `[n]`, by k-means; fewer than `k` where fewer points differ."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    k = min(k, len(np.unique(points, axis=0)))
    with threadpool_limits(limits=1):
        fitted = KMeans(k, init="k-means++", n_init="auto", random_state=seed, max_iter=50).fit(points)
    return np.asarray(fitted.labels_, dtype=np.int64)


def snap(labels: NDArray[np.int64], scores: Floats) -> NDArray[np.int64]:
    """The position of the best-scored member of each cluster, best cluster first.

    We differ from the paper: it takes the configuration nearest to the centroid.
    """
    order = np.argsort(-scores, kind="stable")
    _, first = np.unique(labels[order], return_index=True)
    return order[np.sort(first)]


def mode(configs: Digits) -> Digits:
    """The most frequent digit of every knob of `[n, n_knobs]`, `[n_knobs]`; of equally frequent ones the lowest."""
    return np.array([np.bincount(column).argmax() for column in configs.T], dtype=np.int64)


def synthesise(
    picks: Digits, groups: Sequence[Digits], bad: NDArray[np.bool_], space: KnobSpace, known: set[bytes]
) -> Digits:
    """Replaces each `bad` pick by the mode of its group of candidates (sample synthesis).

    A pick stays as it is where that mode is invalid, known or picked already.

    Args:
        picks: `[k, n_knobs]`.
        groups: for each pick, the candidates that it stands for, `[g, n_knobs]`.
        bad: which picks to replace, such as those that are expected to fail, `[k]`.
        known: keys of configurations that are taken already.
    """
    taken = known | set(KnobSpace.keys(picks))
    out = picks.copy()
    for i in np.flatnonzero(bad).tolist():
        made = space.canonical(mode(groups[i])[None])
        key = KnobSpace.keys(made)[0]
        if key not in taken and space.is_valid(made)[0]:
            out[i] = made[0]
            taken.add(key)
    return out


def epsilon_greedy(ranked: Digits, n: int, epsilon: float, random: Digits, rng: np.random.Generator) -> Digits:
    """The top `n` of `ranked` `[m, n_knobs]`, but each place goes to a `random` one with probability `epsilon`."""
    dice = rng.random(n) < epsilon
    top, other = iter(ranked), iter(random)
    rows = [next(other if roll else top, None) for roll in dice]
    rows += [*top, *other]
    kept = [r for r in rows if r is not None]
    return unique_rows(np.array(kept, dtype=np.int64).reshape(-1, ranked.shape[1]))[:n]
