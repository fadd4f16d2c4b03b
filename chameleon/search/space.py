"""The space of configurations: knobs, digits and indices.

A configuration is a row of digits, one for each knob (`[n_knobs]`). A digit is a position in the list of the knob's
values. Many configurations are a matrix (`[n, n_knobs]`, int64). A row of digits can be read as one number in mixed
radix (each digit has its own base). This number is the configuration's index, a Python int, since real spaces exceed
2^64.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Digits = NDArray[np.int64]
Predicate = Callable[[Digits], Any]

ENUMERABLE = 1 << 18
"""Spaces with at most this many configurations may be listed one by one."""


@dataclass(frozen=True)
class Knob:
    """One choice in a schedule, with its values in a sensible order.

    Attributes:
        name: unique in its space.
        kind: `split` (a factorisation of a loop's extent), `option` (anything), `location` (where to compute).
        values: what each digit stands for.
        features: what the values mean to a cost model, `[cardinality, n_features]` float32.
        moves: the digit that each small move leads to from each digit, `[cardinality, n_moves]`; the same digit where
            the move does not apply. A column is one kind of move, the same for all digits. Examples: to the next
            option, or (in a split) one factor 2 from level 0 to level 3.
    """

    name: str
    kind: Literal["split", "option", "location"]
    values: tuple[Any, ...]
    features: NDArray[np.float32] = field(repr=False, compare=False)
    moves: Digits = field(repr=False, compare=False)

    @property
    def cardinality(self) -> int:
        return len(self.values)

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """For each digit, the digits that one small move leads to (a symmetric relation)."""
        return tuple(tuple(sorted({int(j) for j in row} - {i})) for i, row in enumerate(self.moves))


def split(name: str, extent: int, parts: int, max_innermost: int | None = None) -> Knob:
    """A knob that splits a loop of `extent` into `parts` nested loops: all exact factorisations, outermost loop first.

    Args:
        max_innermost: upper bound on the last factor, if there is one.

    Raises:
        ValueError: if the extent or the number of parts is below 1.
    """
    if extent < 1 or parts < 1:
        raise ValueError(f"split {name!r} needs extent >= 1 and parts >= 1, got extent={extent}, parts={parts}")
    values = tuple(f for f in _factorisations(extent, parts) if max_innermost is None or f[-1] <= max_innermost)
    return split_of(name, values)


def split_of(name: str, values: Sequence[Sequence[int]]) -> Knob:
    """A split whose factorisations are given, for a host that lists them itself by its own rules."""
    factors = tuple(tuple(int(x) for x in v) for v in values)
    logs = np.log2(np.array(factors, dtype=np.float64).reshape(len(factors), -1))
    inner = np.cumsum(logs[:, ::-1], axis=1)[:, 1:]  # running products from the inside: the size of each inner tile
    return Knob(name, "split", factors, np.hstack([logs, inner]).astype(np.float32), _prime_moves(factors))


def option(name: str, values: Sequence[Any]) -> Knob:
    """A knob that is an ordered list of alternatives.

    The features of a value are its position and, for numbers, its size. For integers the largest power of two that
    divides them is a feature as well, since vectors, warps and cache lines come in such sizes.
    """
    values = _plain(values)
    numeric = bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    position = np.arange(len(values), dtype=np.float32)[:, None]
    columns = [position]
    if numeric:
        columns.append(np.array([[_size(v)] for v in values], dtype=np.float32))
        if all(isinstance(v, int) for v in values) and max(abs(v) for v in values) > 2:
            columns.append(np.array([[math.log2(v & -v) if v else 0.0] for v in values], dtype=np.float32))
    elif 2 < len(values) <= 16:
        columns.append(np.eye(len(values), dtype=np.float32))
    return Knob(name, "option", values, np.hstack(columns), _line_moves(len(values)))


def _size(value: float) -> float:
    """The logarithm of a number's size, with its sign; infinity is as large as the largest number of 64 bits."""
    size = min(math.log2(1 + abs(value)), 1024.0)
    return -size if value < 0 else size


def location(name: str, values: Sequence[Any]) -> Knob:
    """A knob that lists the places where a block may be computed, from the outermost to the innermost."""
    position = np.arange(len(values), dtype=np.float32)[:, None]
    return Knob(name, "location", _plain(values), position, _line_moves(len(values)))


def _plain(values: Iterable[Any]) -> tuple[Any, ...]:
    """The values with numpy's scalars and arrays as plain numbers and tuples."""
    return tuple(
        _plain(v)
        if isinstance(v, np.ndarray) and v.ndim
        else v.item()
        if isinstance(v, (np.generic, np.ndarray))
        else v
        for v in values
    )


class KnobSpace:
    """All configurations of a list of knobs.

    With `sketches`, the first knob selects a sketch: the entry of `sketches` at its digit names the knobs that are
    active in that sketch. A configuration is canonical if the digits of all inactive knobs are 0. Only canonical
    configurations count.

    Args:
        knobs: at least one; names are unique.
        sketches: for each value of the first knob, the positions of the active knobs (the first is always active).
        valid: a predicate for the constraints that are known without measuring; it is free. It takes digits, not
            values: `[n, n_knobs] -> [n]`, which is fast, or one row `[n_knobs]` -> bool.
        listed: the only configurations that exist, `[m, n_knobs]`, where a host can list them.

    Raises:
        ValueError: on empty or repeated knobs, knobs without values, or sketches that do not fit the first knob.
    """

    def __init__(
        self,
        knobs: Sequence[Knob],
        *,
        sketches: Sequence[Sequence[int]] | None = None,
        valid: Predicate | None = None,
        listed: Digits | None = None,
    ) -> None:
        names = [k.name for k in knobs]
        if not knobs or len(set(names)) < len(names) or not all(k.values for k in knobs):
            raise ValueError(f"a space needs knobs with unique names and at least one value each, got {names}")
        if sketches is not None and len(sketches) != knobs[0].cardinality:
            raise ValueError(f"{knobs[0].cardinality} sketches expected (values of {names[0]!r}), got {len(sketches)}")
        self.knobs = tuple(knobs)
        self.cardinalities = np.array([k.cardinality for k in knobs], dtype=np.int64)
        self.active: NDArray[np.bool_] = np.ones((len(sketches) if sketches else 1, len(knobs)), dtype=bool)
        if sketches:
            for row, positions in zip(self.active, sketches, strict=True):
                row[1:] = False
                row[list(positions)] = True
                row[0] = True
        self._has_sketches = sketches is not None
        self._valid = None if valid is None else _Constraint(valid)
        self._weights = [math.prod(int(c) for c in self.cardinalities[i + 1 :]) for i in range(len(knobs))]
        self.listed: Digits | None = None
        if listed is not None:
            rows = np.asarray(listed, dtype=np.int64).reshape(-1, len(knobs))
            self.listed = rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
            self._lookup = _Lookup(self.listed, self.cardinalities)

    @property
    def n_knobs(self) -> int:
        return len(self.knobs)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(k.name for k in self.knobs)

    @property
    def size(self) -> int:
        """How many canonical configurations there are, before the predicate `valid`."""
        if self.listed is not None:
            return len(self.listed)
        if not self._has_sketches:
            return math.prod(int(c) for c in self.cardinalities)
        return sum(math.prod(int(c) for c in self.cardinalities[1:][row[1:]]) for row in self.active)

    @property
    def can_be_listed(self) -> bool:
        """Whether it is cheap to look at every configuration."""
        return self.listed is not None or self.size <= ENUMERABLE

    def fingerprint(self) -> str:
        """A short hash of knobs and sketches: where it is the same for two spaces, the same digits mean the same."""
        text = json.dumps([[k.name, k.kind, [str(v) for v in k.values]] for k in self.knobs] + self.active.tolist())
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def index(self, config: Sequence[int] | Digits) -> int:
        """The mixed-radix number of one configuration, `0 <= index < prod(cardinalities)`."""
        return sum(int(d) * w for d, w in zip(config, self._weights, strict=True))

    def digits(self, index: int) -> Digits:
        """The digits `[n_knobs]` of an index."""
        if not 0 <= index < self._weights[0] * int(self.cardinalities[0]):
            raise IndexError(f"index {index} outside of [0, {self._weights[0] * int(self.cardinalities[0])})")
        out = np.empty(self.n_knobs, dtype=np.int64)
        for i, weight in enumerate(self._weights):
            out[i], index = divmod(index, weight)
        return out

    def canonical(self, configs: Digits) -> Digits:
        """A copy of `[n, n_knobs]` with the digits of inactive knobs set to 0."""
        return np.where(self.mask(configs), configs, 0)

    def mask(self, configs: Digits) -> NDArray[np.bool_]:
        """Which knobs are active in each configuration, `[n, n_knobs]`."""
        if not self._has_sketches:
            return np.broadcast_to(self.active[0], configs.shape)
        return self.active[configs[:, 0]]

    def is_valid(self, configs: Digits) -> NDArray[np.bool_]:
        """Which rows of `[n, n_knobs]` are canonical configurations that may be measured, `[n]`."""
        given = np.asarray(configs)
        configs = np.asarray(given, dtype=np.int64)
        inside = np.all((configs >= 0) & (configs < self.cardinalities) & (configs == given), axis=1)
        safe = np.where(inside[:, None], configs, 0)
        ok = inside & (self.canonical(safe) == safe).all(axis=1)
        if self.listed is not None:
            ok &= self._lookup.contains(safe)
        if self._valid is not None and ok.any():
            ok[ok] = self._valid(safe[ok])
        return ok

    def contains(self, configs: NDArray[Any]) -> bool:
        """Whether all of `[n, n_knobs]` are whole numbers that fit the knobs, canonical and valid or not."""
        return bool(((configs >= 0) & (configs < self.cardinalities) & (configs == np.floor(configs))).all())

    @staticmethod
    def keys(configs: Digits) -> list[bytes]:
        """A hashable identity for each row of `[n, n_knobs]`."""
        rows = np.ascontiguousarray(configs, dtype=np.int64)
        return [r.tobytes() for r in rows]

    def sample(self, n: int, rng: np.random.Generator) -> Digits:
        """Draws `n` canonical configurations, `[n, n_knobs]`; repeats possible; `valid` is not asked.

        They are uniform over the space. If it has sketches, they are uniform within a sketch. A sketch is drawn as
        often as the logarithm of its size says, so that a small one, such as another algorithm, is seen as well.
        """
        if self.listed is not None:
            return self.listed[rng.integers(len(self.listed), size=n)]
        configs = rng.integers(self.cardinalities, size=(n, self.n_knobs))
        if self._has_sketches:
            weights = np.array([1 + sum(np.log(self.cardinalities[1:][r[1:]])) for r in self.active])
            configs[:, 0] = rng.choice(len(weights), size=n, p=weights / weights.sum())
        return self.canonical(configs)

    def rows(self, start: int, stop: int) -> Digits:
        """The canonical configurations number `start` to `stop` (exclusive), `[m, n_knobs]`; `valid` is not asked."""
        stop = min(stop, self.size)
        if self.listed is not None:
            return self.listed[start:stop]
        parts, first = [np.empty((0, self.n_knobs), dtype=np.int64)], 0
        for row, active in enumerate(self.active):
            cards = [int(c) if a else 1 for c, a in zip(self.cardinalities, active, strict=True)]
            if self._has_sketches:
                cards[0] = 1
            size = math.prod(cards)
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                parts.append(_mixed_radix(low, high, cards))
                parts[-1][:, 0] += row if self._has_sketches else 0
            first += size
        return np.vstack(parts)

    def enumerate(self) -> Iterator[Digits]:
        """Every canonical configuration, `[n_knobs]` each; `valid` is not asked."""
        for start in range(0, self.size, 4096):
            yield from self.rows(start, start + 4096)

    def features(self, configs: Digits, of: Sequence[int] | None = None) -> NDArray[np.float32]:
        """What a cost model sees of `[n, n_knobs]`: the features of each knob's value, `[n, n_features]`.

        The features of inactive knobs are NaN.

        Args:
            of: positions of the knobs to describe; all by default.
        """
        chosen = [(i, self.knobs[i]) for i in (range(self.n_knobs) if of is None else of)]
        if not self._has_sketches:
            return np.hstack([knob.features[configs[:, i]] for i, knob in chosen])
        mask = self.mask(configs)
        parts = [np.where(mask[:, i, None], knob.features[configs[:, i]], np.float32(np.nan)) for i, knob in chosen]
        return np.hstack(parts).astype(np.float32)

    def values(self, config: Sequence[int] | Digits) -> dict[str, Any]:
        """One configuration for people to read: the value of each knob by name, without the inactive knobs."""
        row = np.asarray(config, dtype=np.int64)[None]
        return {k.name: k.values[int(d)] for k, d, a in zip(self.knobs, row[0], self.mask(row)[0], strict=True) if a}


def _mixed_radix(start: int, stop: int, cards: Sequence[int]) -> Digits:
    """The digits of the numbers `start..stop-1`, `[stop - start, n_knobs]`; the last knob changes fastest."""
    small = stop < 1 << 62
    numbers = np.arange(stop - start, dtype=np.int64 if small else object) + start
    out = np.empty((stop - start, len(cards)), dtype=np.int64)
    for i in range(len(cards) - 1, -1, -1):
        out[:, i] = numbers % cards[i]
        numbers = numbers // cards[i]
    return out


class _Constraint:
    """Calls a predicate on many configurations, whether it takes all of them at once or one row at a time."""

    def __init__(self, predicate: Predicate) -> None:
        self._predicate = predicate
        self._by_row: bool | None = None  # not known before the first call

    def __call__(self, rows: Digits) -> NDArray[np.bool_]:
        """Which of `[n >= 1, n_knobs]` keep the constraint, `[n]`.

        Raises:
            ValueError: if the predicate returns anything else than a bool for each row.
        """
        if self._by_row is None:
            self._by_row = not self._takes_all(rows)
        found = [self._predicate(row) for row in rows] if self._by_row else self._predicate(rows)
        verdicts = np.asarray(found)
        if verdicts.shape != (len(rows),) or verdicts.dtype.kind not in "biuf":
            raise ValueError(
                f"expected `valid` to return {len(rows)} bools for digits of shape {rows.shape}, or one bool for a "
                f"row of {rows.shape[1]}, got {_shown(found[0] if self._by_row else found)}"
            )
        return verdicts.astype(bool)

    def _takes_all(self, rows: Digits) -> bool:
        """Whether the predicate returns one value a row.

        With no more rows than knobs a mistake might not show, so then rows are repeated.
        """
        n, width = rows.shape
        probe = rows if n > 2 * width else rows[np.arange(2 * width + 3) % n]
        try:
            return np.shape(self._predicate(probe)) == (len(probe),)
        except Exception:  # made for one row it may raise anything; if it is wrong, it raises again for one row
            return False


def _shown(value: Any) -> str:
    shape = np.shape(value)
    return f"an array of shape {shape}" if shape else f"{value!r:.60}"


class _Lookup:
    """Tells which rows are in a list of rows; vectorised where the mixed-radix numbers fit into 64 bits."""

    def __init__(self, rows: Digits, cardinalities: Digits) -> None:
        self._fits = math.prod(int(c) for c in cardinalities) < 1 << 62
        if self._fits:
            self._weights = np.concatenate([np.cumprod(cardinalities[:0:-1])[::-1], [1]]).astype(np.int64)
            self._sorted = np.sort(rows @ self._weights)
        else:
            self._keys = set(KnobSpace.keys(rows))

    def contains(self, rows: Digits) -> NDArray[np.bool_]:
        if not self._fits:
            return np.fromiter((k in self._keys for k in KnobSpace.keys(rows)), dtype=bool, count=len(rows))
        index = rows @ self._weights
        place = np.minimum(np.searchsorted(self._sorted, index), len(self._sorted) - 1)
        return self._sorted[place] == index if len(self._sorted) else np.zeros(len(rows), dtype=bool)


def _factorisations(extent: int, parts: int) -> list[tuple[int, ...]]:
    """All tuples of `parts` factors whose product is `extent`, in lexicographic order."""
    if parts == 1:
        return [(extent,)]
    divisors = [d for d in range(1, math.isqrt(extent) + 1) if extent % d == 0]
    divisors = sorted({*divisors, *(extent // d for d in divisors)})
    return [(d, *rest) for d in divisors for rest in _factorisations(extent // d, parts - 1)]


def _prime_moves(factors: tuple[tuple[int, ...], ...]) -> Digits:
    """Moves of one prime factor from one level to another, `[n, n_moves]`.

    If a factorisation has no such move, there are also the moves by +-1 in the list.
    """
    position = {f: i for i, f in enumerate(factors)}
    primes = sorted({p for f in factors for x in f for p in _primes(x)})
    columns = [
        [position.get(_moved(f, a, b, p), i) for i, f in enumerate(factors)]
        for a, b in itertools.permutations(range(len(factors[0]) if factors else 0), 2)
        for p in primes
    ]
    moves = np.array(columns, dtype=np.int64).reshape(-1, len(factors)).T
    moves = moves[:, (moves != np.arange(len(factors))[:, None]).any(axis=0)]
    stuck = (moves == np.arange(len(factors))[:, None]).all(axis=1)
    return np.hstack([moves, _line_moves(len(factors))]) if stuck.any() else moves


def _moved(factors: tuple[int, ...], a: int, b: int, prime: int) -> tuple[int, ...]:
    """The factors after one `prime` has moved from level `a` to level `b`; an empty tuple if `a` has no such prime."""
    if factors[a] % prime:
        return ()
    moved = list(factors)
    moved[a] //= prime
    moved[b] *= prime
    return tuple(moved)


def _primes(n: int) -> set[int]:
    out, p = set(), 2
    while p * p <= n:
        while n % p == 0:
            out.add(p)
            n //= p
        p += 1
    return out | ({n} if n > 1 else set())


def _line_moves(n: int) -> Digits:
    """The moves one down and one up in the list, `[n, 2]`."""
    line = np.arange(n, dtype=np.int64)
    return np.stack([np.maximum(line - 1, 0), np.minimum(line + 1, n - 1)], axis=1)
