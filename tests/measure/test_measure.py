"""The warm builder and runner with a real TVM: what they build and time, and what a bad candidate costs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tvm
from tvm import te
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.builder.local_builder import default_build as stock_build

from chameleon.kernels.intrinsics import import_intrinsics
from chameleon.measure import TimingConfig, WarmBuilder, WarmRunner, failure_reason, failure_status
from chameleon.measure.builder import default_build
from chameleon.measure.runner import RunRequest, Timer, quick_estimate_s, raced_s
from chameleon.search.trial import Status
from chameleon.target import detect_target
from chameleon.workers.pool import Outcome
from tests.support import misbuild

pytestmark = pytest.mark.tvm

HERE = Path(__file__).parent
HOOK = "tests.support.misbuild:build"


@pytest.fixture(scope="module")
def builder() -> Iterator[WarmBuilder]:
    with WarmBuilder() as builder:
        yield builder


@pytest.fixture(scope="module")
def runner() -> Iterator[WarmRunner]:
    with WarmRunner(timeout_s=3.0, memory_limit_bytes=1 << 30) as runner:
        yield runner


def build(builder: WarmBuilder, *mods: tvm.IRModule) -> list[ms.builder.BuilderResult]:
    return list(builder.build([ms.builder.BuilderInput(mod, detect_target()) for mod in mods]))


def run(runner: ms.Runner, mod: tvm.IRModule, *paths: str) -> list[ms.runner.RunnerResult]:
    args_info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)
    return [f.result() for f in runner.run([ms.runner.RunnerInput(path, "cpu", args_info) for path in paths])]


@pytest.mark.parametrize("export", ["so", "tar"])
def test_artifacts_compute_and_serve_any_runner(runner: WarmRunner, export: str) -> None:
    mod = misbuild.doubling()
    with WarmBuilder(export=export, n_workers=1) as builder:
        path = str(build(builder, mod)[0].artifact_path)
        assert path.endswith(export)
        a, b = tvm.runtime.tensor(np.arange(64, dtype="float32")), tvm.runtime.tensor(np.zeros(64, dtype="float32"))
        tvm.runtime.load_module(path)["main"](a, b)
        np.testing.assert_array_equal(b.numpy(), 2 * a.numpy())
        for any_runner in (runner, ms.runner.LocalRunner()) if export == "so" else (runner,):
            (result,) = run(any_runner, mod, path)
            assert result.error_msg is None
            assert 0 < float(result.run_secs[0]) < 1


def test_an_artifact_lies_alone_so_that_its_folder_can_be_removed(builder: WarmBuilder) -> None:
    first, second = build(builder, misbuild.doubling(), misbuild.doubling())
    folders = [Path(str(r.artifact_path)).parent for r in (first, second)]
    assert folders[0] != folders[1]
    assert [p.name for p in folders[0].iterdir()] == ["candidate.so"]
    shutil.rmtree(folders[0])
    assert build(builder, misbuild.doubling())[0].error_msg is None


def test_closing_removes_all_artifacts_and_workers_and_allows_reuse() -> None:
    builder = WarmBuilder(n_workers=1)
    root = Path(str(build(builder, misbuild.doubling())[0].artifact_path)).parents[1]
    workers = [psutil.Process(pid) for pid in builder.worker_pids()]
    builder.close()
    assert not root.exists()
    assert not any(w.is_running() for w in workers)
    assert build(builder, misbuild.doubling())[0].error_msg is None
    builder.close()


def test_a_bad_build_costs_that_candidate() -> None:
    hows = ["segfault", "well", "hang", "memory", "well"]
    with WarmBuilder(f_build=HOOK, n_workers=2, timeout_s=4.0, memory_limit_bytes=1 << 30) as builder:
        results = build(builder, *[misbuild.doubling(how) for how in hows])
        folder = Path(str(results[1].artifact_path)).parents[1]
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["1", "4"]
    reasons = [failure_reason(r.error_msg) for r in results]
    assert reasons == ["crash", "ok", "timeout", "out-of-memory", "ok"]
    assert "signal 11" in str(results[0].error_msg)
    statuses = [failure_status(r.error_msg, building=True) for r in results]
    assert statuses[0] == Status.BUILD_ERROR
    assert statuses[2] == Status.TIMEOUT


def test_a_module_that_tvm_refuses_is_a_build_error(builder: WarmBuilder) -> None:
    schedule = tvm.s_tir.Schedule(misbuild.doubling())
    loop = schedule.get_loops(schedule.get_sblock("b"))[0]
    schedule.bind(loop, "threadIdx.x")  # no thread of a GPU on a CPU
    (result,) = build(builder, schedule.mod)
    assert str(result.error_msg).startswith("build_error: ")
    assert failure_status(result.error_msg) == Status.BUILD_ERROR


def test_bad_kernels_cost_themselves_only(builder: WarmBuilder, runner: WarmRunner) -> None:
    good = misbuild.kernel("getpid")
    mods = [good, misbuild.kernel("sleep", 1000), misbuild.kernel("raise", 11), good]
    results = run(runner, good, *[str(r.artifact_path) for r in build(builder, *mods)])
    assert [failure_reason(r.error_msg) for r in results] == ["ok", "timeout", "crash", "ok"]
    assert "3 s" in str(results[1].error_msg)
    assert "signal 11" in str(results[2].error_msg)
    assert [failure_status(r.error_msg) for r in results[1:3]] == [Status.TIMEOUT, Status.RUN_ERROR]


MEMORY_HOG = """
#include <stdlib.h>
#include <string.h>
int __tvm_ffi_main(void* self, const void* args, int n, void* result) {
  for (;;) memset(malloc(1 << 24), 1, 1 << 24);
}
"""


def test_a_kernel_that_takes_all_memory_costs_that_candidate(tmp_path: Path) -> None:
    source, artifact = tmp_path / "hog.c", tmp_path / "hog.so"
    source.write_text(MEMORY_HOG)
    subprocess.run(["cc", "-shared", "-fPIC", "-O0", "-o", str(artifact), str(source)], check=True)
    with WarmRunner(memory_limit_bytes=1 << 30) as runner:
        (result,) = run(runner, misbuild.doubling(), str(artifact))
    assert str(result.error_msg).startswith("out-of-memory: ")
    assert "1024 MiB" in str(result.error_msg)


@pytest.mark.parametrize("keep_bytes", [0, 300])
def test_a_broken_artifact_costs_that_candidate(
    builder: WarmBuilder, runner: WarmRunner, tmp_path: Path, keep_bytes: int
) -> None:
    mod = misbuild.doubling()
    whole = Path(str(build(builder, mod)[0].artifact_path))
    broken = tmp_path / "broken.so"
    broken.write_bytes(whole.read_bytes()[:keep_bytes])
    results = run(runner, mod, str(broken), str(tmp_path / "missing.so"), str(whole))
    assert [failure_reason(r.error_msg) for r in results] == ["run_error", "run_error", "ok"]


def test_a_runner_worker_killed_from_outside_is_replaced(builder: WarmBuilder, runner: WarmRunner) -> None:
    mod = misbuild.doubling()
    path = str(build(builder, mod)[0].artifact_path)
    assert run(runner, mod, path)[0].error_msg is None
    (worker,) = psutil.Process(runner.worker_pids()[0]).children()
    worker.kill()
    assert run(runner, mod, path)[0].error_msg is None


def test_times_agree_with_the_evaluator_in_rank_and_roughly_in_size(builder: WarmBuilder) -> None:
    mods = [misbuild.repeated_sum(times) for times in (64, 1, 16)]
    paths = [str(r.artifact_path) for r in build(builder, *mods)]
    with WarmRunner() as fresh:
        measured = [float(r.run_secs[0]) for r in run(fresh, mods[0], *paths)]
    a = tvm.runtime.tensor(np.ones((256, 256), dtype="float32"))
    b = tvm.runtime.tensor(np.zeros(256, dtype="float32"))
    direct = []
    for path in paths:
        evaluator = tvm.runtime.load_module(path).time_evaluator("main", tvm.cpu(), number=5, repeat=3)
        direct.append(float(evaluator(a, b).median))
    assert np.argsort(measured).tolist() == np.argsort(direct).tolist() == [1, 2, 0]
    assert all(0.1 < m / d < 10 for m, d in zip(measured, direct, strict=True))


def test_cold_caches_are_asked_for_and_leave_no_best_time(builder: WarmBuilder, runner: WarmRunner) -> None:
    """The number of cold runs is bounded: as many as fill an endless repeat would not end."""
    mod = misbuild.doubling()
    path = str(build(builder, mod)[0].artifact_path)
    runner.task = "cold"
    runner.cold = True
    try:
        (cold,) = run(runner, mod, path)
    finally:
        runner.cold = False
    assert float(cold.run_secs[0]) > 0
    (hot,) = run(runner, mod, path)
    assert float(hot.run_secs[0]) > 0
    signature = (("float32", (64,)), ("float32", (64,)))
    unending = TimingConfig(min_repeat_s=1e9)
    assert 0 < Timer()(RunRequest(path, "cpu", signature, float("inf"), unending, cold=True)) < 1


def test_the_first_estimate_is_short() -> None:
    calls: list[int] = []
    timing = TimingConfig(quick_runs=3, quick_budget_s=60.0)

    def runs(give_up_s: float, timing: TimingConfig = timing) -> int:
        calls.clear()
        assert quick_estimate_s(lambda: calls.append(1), tvm.cpu(), timing, give_up_s) > 0
        return len(calls)

    assert runs(float("inf")) == 4  # one cold, three more
    assert runs(0.0) == 2  # clearly slow
    assert runs(float("inf"), TimingConfig(quick_budget_s=1e-9)) == 1  # out of time


def test_a_clearly_slow_candidate_gets_no_long_measurement(builder: WarmBuilder) -> None:
    mod = misbuild.doubling()
    path = str(build(builder, mod)[0].artifact_path)
    signature = (("float32", (64,)), ("float32", (64,)))
    unending = TimingConfig(min_repeat_s=1e9)  # a long measurement would not end in the lifetime of the machine
    assert 0 < Timer()(RunRequest(path, "cpu", signature, best_s=0.0, timing=unending)) < 1


@pytest.mark.parametrize(
    ("seconds", "expected", "repeats"),
    [
        ([3.0, 2.0, 9.0, 9.0, 9.0], 2.5, 2),  # clearly not the best
        ([3.0, 1.0, 2.0, 5.0, 4.0], 3.0, 5),  # one of the first two came near
        ([1.0, 9.0, 1.0, 1.0, 9.0], 1.0, 5),
    ],
)
def test_a_candidate_that_is_clearly_not_the_best_gets_two_repeats(
    seconds: list[float], expected: float, repeats: int
) -> None:
    left = iter(seconds)
    assert raced_s(lambda: next(left), TimingConfig(repeats=5), close_s=1.1) == expected
    assert len(list(left)) == len(seconds) - repeats


def test_inputs_are_made_once_and_few_are_kept() -> None:
    timer = Timer(cache_bytes=3 * 4000)

    def arguments(n: int) -> list[tvm.runtime.Tensor]:
        request = RunRequest("", "cpu", (("float32", (n,)),), float("inf"), TimingConfig())
        return timer._arguments_for(tvm.cpu(), request)

    first = arguments(1000)
    assert arguments(1000)[0] is first[0]
    assert len(np.unique(first[0].numpy())) > 100  # random, not zeros
    assert arguments(1001)[0].shape[0] == 1001
    arguments(1002)
    assert arguments(1000)[0] is not first[0]  # the oldest had to go


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, "ok"),
        ("timeout: killed after 30 s", "timeout"),
        ("LocalBuilder: Timeout, killed after 30.0 seconds", "timeout"),
        ("LocalRunner: Timeout, killed after 30 seconds\n", "timeout"),
        ("RPCRunner: An exception occurred\nRPCSessionTimeoutError: Your 10s session has expired", "timeout"),
        ("LocalBuilder: An exception occurred\nTraceback ...\nValueError: no", "build_error"),
        ("LocalRunner: An exception occurred\nSubprocess terminated", "crash"),
        ("RPCRunner: An exception occurred\nCannot connect", "run_error"),
        ("LocalBuilder: An exception occurred\n[Errno 2] No such file or directory: 'g++'", "environment"),
        ("environment: there is no compiler", "environment"),
        ("out-of-memory: killed", "out-of-memory"),
        ("something else", "run_error"),
    ],
)
def test_messages_of_our_and_tvms_runners_are_understood(message: str | None, reason: str) -> None:
    assert failure_reason(message) == reason
    assert (failure_status(message) == Status.OK) == (reason == "ok")
    assert (failure_status(message) == Status.TIMEOUT) == (reason == "timeout")


def script(tmp_path: Path, text: str) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "TMPDIR": str(tmp_path),
    }
    return subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    )


def test_they_serve_stock_tuning(tmp_path: Path) -> None:
    import_intrinsics()
    a, b = te.placeholder((32, 32), name="a"), te.placeholder((32, 32), name="b")
    k = te.reduce_axis((0, 32), "k")
    c = te.compute((32, 32), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    mod, target = tvm.IRModule({"main": te.create_prim_func([a, b, c])}), detect_target()
    with WarmBuilder() as builder, WarmRunner() as runner:
        database = ms.tune_tir(
            mod,
            target,
            str(tmp_path),
            4,
            num_trials_per_iter=2,
            builder=builder,
            runner=runner,
            strategy="replay-trace",
            seed=1,
        )
        workers = [psutil.Process(pid) for pid in (*builder.worker_pids(), *runner.worker_pids())]
        assert len(workers) == 3
    assert not any(w.is_running() for w in workers)
    assert len(database.get_all_tuning_records()) == 4
    schedule = database.query_schedule(mod, target, "main")
    ours, stock = default_build(schedule.mod, target), stock_build(schedule.mod, target, None)
    without_addresses = [re.sub("0x[0-9a-f]+", "", m.inspect_source()) for m in (ours, stock)]  # of TVM's own objects
    assert without_addresses[0] == without_addresses[1]


# a plain script: no guard around what it does, which a worker that imported it would do again
INTERRUPTED = """
from tests.support import misbuild
from tvm.s_tir import meta_schedule as ms
from chameleon.measure import WarmBuilder
from chameleon.target import detect_target
from chameleon.workers.pool import Outcome

builder = WarmBuilder(f_build="tests.support.misbuild:build", n_workers=1)
builder.build([ms.builder.BuilderInput(misbuild.doubling(), detect_target())])
print("workers", *builder.worker_pids(), flush=True)
builder.build([ms.builder.BuilderInput(misbuild.doubling("hang"), detect_target())])
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_owner_leaves_no_process_and_no_files(tmp_path: Path, signum: int) -> None:
    owner = script(tmp_path, INTERRUPTED)
    assert owner.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()[1:]]
    workers += [child for w in workers for child in w.children(recursive=True)]
    assert len(workers) == 2
    owner.send_signal(signum)
    output, _ = owner.communicate(timeout=20)
    assert not psutil.wait_procs(workers, timeout=5)[1]
    if signum == signal.SIGINT:
        assert "KeyboardInterrupt" in output
    else:  # nobody could remove the files; the next builder does
        assert list(tmp_path.glob("chameleon-build-*"))
        script(tmp_path, "from chameleon.measure import WarmBuilder\nWarmBuilder()").communicate(timeout=60)
    assert not list(tmp_path.glob("chameleon-build-*"))


class Recorded:
    """Stands in for the runner's workers: answers with the given seconds and keeps what was asked."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = iter(seconds)
        self.best_s: list[float] = []

    def map(self, requests: list[RunRequest]) -> list[Outcome]:
        self.best_s += [request.best_s for request in requests]
        return [Outcome("ok", next(self._seconds), "", 0.0) for _ in requests]


def recorded(seconds: list[float]) -> tuple[WarmRunner, Recorded]:
    runner, pool = WarmRunner(), Recorded(seconds)
    runner._engine.pool = pool  # type: ignore[assignment]
    return runner, pool


def test_tasks_whose_arguments_have_equal_shapes_do_not_race_each_other() -> None:
    runner, pool = recorded([1e-6, 9e-6, 2e-6, 8e-6])
    for task in ("cheap", "costly", "cheap", "costly"):
        runner.task = task
        run(runner, misbuild.doubling(), "any.so")
    assert pool.best_s == [float("inf"), float("inf"), 1e-6, 9e-6]
    runner.forget()
    assert not runner._engine.best_s


def test_a_runner_that_is_not_told_the_task_compares_within_one_call() -> None:
    """As inside MetaSchedule, whose calls have the candidates of one task."""
    runner, pool = recorded([3e-6, 2e-6, 4e-6, 9e-6])
    run(runner, misbuild.doubling(), "a.so", "b.so", "c.so")
    run(runner, misbuild.doubling(), "d.so")
    assert pool.best_s == [float("inf"), 3e-6, 2e-6, float("inf")]
