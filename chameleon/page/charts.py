"""Curves as the template draws them: numbers only, so that nothing of a file gets into the drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chameleon.page.facts import Point
from chameleon.wording import time_text

WIDTH, HEIGHT = 360.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 8.0, 8.0, 24.0
SHORTEST_S = 1e-6
"""An axis of seconds that would be shorter has one second."""
RATIO = 4.0
"""Where the first time is so many times the last one, the axis of times is logarithmic."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, in the units of the drawing."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A step curve: `path` is what SVG draws, in a box of `WIDTH` and `HEIGHT`."""

    path: str
    end: tuple[float, float]
    xs: list[Tick]
    ys: list[Tick]


def chart(curve: Sequence[Point], *, over_time: bool) -> Chart | None:
    """The best time over the tuning time or the trials; None without a point."""
    if not curve:
        return None
    x = [p.elapsed_s if over_time else float(p.trials) for p in curve]
    y = [p.us for p in curve]
    right = max(x) if max(x) > SHORTEST_S else 1.0
    logarithmic = max(y) / min(y) > RATIO
    low, high = _range(y, logarithmic=logarithmic)
    scale = math.log10 if logarithmic else float

    def at_x(value: float) -> float:
        return round(LEFT + value / right * (WIDTH - LEFT - RIGHT), 2)

    def at_y(value: float) -> float:
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    path = f"M{at_x(x[0])} {at_y(y[0])}" + "".join(f"H{at_x(a)}V{at_y(b)}" for a, b in zip(x[1:], y[1:], strict=True))
    xs = [Tick(at_x(v), f"{v:g} s" if over_time else f"{v:g}") for v in nice(0.0, right, 4)]
    ys = decades(low, high) if logarithmic else nice(low, high, 4)
    return Chart(path, (at_x(x[-1]), at_y(y[-1])), xs, [Tick(at_y(v), time_text(v / 1e3)) for v in ys])


def _range(y: Sequence[float], *, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        return min(y) / 1.15, max(y) * 1.15
    margin = 0.08 * (max(y) - min(y)) or 0.1 * max(y)
    return min(y) - margin, max(y) + margin


def nice(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two others, about so many."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (f * step) <= most)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two numbers; where these are many, the powers only."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) <= 6:
            break
    return found[:: math.ceil(len(found) / 6)]
