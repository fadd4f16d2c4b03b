"""What the space that a host makes promises, and what a host does with a searcher."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from chameleon.search.recipes import SEARCHERS, UnknownSearcherError
from chameleon.search.space import KnobSpace
from chameleon.testing.report import ContractError, expect

Run = Callable[[str, int, int], Sequence[Hashable]]
"""Tunes with the searcher of that name, a seed and a budget; returns what was measured, in its order."""


def check_space(space: KnobSpace, rng: np.random.Generator, n: int = 256) -> None:
    """Checks the space that a host made of its own, at up to `n` of its configurations.

    Raises:
        ContractError: if a configuration has no index of its own, features are missing, moves lead out of the space,
            or nothing in it is valid.
    """
    rows = np.unique(space.sample(n, rng), axis=0)
    rows = np.vstack([rows, space.rows(0, n)])
    expect((space.canonical(rows) == rows).all(), "samples are canonical: inactive knobs have the digit 0")
    expect(space.is_valid(rows).any(), f"some of {len(rows)} configurations are valid")
    for row in rows:
        expect((space.digits(space.index(row)) == row).all(), f"an index leads back to its digits, {row.tolist()}")
        expect(set(space.values(row)) <= set(space.names), "values have the names of knobs")
    features = space.features(rows)
    expect(features.ndim == 2 and len(features) == len(rows), "each configuration has a row of features")
    active = np.concatenate(
        [np.repeat(space.mask(rows)[:, i, None], k.features.shape[1], axis=1) for i, k in enumerate(space.knobs)],
        axis=1,
    )
    expect(np.isfinite(features[active]).all(), "the features of active knobs are finite")
    for knob in space.knobs:
        expect(len(knob.moves) == len(knob.features) == knob.cardinality, f"knob {knob.name!r}: a row for each value")
        inside = (knob.moves >= 0) & (knob.moves < knob.cardinality)
        expect(inside.all(), f"knob {knob.name!r}: moves stay inside of it")


def check_host(run: Run, searchers: Iterable[str] = tuple(SEARCHERS), trials: int = 24) -> None:
    """Checks a host, on a space of its own of more than `trials` configurations, all of which can be measured.

    Args:
        run: tunes with the searcher of that name, with this seed and this many trials, and returns what was measured.
            Where times differ from run to run, so may the search: give the host something that answers the same.
        searchers: the names to try.
        trials: the budget.

    Raises:
        ContractError: if a budget is not spent or exceeded, something is measured twice, or the same seed does not
            give the same search.
    """
    for name in searchers:
        measured = list(run(name, 3, trials))
        expect(len(measured) == trials, f"{name}: {trials} trials are made, got {len(measured)}")
        expect(len(set(measured)) == trials, f"{name}: nothing is measured twice")
        expect(list(run(name, 3, trials)) == measured, f"{name}: the same seed gives the same search")
        expect(len(run(name, 3, 1)) == 1, f"{name}: a budget of one is one trial")
    try:
        run("chamelion", 3, 1)
    except UnknownSearcherError:
        return
    raise ContractError("an unknown searcher is refused: expected an UnknownSearcherError, got none")
