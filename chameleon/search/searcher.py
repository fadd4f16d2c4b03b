"""The searcher: asks, is told, and keeps its state; and when to stop a search."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.errors import UsageError, described
from chameleon.search.history import History, Prior
from chameleon.search.moves import unique_rows
from chameleon.search.planners import Planner, View
from chameleon.search.ranges import Within
from chameleon.search.space import Digits, KnobSpace
from chameleon.search.trial import Status, Trial

STATE_VERSION = 2
"""Version of the states that searchers save."""


class StateError(UsageError, ValueError):
    """A saved state that is damaged, or does not belong to this searcher."""


class Searcher:
    """Proposes configurations, and learns from the outcomes: ask, measure anywhere, tell.

    The planner makes a plan, which is a whole batch of configurations. `ask` takes its answers from this plan, so the
    caller's batches need not be as large as the planner's. A searcher holds no clock, no file and no host.

    Args:
        space: what may be asked.
        planner: makes the plans.
        rng: the only source of randomness.
        made_of: name and options, as plain values; only a searcher made of the same takes a saved state.
    """

    def __init__(
        self, space: KnobSpace, planner: Planner, rng: np.random.Generator, made_of: Mapping[str, Any] | None = None
    ) -> None:
        self.space = space
        self.exhausted = False  # with an empty answer: whether every valid configuration is certain to be known
        self._planner = planner
        self._rng = rng
        self._made_of = dict(made_of or {})
        self._history = History(space)
        self._queue: dict[bytes, Digits] = {}  # the rest of the plan, in order
        self._known: set[bytes] = set()  # told, asked or planned

    @property
    def best(self) -> Trial | None:
        """The best trial told so far: the one with the fewest seconds, or the highest score."""
        return self._history.best

    def ask(self, n: int) -> Digits:
        """`n` configurations to measure, `[n, n_knobs]`; fewer only where no more can be found, and at the end none.

        No configuration is handed out twice. After an answer with none, `exhausted` tells whether all were handed out.
        Where it is False, the constraints leave too few for the search to find any more.

        Raises:
            ValueError: if `n` is not an integer of at least 1.
        """
        rows = [self.ask_planned(n)]
        while (missing := n - sum(map(len, rows))) > 0 and len(rows[-1]):
            rows.append(self.ask_planned(missing))
        found = np.vstack(rows)
        self.exhausted = self.exhausted and not len(found)  # said with an answer that holds none
        return found

    def ask_planned(self, n: int) -> Digits:
        """What `ask` returns, but none beyond the current plan, `[m <= n, n_knobs]`.

        It suits a host that measures and tells as soon as it has anything: the next plan then knows the outcomes.

        Raises:
            ValueError: if `n` is not an integer of at least 1.
        """
        if not isinstance(n, Integral) or n < 1:
            raise ValueError(f"ask for at least 1 configuration, got n={n!r}")
        if not self._queue:
            self._replan(int(n))
        rows = [self._queue.pop(key) for key in list(itertools.islice(self._queue, int(n)))]
        found = np.array(rows).reshape(len(rows), self.space.n_knobs)
        if not self.space.contains(found):
            raise ValueError(f"expected digits of this space, got {rows!r:.80}")
        return found.astype(np.int64)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes outcomes in any order, of configurations that were asked for or of others (history).

        Raises:
            ValueError: if a configuration is not of this space or was told before; then nothing is taken.
        """
        self._history.add(trials)
        for trial in trials:
            key = np.array(trial.config, dtype=np.int64).tobytes()
            self._known.add(key)
            self._queue.pop(key, None)

    def tell_aliases(self, configs: Digits) -> None:
        """Takes configurations that are other names of schedules: each gives a schedule that has its own digits.

        They are never asked for, and that is all: they do not count as trials, and nothing is learnt from them. The
        outcome is told under the schedule's own digits.

        Args:
            configs: `[n, n_knobs]`, asked for or not, repeats possible.

        Raises:
            ValueError: if one is not of this space; then nothing is taken.
        """
        for key in KnobSpace.keys(self._rows(configs)):
            self._known.add(key)
            self._queue.pop(key, None)

    def believe(self, configs: Digits, throughput: NDArray[np.float64]) -> None:
        """Lets the cost model learn from configurations that were measured elsewhere; `ask` may still return them.

        Args:
            configs: `[n, n_knobs]`, valid or not, repeats possible. They replace what was believed before.
            throughput: of each configuration, relative to the best one there, `[n]` in 0..1.

        Raises:
            ValueError: if the two do not fit together, or do not fit the space.
        """
        self._history.prior = Prior.checked(self.space, np.asarray(configs), np.asarray(throughput, dtype=np.float64))

    def begin_with(self, configs: Digits) -> int:
        """Lets the next `ask` begin with these configurations `[n, n_knobs]`, but for those asked or told before.

        Returns:
            How many they are.

        Raises:
            ValueError: if one is not a valid configuration of this space; then nothing has changed.
        """
        rows = self._rows(configs)
        if not self.space.is_valid(rows).all():
            raise ValueError(f"expected valid configurations of this space, got {rows.tolist()!r:.80}")
        planned = self._queue
        fresh = unique_rows(rows, self._known - set(planned))
        self._queue = {**dict(zip(KnobSpace.keys(fresh), fresh, strict=True)), **planned}
        self._known.update(self._queue)
        return len(fresh)

    def _replan(self, wanted: int) -> None:
        view = View(self.space, self._history, self._known, self._rng, wanted)
        plan = self._planner.plan(view)
        plan = unique_rows(plan[self.space.is_valid(plan)], self._known) if len(plan) else plan
        if not len(plan):
            plan = view.draw(8)
        self._queue = dict(zip(KnobSpace.keys(plan), plan, strict=True))
        self._known.update(self._queue)
        self.exhausted = not len(plan) and self.space.can_be_listed

    def state(self) -> dict[str, Any]:
        """All that is needed to continue in exactly the same way, as plain values and arrays."""
        return {
            **self._belongs_to(),
            "rng": self._rng.bit_generator.state,
            "trials": [
                [list(t.config), t.status.value, t.seconds, t.message, dict(t.timings), t.score]
                for t in self._history.trials
            ],
            "prior": [self._history.prior.configs.tolist(), self._history.prior.throughput.tolist()],
            "known": [np.frombuffer(k, dtype=np.int64).tolist() for k in sorted(self._known)],
            "queue": [row.tolist() for row in self._queue.values()],
            "planner": self._planner.state(),
            "exhausted": self.exhausted,
        }

    def _belongs_to(self) -> dict[str, Any]:
        """What has to be the same in a state and in the searcher that it is restored into."""
        return {"version": STATE_VERSION, "searcher": copy.deepcopy(self._made_of), "space": self.space.fingerprint()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state` that a searcher of the same name, options and space gave.

        Raises:
            StateError: if the state is damaged or belongs to something else; then nothing has changed.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"expected a state as `state` returns it, got {state!r:.80}")
        for name, expected in self._belongs_to().items():
            if state.get(name) != expected:
                raise StateError(
                    f"the state's {name} is {_shown(state.get(name), expected)}, this searcher's is "
                    f"{_shown(expected, state.get(name))}; restore into a searcher made in the same way for the same "
                    "space, or tell its trials to a new one"
                )
        before = self._planner.state(), self._rng.bit_generator.state
        try:
            history, queue = self._read_history(state), self._rows(state["queue"])
            known, exhausted = set(KnobSpace.keys(self._rows(state["known"]))), bool(state["exhausted"])
            self._rng.bit_generator.state = state["rng"]
            self._planner.restore(state["planner"])
        except Exception as error:  # a damaged state may raise anything
            self._planner.restore(before[0])
            self._rng.bit_generator.state = before[1]
            raise StateError(f"the state is damaged ({described(error)}); nothing was restored") from error
        self._history, self._known = history, known
        self._queue = dict(zip(KnobSpace.keys(queue), queue, strict=True))
        self.exhausted = exhausted

    def _read_history(self, state: Mapping[str, Any]) -> History:
        history = History(self.space)
        history.add(
            [Trial(tuple(c), Status(s), sec, message, dict(t), y) for c, s, sec, message, t, y in state["trials"]]
        )
        configs, throughput = state["prior"]
        history.prior = Prior.checked(self.space, self._rows(configs), np.array(throughput, dtype=np.float64))
        return history

    def _rows(self, rows: Any) -> Digits:
        found = np.array(rows).reshape(len(rows), self.space.n_knobs)
        if not self.space.contains(found):
            raise ValueError(f"expected digits of this space, got {rows!r:.80}")
        return found.astype(np.int64)


def _shown(value: Any, other: Any) -> Any:
    """The value for a message; of a mapping only what differs from `other`."""
    if not (isinstance(value, Mapping) and isinstance(other, Mapping)):
        return value
    return {k: _shown(v, other.get(k)) for k, v in value.items() if k not in other or v != other[k]}


class EarlyStopping:
    """Tells when a search has stopped improving.

    Args:
        patience: stop after this many trials without a better one.
        min_trials: never stop before this many trials.
        best: the best trial of earlier searches, such as `Searcher.best` after old records were told.

    Raises:
        UsageError: if `patience` is below 1 or `min_trials` is below 0.
    """

    def __init__(self, patience: int, min_trials: int = 0, best: Trial | None = None) -> None:
        self._patience = Within(1, whole=True).checked("patience of EarlyStopping", patience)
        self._min_trials = Within(0, whole=True).checked("min_trials of EarlyStopping", min_trials)
        self._best = float("inf") if best is None else best.cost
        self._since = 0
        self._count = 0

    def update(self, trials: Sequence[Trial]) -> bool:
        """Takes measured trials (refusals do not count) and returns whether it is time to stop."""
        for trial in trials:
            if trial.status is Status.INVALID:
                continue
            self._count += 1
            self._since += 1
            if trial.cost < self._best:
                self._best, self._since = trial.cost, 0
        return self._count >= self._min_trials and self._since >= self._patience
