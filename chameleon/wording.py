"""How times, ratios and lists of names are written for people, and when two texts name the same target."""

from __future__ import annotations

import json
from collections.abc import Sequence

ABOUT_EQUAL = 1.05
"""Two times that differ by less than this factor are not called faster or slower."""


def time_text(milliseconds: float) -> str:
    """A time with its unit: `12.3 us` below 0.1 ms, `4.56 ms`, `12.3 s` from ten seconds on."""
    if milliseconds >= 1e4:
        return f"{milliseconds / 1e3:.1f} s"
    if milliseconds >= 0.1:
        return f"{milliseconds:.2f} ms"
    microseconds = milliseconds * 1e3
    return f"{microseconds:.1f} us" if microseconds >= 1 else f"{microseconds:.3g} us"


def range_text(low_ms: float, high_ms: float) -> str:
    """The range between two times, such as quartiles."""
    return f"{time_text(low_ms)} - {time_text(high_ms)}"


def ratio_text(ratio: float) -> str:
    """A ratio with two decimals, or with two digits where these would show nothing."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def speed_text(before_ms: float, after_ms: float) -> str:
    """What became of a time: `3.2 times faster`, `1.4 times slower` or `about as fast`."""
    faster = before_ms / after_ms
    if max(faster, 1 / faster) < ABOUT_EQUAL:
        return "about as fast"
    times, word = (faster, "faster") if faster > 1 else (1 / faster, "slower")
    return f"{times:.{1 if times >= 1.15 else 2}f} times {word}"


def task_text(name: str, most: int = 64) -> str:
    """The name of a kernel for a table; what is longer than `most` letters loses its middle.

    TVM names a kernel after all that is fused into it.
    """
    if len(name) <= most:
        return name
    tail = most // 4
    return f"{name[: most - tail - 1]}…{name[-tail:]}"


def names_text(names: Sequence[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - shown
    if more <= 1:  # one more name is as short as `and 1 more`
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {more} more"


def same_target(one: str, other: str) -> bool:
    """Whether two texts are the same target: TVM writes the options of one target in any order."""
    try:
        return one == other or json.loads(one) == json.loads(other)
    except (ValueError, RecursionError):  # the older form, such as `llvm -mcpu=znver4`
        return False
