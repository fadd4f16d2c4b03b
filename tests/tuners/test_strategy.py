"""Chameleon inside MetaSchedule's own tuning loops, and the proposals it is made of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.builder import BuilderInput, BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.postproc import PyPostproc
from tvm.s_tir.meta_schedule.runner import RunnerResult
from tvm.target import Target

from chameleon.measure import TimingConfig, WarmBuilder, WarmRunner
from chameleon.search import Status, Trial, UnknownSearcherError, make_searcher
from chameleon.search.kin import Translator
from tests.support.workloads import WORKLOADS, only_task, relax_module, task_of
from tuners.meta_schedule import ChameleonStrategy, _history
from tuners.proposals import Proposals
from tuners.trace_space import TraceSpace

pytestmark = pytest.mark.tvm

LLVM = Target({"kind": "llvm", "num-cores": 2})


@pytest.fixture(scope="module")
def builder() -> Iterator[WarmBuilder]:
    with WarmBuilder(n_workers=1) as warm:
        yield warm


@pytest.fixture(scope="module")
def runner() -> Iterator[WarmRunner]:
    with WarmRunner(timing=TimingConfig(repeats=1, min_repeat_s=0.002)) as warm:
        yield warm


def open_task(
    strategy: ms.SearchStrategy,
    name: str = "dense",
    target: Target = LLVM,
    trials: int = 16,
    mod: tvm.IRModule | None = None,
    **kwargs,
) -> ms.TuneContext:
    context = ms.TuneContext(
        mod=mod or task_of(name, target),
        target=target,
        space_generator="post-order-apply",
        search_strategy=strategy,
        **kwargs,
    )
    context.pre_tuning(trials, 8)
    return context


def traces_of(context: ms.TuneContext) -> list[str]:
    candidates = context.generate_measure_candidates()
    return [str(c.sch.trace) for c in candidates or ()]


def results(n: int, seconds: float | None = 1e-3, error: str | None = None) -> list[RunnerResult]:
    return [RunnerResult(None if seconds is None else [seconds * (i + 1)], error) for i in range(n)]


def test_tune_tir_finds_a_right_schedule_and_never_measures_one_twice(tmp_path: Path, builder, runner) -> None:
    mod, strategy = task_of("residual", LLVM), ChameleonStrategy(seed=0)

    def tune() -> ms.Database:
        return ms.tune_tir(
            mod,
            LLVM,
            str(tmp_path),
            max_trials_global=10,
            num_trials_per_iter=8,
            builder=builder,
            runner=runner,
            strategy=strategy,
        )

    assert len(tune().get_all_tuning_records()) == 10
    records = tune().get_all_tuning_records()
    assert len(records) == 20
    traces = TraceSpace(mod, LLVM)
    assert all(0 < float(s) < 1 for r in records for s in r.run_secs)
    found = {tuple(traces.digits(r.trace)) for r in records}
    assert len(found) == 20, "the second run measured again what the database of the first held"
    best = min(records, key=lambda r: float(np.mean([float(s) for s in r.run_secs])))
    schedule = Schedule(mod)
    best.trace.apply_to_schedule(schedule, remove_postproc=False)
    inputs = WORKLOADS["residual"].inputs()
    expected = WORKLOADS["residual"].reference(*inputs)
    result = tvm.runtime.tensor(np.zeros_like(expected))
    tvm.compile(schedule.mod, LLVM)["main"](*map(tvm.runtime.tensor, inputs), result)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_tune_relax_tunes_every_task_and_the_network_uses_it(tmp_path: Path, builder, runner) -> None:
    def network(x, w, v):
        return relax.op.nn.softmax(relax.op.matmul(relax.op.nn.relu(relax.op.matmul(x, w)), v))

    shapes = ((16, 32), (32, 24), (24, 10))
    mod, strategy = relax_module(shapes, network), ChameleonStrategy("annealing", seed=1)
    database = ms.relax_integration.tune_relax(
        mod,
        {},
        LLVM,
        str(tmp_path),
        12,
        num_trials_per_iter=4,
        builder=builder,
        runner=runner,
        strategy=strategy,
        cost_model="random",
    )
    n_tasks = len(ms.relax_integration.extract_tasks(mod, LLVM))
    assert n_tasks > 1
    assert len(database.get_all_tuning_records()) == 12
    assert len({r.workload.mod.script() for r in database.get_all_tuning_records()}) == n_tasks
    with LLVM, database, tvm.transform.PassContext(opt_level=3):
        tuned = relax.transform.MetaScheduleApplyDatabase()(mod)
    assert any(f.attrs.get("tirx.is_scheduled") for _, f in tuned.functions_items() if f.attrs)
    inputs = [np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in shapes]
    x, w, v = inputs
    scores = np.exp(np.maximum(x @ w, 0) @ v)
    out = relax.VirtualMachine(tvm.compile(tuned, LLVM), tvm.cpu())["main"](*map(tvm.runtime.tensor, inputs))
    np.testing.assert_allclose(out.numpy(), scores / scores.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-5)


@derived_object
class HalfBroken(PyBuilder):
    """Builds every other candidate, and fails on the rest as TVM's own builder reports it."""

    def __init__(self, builder: ms.Builder) -> None:
        super().__init__()
        self.builder = builder

    def build(self, build_inputs: list[BuilderInput]) -> list[BuilderResult]:
        built = self.builder.build(build_inputs)
        error = BuilderResult(None, "LocalBuilder: An exception occurred\nRuntimeError: no luck")
        return [error if i % 2 else result for i, result in enumerate(built)]


@pytest.mark.parametrize("scheduler", ["gradient", "round-robin"])
def test_tune_tasks_goes_on_after_failures_and_counts_them(tmp_path: Path, builder, runner, scheduler: str) -> None:
    strategy = ChameleonStrategy("random", seed=3)
    tasks = [
        ms.TuneContext(
            mod=task_of(name, LLVM),
            target=LLVM,
            space_generator="post-order-apply",
            search_strategy=strategy,
            task_name=name,
        ).clone()
        for name in ("dense", "max_pool")
    ]
    ms.tune_tasks(
        tasks=tasks,
        task_weights=[1, 1],
        work_dir=str(tmp_path),
        max_trials_global=16,
        num_trials_per_iter=4,
        builder=HalfBroken(builder),
        runner=runner,
        database="memory",
        task_scheduler=scheduler,
        cost_model="random",
    )
    assert strategy.failures[Status.BUILD_ERROR.value] >= 6


def test_a_seed_gives_the_same_search_and_clones_differ() -> None:
    assert traces_of(open_task(ChameleonStrategy(seed=5))) == traces_of(
        open_task(ChameleonStrategy(seed=5), rand_state=7)
    )
    assert traces_of(open_task(ChameleonStrategy(seed=5))) != traces_of(open_task(ChameleonStrategy(seed=6)))
    parent = ChameleonStrategy(seed=5)
    first, second = traces_of(open_task(parent.clone())), traces_of(open_task(parent.clone()))
    assert first != second
    assert first == traces_of(open_task(ChameleonStrategy(seed=5).clone()))


def matmul(rows: int, columns: int) -> tvm.IRModule:
    """A task with the knobs of `dense` and other extents."""
    return only_task(relax_module(((rows, 64), (64, columns)), relax.op.matmul), LLVM)


@pytest.mark.parametrize("learn", [True, False])
def test_a_task_begins_with_what_was_fastest_in_a_task_like_it(learn: bool) -> None:
    strategy = ChameleonStrategy(seed=3, learn_across_tasks=learn)
    first = open_task(strategy.clone(), mod=matmul(64, 32))
    candidates = first.generate_measure_candidates()
    first.notify_runner_results(candidates, results(len(candidates))[::-1])  # the last one is the fastest
    fastest = TraceSpace(matmul(64, 32), LLVM)
    digits = fastest.digits(candidates[-1].sch.trace)
    second = TraceSpace(matmul(32, 96), LLVM)
    wanted = Translator(second.space).nearest(fastest.space.values(digits))
    context = open_task(strategy.clone(), mod=matmul(32, 96))
    begun = [tuple(second.digits(c.sch.trace)) for c in context.generate_measure_candidates()]
    assert (begun[0] == tuple(second.replay(wanted)[1])) == learn


def test_trials_and_batches_are_kept_to_and_none_ends_the_task() -> None:
    context, sizes = open_task(ChameleonStrategy("random", seed=0), trials=19), []
    while (candidates := context.generate_measure_candidates()) is not None:
        sizes.append(len(candidates))
        context.notify_runner_results(candidates, results(len(candidates)))
    assert sum(sizes) == 19
    assert max(sizes) <= 8


def test_early_stopping_ends_a_task_without_progress() -> None:
    context, measured = open_task(ChameleonStrategy("random", early_stopping=10), trials=100), 0
    while (candidates := context.generate_measure_candidates()) is not None:
        measured += len(candidates)
        context.notify_runner_results(candidates, results(len(candidates), error="timeout: too slow", seconds=None))
    assert 10 <= measured <= 18


NO_COMPILER = "LocalBuilder: An exception occurred\n[Errno 2] No such file or directory: 'g++'"


def test_what_the_environment_is_to_blame_for_is_not_taught(caplog) -> None:
    strategy = ChameleonStrategy(seed=0)
    context, other = open_task(strategy), open_task(strategy.clone(), "softmax")
    candidates = context.generate_measure_candidates() or []
    answers = [*results(3), *results(len(candidates) - 3, None, NO_COMPILER)]
    told = []
    proposals = strategy._running().proposals
    proposals.tell = told.extend
    with caplog.at_level(logging.ERROR):
        context.notify_runner_results(candidates, answers)
    assert [t.status for t in told] == [Status.OK] * 3
    assert strategy.failures == {}
    assert context.generate_measure_candidates() is None
    assert other.generate_measure_candidates() is None  # no task can be measured
    assert len(strategy.faults) == 1
    assert "install a C++ compiler" in caplog.text


def test_a_database_of_failures_alone_keeps_nothing_from_being_measured() -> None:
    mod = task_of("dense", LLVM)
    traces, database = TraceSpace(mod, LLVM), ms.database.MemoryDatabase()
    workload = database.commit_workload(mod)
    args_info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)

    def record(seed: int, seconds: float) -> None:
        row = traces.space.sample(1, np.random.default_rng(seed))[0]
        trace = traces.schedule(tuple(int(d) for d in row)).trace
        database.commit_tuning_record(ms.database.TuningRecord(trace, workload, [seconds], LLVM, args_info))

    record(0, 1e10)
    assert _history(database, mod, str(LLVM), traces) == []
    record(1, 1e-3)
    assert sorted(t.status.value for t in _history(database, mod, str(LLVM), traces)) == ["ok", "run_error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("LocalRunner: Timeout, killed after 30 seconds", "timeout"),
        ("timeout: 10 s", "timeout"),
        ("RPCRunner: An exception occurred\nboom", "run_error"),
        ("LocalBuilder: An exception occurred\nboom", "build_error"),
        ("build_error: no such intrinsic", "build_error"),
        ("crash: signal 11", "run_error"),
    ],
)
def test_errors_are_told_apart(error: str, status: str) -> None:
    strategy = ChameleonStrategy("random", seed=0)
    context = open_task(strategy)
    candidates = context.generate_measure_candidates()
    context.notify_runner_results(candidates, results(len(candidates), None, error))
    assert strategy.failures == {status: len(candidates)}


@derived_object
class Never(PyPostproc):
    """Refuses everything."""

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        del context

    def apply(self, sch: Schedule) -> bool:
        del sch
        return False

    def clone(self) -> ms.Postproc:
        return Never()


def test_when_everything_is_refused_it_ends_and_says_why(tmp_path: Path, builder, runner, caplog) -> None:
    strategy = ChameleonStrategy("random", max_refusals=20)
    generator = ms.space_generator.PostOrderApply(sch_rules="llvm", postprocs=[Never()], mutator_probs="llvm")
    with caplog.at_level(logging.WARNING, logger="tuners.meta_schedule"):
        database = ms.tune_tir(
            task_of("dense", LLVM),
            LLVM,
            str(tmp_path),
            8,
            builder=builder,
            runner=runner,
            space=generator,
            strategy=strategy,
        )
    assert not database.get_all_tuning_records()
    assert strategy.failures["invalid: _PyPostproc"] >= 20
    assert any("_PyPostproc" in record.getMessage() for record in caplog.records)


def test_gpu_candidates_are_found_within_the_limits() -> None:
    strategy = ChameleonStrategy("random", seed=0)
    candidates = open_task(strategy, "dense", Target("nvidia/nvidia-a100")).generate_measure_candidates()
    assert candidates
    assert all("threadIdx.x" in c.sch.mod.script() for c in candidates)
    assert strategy.failures["invalid: VerifyGPUCode"] < len(candidates), "most refusals are known without a replay"


def test_a_strategy_belongs_to_one_task_at_a_time() -> None:
    strategy = ChameleonStrategy("random")
    context = open_task(strategy)
    with pytest.raises(RuntimeError, match=r"clone\(\)"):
        context.pre_tuning(8)


def test_wrong_names_are_told_at_once() -> None:
    with pytest.raises(UnknownSearcherError, match="chameleon"):
        ChameleonStrategy("chamelon")
    with pytest.raises(UnknownSearcherError, match="explorer"):
        ChameleonStrategy("chameleon", explorr={})
    with pytest.raises(ValueError, match="max_refusals"):
        ChameleonStrategy(max_refusals=0)


def test_proposals_measure_each_schedule_once_until_the_space_is_exhausted() -> None:
    traces = TraceSpace(task_of("max_pool", LLVM), LLVM)
    space, rng = traces.space, np.random.default_rng(0)
    searcher = make_searcher("random", space, rng)
    proposals, seen = Proposals(traces, searcher), set()
    assert space.size < 5000, "exhausting this space takes too long for a test"
    while found := proposals.next(32):
        configs = [config for config, _ in found]
        assert not seen & set(configs)
        assert len(set(configs)) == len(configs)
        seen |= set(configs)
        proposals.tell([Trial(c, Status.OK, seconds=1e-3 * (1 + sum(c))) for c in configs])
    assert searcher.exhausted
    assert proposals.repeats > 0
    everything = {tuple(traces.replay(row)[1]) for row in space.enumerate()}
    assert seen == everything
    told = [tuple(line[0]) for line in searcher.state()["trials"]]
    assert sorted(told) == sorted(seen)  # every schedule is one trial, however many configurations give it
    with pytest.raises(ValueError, match="told before"):
        proposals.tell([Trial(min(seen), Status.OK, seconds=1.0)])


def test_it_works_with_the_stock_builder_and_runner(tmp_path: Path) -> None:
    def register_build() -> None:  # sent to the workers by value: without the stock one's slow import
        import tvm
        from tvm_ffi import register_global_func

        @register_global_func("chameleon.tests.build", override=True)
        def build(mod, target, _params):
            return tvm.tirx.build(mod, target=target)

    stock = ms.builder.LocalBuilder(max_workers=1, f_build="chameleon.tests.build", initializer=register_build)
    database = ms.tune_tir(
        task_of("dense", LLVM),
        LLVM,
        str(tmp_path),
        4,
        num_trials_per_iter=4,
        builder=stock,
        strategy=ChameleonStrategy("release"),
    )
    seconds = [float(r.run_secs[0]) for r in database.get_all_tuning_records()]
    assert len(seconds) == 4
    assert 0 < min(seconds) < 1
