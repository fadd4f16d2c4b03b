"""Turns AutoTVM's configuration spaces into the engine's knobs, and configurations from one form to the other.

AutoTVM gives each configuration a number, in which the first knob changes fastest. This number is the only thing that
both sides share. A `multi_filter` becomes the space's free predicate. Here it is asked about one configuration at a
time; AutoTVM itself evaluates it for the whole range before it answers anything. Nothing here imports tvm before a
configuration is made.
"""

from __future__ import annotations

import importlib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.search import Digits, Knob, KnobSpace, option, split_of

ONLY = "only"
"""Name of the one knob of a template without knobs: a space of one point."""


class ConfigKnobs:
    """One `autotvm.task.space.ConfigSpace` as a `KnobSpace`.

    Digits are positions in AutoTVM's lists of the knobs' values; the knobs are in AutoTVM's order.

    Args:
        config_space: that of a task which was created, so that its knobs are known.
    """

    def __init__(self, config_space: Any) -> None:
        self._config_space = config_space
        self._spaces: dict[str, Any] = dict(config_space.space_map)
        self._filter = getattr(config_space, "_shared_filter", None)  # set by `multi_filter`, from TVM 0.11 on
        self._verdicts: dict[bytes, bool] = {}
        knobs = [knob_of(name, space) for name, space in self._spaces.items()] or [option(ONLY, [None])]
        self.space = KnobSpace(knobs, valid=self._valid if self._filter else None)
        self._weights = [math.prod(len(k.values) for k in knobs[:i]) for i in range(len(knobs))]

    def index(self, digits: Sequence[int] | Digits) -> int:
        """AutoTVM's number of a configuration `[n_knobs]`."""
        return sum(int(d) * w for d, w in zip(digits, self._weights, strict=True))

    def digits(self, index: int) -> Digits:
        """The digits `[n_knobs]` of the configuration with AutoTVM's number `index`.

        Raises:
            IndexError: if the space has no such number.
        """
        if not 0 <= index < self._weights[-1] * self.space.knobs[-1].cardinality:
            raise IndexError(f"configuration {index} is outside of a space of {self.space.size}")
        return np.array([index // w % k.cardinality for w, k in zip(self._weights, self.space.knobs, strict=True)])

    def entities(self, digits: Sequence[int] | Digits) -> OrderedDict[str, Any]:
        """AutoTVM's entity of every knob, by name."""
        return OrderedDict(
            (name, space[int(d)]) for (name, space), d in zip(self._spaces.items(), digits, strict=False)
        )

    def config(self, digits: Sequence[int] | Digits) -> Any:
        """The `ConfigEntity` of a configuration `[n_knobs]`.

        It is not made by `ConfigSpace.get`, since that evaluates a `multi_filter` on the whole range.
        """
        make = importlib.import_module("tvm.autotvm.task.space").ConfigEntity
        space = self._config_space
        return make(self.index(digits), space.code_hash, self.entities(digits), getattr(space, "_constraints", []))

    def find(self, config: Any) -> Digits | None:
        """The digits `[n_knobs]` of a `ConfigEntity`, such as one from a log; None if this space has no equal."""
        wanted = values_of(config)
        if set(wanted) != set(self._spaces):
            return None
        try:
            numbered = self.digits(int(config.index))
        except IndexError:
            numbered = None
        if numbered is not None and {name: plain(e) for name, e in self.entities(numbered).items()} == wanted:
            return numbered
        found = [_position(space, wanted[name]) for name, space in self._spaces.items()]
        return None if None in found else np.array(found or [0], dtype=np.int64)

    def _valid(self, configs: Digits) -> NDArray[np.bool_]:
        assert self._filter is not None
        keys = KnobSpace.keys(configs)
        for key, row in zip(keys, configs, strict=True):
            if key not in self._verdicts:
                self._verdicts[key] = bool(self._filter(self.entities(row)))
        return np.fromiter((self._verdicts[k] for k in keys), dtype=bool, count=len(keys))


def knob_of(name: str, space: Any) -> Knob:
    """The engine's knob for one of AutoTVM's.

    Splits, orders of loops and annotations get features and moves that suit their kind.
    """
    entities = [space[i] for i in range(len(space))]
    values = [plain(e) for e in entities]
    if all(hasattr(e, "size") for e in entities):
        return split_of(name, _factorisations(values, getattr(space, "product", 0)))
    if all(hasattr(e, "perm") for e in entities):
        return _order(name, values)
    if all(hasattr(e, "anns") for e in entities):
        return _annotations(name, values)
    return option(name, values)


def plain(entity: Any) -> Any:
    """The value of one of AutoTVM's entities as plain data that can be compared."""
    if hasattr(entity, "size"):
        return tuple(int(s) for s in entity.size)
    if hasattr(entity, "perm"):
        return tuple(int(p) for p in entity.perm)
    if hasattr(entity, "anns"):
        return tuple(a if isinstance(a, str) else int(a) for a in entity.anns)
    return tuple(entity.val) if isinstance(entity.val, list) else entity.val


def values_of(config: Any) -> dict[str, Any]:
    """A `ConfigEntity`, such as one from a log, as plain values by the names of the knobs."""
    return {name: plain(config[name]) for name in config}


def _position(space: Any, value: Any) -> int | None:
    return next((i for i in range(len(space)) if plain(space[i]) == value), None)


def _factorisations(sizes: Sequence[tuple[int, ...]], extent: int) -> list[tuple[int, ...]]:
    """The sizes with an outermost factor that makes all products equal, so that prime factors can move between levels.

    AutoTVM leaves the outermost factor open (-1). The product is the loop's extent. But where a split has a tail, the
    other factors do not divide the extent: then the product is the least common multiple of the inner products.
    """
    inner = [math.prod(s[1:]) for s in sizes]
    whole = extent if extent > 0 and not any(extent % p for p in inner) else math.lcm(*inner)
    return [(whole // p, *s[1:]) for s, p in zip(sizes, inner, strict=True)]


def _order(name: str, perms: Sequence[tuple[int, ...]]) -> Knob:
    """A knob for orders of loops; its features are the place of every loop, and a move swaps two neighbours."""
    places = np.argsort(np.array(perms, dtype=np.int64).reshape(len(perms), -1), axis=1)

    def swapped(perm: tuple[int, ...], i: int) -> tuple[int, ...]:
        return (*perm[:i], perm[i + 1], perm[i], *perm[i + 2 :])

    columns = [[swapped(p, i) for p in perms] for i in range(places.shape[1] - 1)]
    return _sequences(name, perms, places.astype(np.float32), columns)


def _annotations(name: str, anns: Sequence[tuple[Any, ...]]) -> Knob:
    """A knob for annotations of loops; its features are one-hot for each loop, and a move changes one loop's."""
    known = sorted({a for row in anns for a in row}, key=str)
    hot = [[float(a == k) for a in row for k in known] for row in anns]
    columns = [[(*r[:i], k, *r[i + 1 :]) for r in anns] for i in range(len(anns[0])) for k in known]
    return _sequences(name, anns, np.array(hot, dtype=np.float32), columns)


def _sequences(
    name: str, values: Sequence[Any], features: NDArray[np.float32], columns: Sequence[Sequence[Any]]
) -> Knob:
    """An option whose values are sequences; its moves lead to the values named in `columns`, where they exist."""
    base = option(name, values)
    here = np.arange(len(values))
    position: Mapping[Any, int] = {v: i for i, v in reversed(list(enumerate(values)))}
    moves = np.array([[position.get(v, i) for i, v in enumerate(c)] for c in columns], dtype=np.int64)
    moves = moves.reshape(-1, len(values)).T
    moves = moves[:, (moves != here[:, None]).any(axis=0)]
    stuck = (moves == here[:, None]).all(axis=1).any()
    return Knob(name, "option", base.values, features, np.hstack([moves, base.moves]) if stuck else moves)
