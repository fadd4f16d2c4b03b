"""The names of the irregular cells, and the cells that they stand for.

The seeds of the wirings are constants in this file. The seed of the weights comes from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from chameleon.errors import unknown
from chameleon.models.irregular.cells import darts_cell, in_a_row, mixed_cell, swiftnet_cell, ws_cell
from chameleon.models.irregular.operators import Cell, Shape

# The stages of RandWire: channels, height, width. `chameleon.models.irregular.cells` says what is known of them.
STAGES: Mapping[str, Shape] = {"a": (8, 32, 32), "b": (16, 16, 16), "c": (32, 8, 8)}
RANDWIRE_NODES = 32
RANDWIRE = (("cifar10", "a"), ("cifar10", "b"), ("cifar100", "a"), ("cifar100", "b"), ("cifar100", "c"))
WS_SIZES = (16, 24, 32, 40, 48, 56, 64, 80, 96)
WS_SHAPE: Shape = (16, 16, 16)
MIXED_SHAPE: Shape = (16, 16, 16)
MIXED_WIDTHS = (8, 16, 24, 32)
DARTS_SHAPE: Shape = (48, 28, 28)


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(list(seed))


def _randwire(number: int, data: str, stage: str) -> Callable[[], Cell]:
    return lambda: ws_cell(f"randwire-{data}-{stage}", RANDWIRE_NODES, STAGES[stage], _rng(number))


def _ws(n: int) -> Callable[[], Cell]:
    return lambda: ws_cell(f"ws{n}", n, WS_SHAPE, _rng(n))


# For each cell of the SwiftNet-like network: the number of operators, the shape of the input, the widths of operators,
# and the channels of the result.
_SWIFTNET = {
    "a": (21, (3, 64, 64), (4, 8, 12), 8),
    "b": (19, (8, 32, 32), (4, 8, 12), 8),
    "c": (22, (8, 16, 16), (8, 12, 16), 16),
}


def _swiftnet(part: str) -> Cell:
    n, shape, widths, out_channels = _SWIFTNET[part]
    return swiftnet_cell(f"swiftnet-hpd-{part}", n, shape, widths, out_channels, _rng(ord(part)))


CELLS: Mapping[str, Callable[[], Cell]] = {
    **{f"randwire-{data}-{stage}": _randwire(i, data, stage) for i, (data, stage) in enumerate(RANDWIRE)},
    "darts-normal-cell": lambda: darts_cell("darts-normal-cell", DARTS_SHAPE),
    "swiftnet-hpd-a": lambda: _swiftnet("a"),
    "swiftnet-hpd-b": lambda: _swiftnet("b"),
    "swiftnet-hpd-c": lambda: _swiftnet("c"),
    "swiftnet-hpd": lambda: in_a_row("swiftnet-hpd", {part: _swiftnet(part) for part in _SWIFTNET}),
    **{f"ws{n}": _ws(n) for n in WS_SIZES},
    "ws32-mixed": lambda: mixed_cell("ws32-mixed", 32, MIXED_SHAPE, MIXED_WIDTHS, _rng(32, 1)),
}
"""The cells by name; the first nine are those of the table in Ahn 2020."""


def cell(name: str) -> Cell:
    """Make the cell of this name.

    Raises:
        UsageError: if there is no such cell.
    """
    if name not in CELLS:
        raise unknown("cell", name, CELLS)
    return CELLS[name]()
