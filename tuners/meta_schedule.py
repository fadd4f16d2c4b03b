"""Chameleon as a search strategy of MetaSchedule, TVM's own tuner.

    ms.tune_tir(mod, target, work_dir, max_trials_global=200, strategy=ChameleonStrategy(seed=0))

It works in `tune_tir`, `relax_integration.tune_relax` and `tune_tasks`, with any builder, runner, database and
scheduler. MetaSchedule's own cost model is not used, since the searcher has one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate, PySearchStrategy

from chameleon.kernels.intrinsics import import_intrinsics
from chameleon.search import EarlyStopping, KnobSpace, Searcher, Status, Trial, make_searcher, option, warm_start
from chameleon.search.kin import STARTS, kin_among
from chameleon.wording import same_target
from tuners.outcomes import FAILED_S, environment_cause, measured_trial
from tuners.proposals import Config, Proposals
from tuners.store_features import StoreFeatures
from tuners.trace_space import TraceSpace

logger = logging.getLogger(__name__)


@dataclass
class _Run:
    """The tuning of one task, from `pre_tuning` to `post_tuning`."""

    traces: TraceSpace
    searcher: Searcher
    proposals: Proposals
    told: list[Trial]
    max_trials: int
    batch: int
    stopping: EarlyStopping | None
    start_s: float = field(default_factory=time.monotonic)
    issued: int = 0
    best_s: float = float("inf")
    stopped: bool = False
    taught: bool = False
    pending: list[Config] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)


@derived_object
class ChameleonStrategy(PySearchStrategy):
    """Searches MetaSchedule's design spaces with one of Chameleon's searchers.

    MetaSchedule clones a strategy for every task. Each clone has its own random generator; the generators are spawned
    in the order in which the clones are made. The clones count their failures in the strategy that they were cloned
    from.

    A failure that the environment is to blame for (no compiler, a full disk, no device) is no trial: the searcher does
    not learn from it. The log says what is wrong, and no task gets further candidates.

    Args:
        searcher: a name from `chameleon.search.SEARCHERS`.
        seed: of all randomness of the search; the same seed and the same measured times give the same search.
        max_refusals: a task is given up after TVM has refused this many configurations in a row; refusals are free.
        early_stopping: stop a task after this many trials without a better one; None: use up the budget.
        learn_across_tasks: whether a task begins with what was fastest in tasks like it, of this strategy's clones.
        program_features: whether the cost model takes a second look at the finalists, with MetaSchedule's own features
            of their programs (`tuners.store_features`).
        options: settings of the searcher by component, such as `explorer={"walkers": 128}`.

    Attributes:
        failures: how many configurations failed, by reason, over all clones; refusals start with `invalid: `.
        faults: what was found to be wrong with the environment, over all clones.

    Raises:
        UnknownSearcherError: on a searcher or an option that does not exist.
        ValueError: on a bound below 1.
    """

    def __init__(
        self,
        searcher: str = "chameleon",
        seed: int = 0,
        *,
        max_refusals: int = 2000,
        early_stopping: int | None = None,
        learn_across_tasks: bool = True,
        program_features: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if max_refusals < 1 or (early_stopping is not None and early_stopping < 1):
            raise ValueError(
                f"bounds must be at least 1, got max_refusals={max_refusals}, early_stopping={early_stopping}"
            )
        # Made only to check the names of the searcher and of its options.
        make_searcher(searcher, KnobSpace([option("any", [0])]), np.random.default_rng(0), **options)
        import_intrinsics()  # TVM does it for every task's context, and slowly
        self._arguments = {
            "searcher": searcher,
            "seed": seed,
            "max_refusals": max_refusals,
            "early_stopping": early_stopping,
            "learn_across_tasks": learn_across_tasks,
            "program_features": program_features,
            **options,
        }
        self._searcher, self._options, self._learn = searcher, options, learn_across_tasks
        self._told: list[tuple[KnobSpace, list[Trial]]] = []  # of every task of the clones, what was measured
        self._max_refusals, self._early_stopping = max_refusals, early_stopping
        self._program_features = program_features
        self._seeds = np.random.SeedSequence(seed)
        self.failures: Counter[str] = Counter()
        self.faults: list[str] = []
        self._mod: IRModule | None = None
        self._task_name = ""
        self._postprocs: tuple[ms.Postproc, ...] = ()
        self._run: _Run | None = None

    def clone(self) -> ChameleonStrategy:
        """A strategy for another task, with a random generator of its own and the same `failures`."""
        copy = ChameleonStrategy(**self._arguments)
        copy._seeds = self._seeds.spawn(1)[0]
        copy.failures, copy.faults, copy._told = self.failures, self.faults, self._told
        return copy

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        """Keep the needed parts of the context. The context itself is not kept, since it holds this strategy."""
        generator = context.space_generator
        if context.mod is None or generator is None:
            raise ValueError("the search needs a TuneContext with `mod` and `space_generator`; got one without")
        self._mod, self._task_name, self._postprocs = context.mod, context.task_name, tuple(generator.postprocs or ())
        self._target = context.target

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Sequence[Schedule],
        database: ms.Database | None = None,
        cost_model: ms.CostModel | None = None,
    ) -> None:
        """Open the search of one task, and tell the searcher what the database holds for this task."""
        if self._run is not None or self._mod is None:
            state = "is being tuned already" if self._run else "has no TuneContext"
            raise RuntimeError(
                f"this strategy {state}: give every TuneContext a strategy of its own (`strategy.clone()`)"
            )
        traces = TraceSpace.from_design_spaces(self._mod, design_spaces, self._postprocs)
        programs = StoreFeatures(traces, self._target) if self._program_features else None
        searcher = make_searcher(
            self._searcher, traces.space, np.random.default_rng(self._seeds), featurize=programs, **self._options
        )
        proposals = Proposals(traces, searcher, self._max_refusals, programs)
        history = [] if database is None else _history(database, self._mod, str(self._target), traces)
        proposals.tell(history)
        self._told.append((traces.space, told := list(history)))
        stopping = EarlyStopping(self._early_stopping, best=searcher.best) if self._early_stopping else None
        self._run = _Run(traces, searcher, proposals, told, int(max_trials), int(num_trials_per_iter), stopping)
        self._run.best_s = min((t.seconds for t in history if t.seconds), default=float("inf"))

    def post_tuning(self) -> None:
        """Close the search, and log its result in one line."""
        if self._run is None:
            return
        run, self._run = self._run, None
        self._count_refusals(run)
        logger.info(
            "%s: %d trials in %.1f s, best %.2f us, failures: %s",
            self._task_name,
            run.issued,
            time.monotonic() - run.start_s,
            run.best_s * 1e6,
            dict(run.failures) or "none",
        )

    def generate_measure_candidates(self) -> list[MeasureCandidate] | None:
        """The next schedules to measure; None when the budget or space is used up, or at an early stop."""
        run = self._running()
        n = min(run.batch, run.max_trials - run.issued)
        if n <= 0 or run.stopped or self.faults:
            return None
        if self._learn and not run.taught:
            run.taught = True
            kin = kin_among(run.traces.space, [t for t in self._told if t[1] is not run.told])
            warm_start(run.searcher, kin, starts=0 if run.told else STARTS)
        found = run.proposals.next(n)
        self._count_refusals(run)
        if not found:
            level = logging.INFO if run.issued else logging.WARNING
            reasons = dict(run.refused) or "none, the space is exhausted"
            logger.log(
                level, "%s: nothing left to try after %d trials; refused: %s", self._task_name, run.issued, reasons
            )
            return None
        run.issued += len(found)
        run.pending = [config for config, _ in found]
        return [MeasureCandidate(schedule, args_info_of(schedule)) for _, schedule in found]

    def notify_runner_results(
        self, measure_candidates: Sequence[MeasureCandidate], results: Sequence[ms.runner.RunnerResult]
    ) -> None:
        """Tell the searcher the results of the last batch; they are in the order of its candidates."""
        run = self._running()
        if len(results) != len(run.pending):
            raise ValueError(
                f"expected {len(run.pending)} results, one for each candidate of the batch, got {len(results)}"
            )
        pairs = [(c, r) for c, r in zip(run.pending, results, strict=True) if not self._is_fault(r.error_msg)]
        trials = [measured_trial(c, r.run_secs, r.error_msg) for c, r in pairs]
        run.issued -= len(results) - len(trials)
        run.pending = []
        run.proposals.tell(trials)
        run.told += trials
        failed = Counter(t.status.value for t in trials if t.status is not Status.OK)
        run.failures.update(failed)
        self.failures.update(failed)
        run.best_s = min([run.best_s, *(t.seconds for t in trials if t.seconds is not None)])
        run.stopped = run.stopping is not None and run.stopping.update(trials)

    def _is_fault(self, error_msg: str | None) -> bool:
        """Whether the environment is to blame for a result; the log then says what is wrong, once."""
        cause = environment_cause(error_msg)
        if cause is not None and cause not in self.faults:
            logger.error("%s: tuning stops, because no candidate can succeed: %s", self._task_name, cause)
            self.faults.append(cause)
        return cause is not None

    def _running(self) -> _Run:
        if self._run is None:
            raise RuntimeError("the search is not open: call `pre_tuning` first")
        return self._run

    def _count_refusals(self, run: _Run) -> None:
        fresh = run.proposals.refusals - run.refused
        run.refused = Counter(run.proposals.refusals)
        named = Counter({f"invalid: {reason}": count for reason, count in fresh.items()})
        run.failures.update(named)
        self.failures.update(named)


def args_info_of(schedule: Schedule) -> list[ms.arg_info.ArgInfo]:
    """The arguments of a finished schedule, where post-processing may have given a constant weight another layout."""
    return ms.arg_info.ArgInfo.from_entry_func(schedule.mod, remove_preproc=True)


def _history(database: ms.Database, mod: IRModule, target: str, traces: TraceSpace) -> list[Trial]:
    """What a database holds for this workload on this target: the best record of each configuration."""
    if not database.has_workload(mod):
        return []
    workload = database.commit_workload(mod)
    best: dict[Config, Trial] = {}
    foreign = 0
    for record in database.get_all_tuning_records():
        here = record.target is None or same_target(str(record.target), target)
        if not (here and record.workload.same_as(workload)):
            continue
        digits = traces.digits(record.trace)
        if digits is None:
            foreign += 1
            continue
        trial = measured_trial(tuple(int(d) for d in digits), record.run_secs, None)
        known = best.get(trial.config)
        if known is None or (trial.seconds or FAILED_S) < (known.seconds or FAILED_S):
            best[trial.config] = trial
    if not any(trial.seconds for trial in best.values()):
        return []  # a database keeps no reasons; where nothing ever worked, the candidates are not to blame
    if foreign:
        logger.info("%d records of this workload come from other design spaces and are left out", foreign)
    return list(best.values())
