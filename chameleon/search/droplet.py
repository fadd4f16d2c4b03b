"""The droplet search: a descent that changes one knob at a time, on measured throughput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chameleon.search.history import History
from chameleon.search.moves import Moves, unique_rows
from chameleon.search.planners import View
from chameleon.search.ranges import AtLeastZero, Count, check_ranges
from chameleon.search.space import Digits, KnobSpace


@dataclass(frozen=True)
class DropletConfig:
    """Settings of the droplet search. Where ours differ from those of AutoTVM's DropletTuner, a comment says so."""

    starts: Count = 8  # random trials, the best of which starts a descent (AutoTVM: all knobs at their first values)
    batch: Count = 8  # most configurations in a plan (AutoTVM: 16)
    reach: Count = 2  # most equal moves of a knob that are looked at from one place (AutoTVM: to the end of the knobs)
    gain: AtLeastZero = 0.01  # least relative gain that moves the droplet (AutoTVM: a t-test at 5 %)

    def __post_init__(self) -> None:
        check_ranges(self)


class DropletPlanner:
    """The droplet search (Canesche 2024, "The Droplet Search Algorithm for Kernel Scheduling").

    The neighbours of the current configuration are measured. A droplet moves to a neighbour that is better by a
    significant gain. Where the neighbours do not fill a batch, it looks further in the same directions (speculation).
    Where nothing new is in reach, it is in a local optimum, and another descent starts somewhere else.

    We differ from AutoTVM: a neighbour is one small move of one knob, as in the paper, not the same move of a set of
    knobs. A trial has only its mean, so a gain is significant by its size. AutoTVM ends at a local optimum.
    """

    def __init__(self, space: KnobSpace, config: DropletConfig) -> None:
        self._moves = Moves(space)
        self._config = config
        self._begin = 0  # of the trials, those from here on belong to the current descent

    def plan(self, view: View) -> Digits:
        place = self._place(view.history)
        found = view.history.configs[:0]
        for distance in range(1, self._config.reach + 1 if place is not None else 0):
            near = self._moves.around(view.history.configs[place][None], view.rng, distance)
            found = unique_rows(np.vstack([found, view.rng.permutation(near)]), view.known)
            if len(found) >= self._config.batch:
                break
        if len(found):
            return found[: self._config.batch]
        self._begin = len(view.history)
        return view.draw(self._config.starts)

    def _place(self, history: History) -> int | None:
        """The position of the trial where the droplet is; None before one succeeds."""
        place, throughput = None, history.throughput()
        for i in (np.flatnonzero(history.succeeded[self._begin :]) + self._begin).tolist():
            if place is None or throughput[i] > throughput[place] * (1 + self._config.gain):
                place = i
        return place

    def state(self) -> dict[str, Any]:
        return {"begin": self._begin}

    def restore(self, state: dict[str, Any]) -> None:
        self._begin = int(state["begin"])
