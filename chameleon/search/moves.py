"""Small moves in a space, made for a whole matrix of configurations at once."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from chameleon.search.space import Digits, KnobSpace


class Moves:
    """The moves of all knobs of a space in one table, so that many walkers step together.

    Action 0 leaves a knob alone; action `j` is the j-th column of the knob's `moves`, counted from 1. When a move
    leads to another sketch, the knobs that become active get random digits.
    """

    def __init__(self, space: KnobSpace) -> None:
        self.space = space
        self.n_actions = np.array([1 + k.moves.shape[1] for k in space.knobs], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(space.cardinalities)[:-1]])
        width = int(self.n_actions.max())
        stay = np.concatenate([np.arange(k.cardinality) for k in space.knobs])
        self.table = np.repeat(stay[:, None], width, axis=1)
        for knob, start in zip(space.knobs, self.offsets, strict=True):
            self.table[start : start + knob.cardinality, 1 : 1 + knob.moves.shape[1]] = knob.moves

    def step(self, configs: Digits, actions: NDArray[np.int64], rng: np.random.Generator) -> Digits:
        """The configurations that `actions` `[n, n_knobs]` lead to; one that would become invalid stays as it is."""
        moved = self.table[self.offsets + configs, actions]
        return self.legal(configs, moved, rng)

    def legal(self, configs: Digits, moved: Digits, rng: np.random.Generator) -> Digits:
        """The rows of `moved`, made canonical, where they are valid, else those of `configs`, `[n, n_knobs]`."""
        before, after = self.space.mask(configs), self.space.mask(moved)
        entered = after & ~before
        if entered.any():
            moved = np.where(entered, rng.integers(self.space.cardinalities, size=moved.shape), moved)
        moved = np.where(after, moved, 0)
        return np.where(self.space.is_valid(moved)[:, None], moved, configs)

    def mutate(self, configs: Digits, rng: np.random.Generator) -> Digits:
        """Gives one random active knob of each configuration another random value (AutoTVM's neighbourhood)."""
        can = self.space.mask(configs) & (self.space.cardinalities > 1)
        knob = np.argmax(np.where(can, rng.random(configs.shape), -1.0), axis=1)
        rows = np.arange(len(configs))
        cards = self.space.cardinalities[knob]
        shift = 1 + (rng.random(len(configs)) * np.maximum(cards - 1, 1)).astype(np.int64)
        moved = configs.copy()
        moved[rows, knob] = np.where(cards > 1, (configs[rows, knob] + shift) % cards, configs[rows, knob])
        return self.legal(configs, moved, rng)

    def nudge(self, configs: Digits, rng: np.random.Generator) -> Digits:
        """Makes one small move of one random active knob of each configuration."""
        can = self.space.mask(configs) & (self.n_actions > 1)
        knob = np.argmax(np.where(can, rng.random(configs.shape), -1.0), axis=1)
        actions = np.zeros_like(configs)
        actions[np.arange(len(configs)), knob] = rng.integers(np.minimum(1, self.n_actions - 1), self.n_actions)[knob]
        return self.step(configs, actions, rng)

    def around(self, configs: Digits, rng: np.random.Generator, distance: int = 1) -> Digits:
        """All valid configurations that one small move of one knob leads to from any of `configs`, `[m, n_knobs]`.

        Repeats are possible.

        Args:
            distance: how often the same move is made.
        """
        if not len(configs):
            return configs
        found = [configs[:0]]
        for i, knob in enumerate(self.space.knobs):
            for column in knob.moves.T:
                moved = configs.copy()
                for _ in range(distance):
                    moved[:, i] = column[moved[:, i]]
                moved = self.legal(configs, moved, rng)
                found.append(moved[(moved != configs).any(axis=1)])
        return np.vstack(found)


def first_rows(configs: Digits, known: Container[bytes] = ()) -> NDArray[np.int64]:
    """Positions of the rows of `[n, n_knobs]` that are not `known`, in order; of equal rows only the first."""
    seen: set[bytes] = set()
    keep = []
    for i, key in enumerate(KnobSpace.keys(configs)):
        if key not in seen and key not in known:
            seen.add(key)
            keep.append(i)
    return np.array(keep, dtype=np.int64)


def unique_rows(configs: Digits, known: Container[bytes] = ()) -> Digits:
    """The rows of `[n, n_knobs]` that are not `known`, once each, in order of first appearance."""
    return configs[first_rows(configs, known)]


def ranked(
    configs: Digits, scores: NDArray[np.float64], known: Container[bytes]
) -> tuple[Digits, NDArray[np.float64]]:
    """Those of `configs` `[n, n_knobs]` that are not `known`, once each, best score first, and their scores."""
    order = np.argsort(-scores, kind="stable")
    order = order[first_rows(configs[order], known)]
    return configs[order], scores[order]
