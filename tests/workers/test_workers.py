"""The pool of worker processes: one bad payload costs that payload, and nothing outlives the owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon.cores import usable_cores
from chameleon.workers.pool import PoolConfig, WorkerPool, WorkerStartError

HERE = Path(__file__).parent
MakePool = Callable[..., WorkerPool]


@pytest.fixture(params=[True, False], ids=["forked", "spawned"])
def forked(request: pytest.FixtureRequest) -> bool:
    """Whether the workers are forked, or each is started as a process of its own."""
    return request.param


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePool]:
    monkeypatch.syspath_prepend(str(HERE))
    pools = []

    def make(target: str = "worker_targets:serve", **options: Any) -> WorkerPool:
        pools.append(WorkerPool(PoolConfig(target, **{"timeout_s": 20.0, "forked": True, **options})))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> bool:
    """Whether the condition comes true in time."""
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of the processes exists any longer, not even as a zombie."""
    return not any(process.is_running() for process in processes)


@pytest.mark.parametrize(
    ("payload", "reason", "words"),
    [
        ("segfault", "crash", "signal 11 (SIGSEGV)"),
        ("abort", "crash", "signal 6 (SIGABRT)"),
        ("kill", "crash", "signal 9"),
        ("exit", "crash", "exit code 3"),
        ("hang", "timeout", "1.5 s"),
        ("take_memory", "out-of-memory", "256 MiB"),
        ("memory_error", "out-of-memory", "MemoryError"),
        ("raise", "error", "this one is bad"),
        ("interrupt", "error", "KeyboardInterrupt"),
        ("unpicklable", "error", "cannot be sent back"),
    ],
)
def test_a_bad_payload_costs_itself_only(
    make_pool: MakePool, forked: bool, payload: str, reason: str, words: str
) -> None:
    pool = make_pool(forked=forked, n_workers=2, timeout_s=1.5, memory_limit_bytes=256 << 20)
    outcomes = pool.map([("echo", 0), payload, ("echo", 2), ("echo", 3)])
    assert [o.value for o in outcomes] == [0, None, 2, 3]
    assert [o.reason for o in outcomes] == ["ok", reason, "ok", "ok"]
    assert outcomes[1].message.startswith(f"{reason}:")
    assert words in outcomes[1].message


def test_a_payload_that_cannot_be_sent_fails_alone(make_pool: MakePool) -> None:
    outcomes = make_pool().map([("echo", threading.Lock()), ("echo", 1)])
    assert outcomes[0].reason == "error"
    assert "cannot be sent" in outcomes[0].message
    assert outcomes[1].value == 1


def test_outcomes_come_in_the_payloads_order(make_pool: MakePool) -> None:
    pool = make_pool(n_workers=3)
    payloads = [("sleep", 0.2), *[("echo", i) for i in range(20)]]
    assert [o.value for o in pool.map(payloads)] == [None, *range(20)]


def test_workers_are_used_at_the_same_time(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(n_workers=2)
    pool.map([("sleep", 0.3), ("sleep", 0.3)])
    assert len(pool.pids()) == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.binary(max_size=300_000), max_size=6))
def test_any_bytes_pass_unchanged(shared_pool: WorkerPool, values: list[bytes]) -> None:
    assert [o.value for o in shared_pool.map([("echo", v) for v in values])] == values


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[WorkerPool]:
    sys.path.insert(0, str(HERE))
    with WorkerPool(PoolConfig("worker_targets:serve", n_workers=2)) as pool:
        yield pool
    sys.path.remove(str(HERE))


def test_large_messages_pass(shared_pool: WorkerPool) -> None:
    value = os.urandom(10_000_000)
    assert shared_pool.map([("echo", value)])[0].value == value


def test_what_a_payload_prints_or_reads_does_not_disturb(shared_pool: WorkerPool) -> None:
    assert [o.value for o in shared_pool.map(["print", "read", ("echo", 5)])] == [1, "", 5]


def test_hidden_modules_are_absent_for_the_imports_and_there_for_the_payloads(make_pool: MakePool) -> None:
    assert make_pool(without=("sqlite3",)).map(["optional"])[0].value == (False, "sqlite3")
    assert make_pool().map(["optional"])[0].value == (True, "sqlite3")


def test_workers_stay_warm_and_are_recycled(make_pool: MakePool) -> None:
    pool = make_pool(recycle_after=3)
    pids = [o.value for o in pool.map(["pid"] * 7)]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert pids[3] == pids[4] == pids[5] != pids[6]
    assert pool.map(["pid"])[0].value == pids[6]


def test_a_worker_that_grew_is_replaced_before_it_costs_a_payload(make_pool: MakePool) -> None:
    pool = make_pool(memory_limit_bytes=300 << 20)
    outcomes = pool.map([("grow", 100 << 20)] * 6)
    assert all(o.ok for o in outcomes)
    assert len({o.value for o in outcomes}) >= 3


def test_a_crash_in_a_used_worker_is_tried_again_in_a_fresh_one(make_pool: MakePool) -> None:
    assert make_pool().map(["poison", "crash_if_poisoned"])[1].value == "fine"
    assert make_pool(retry_crash=False).map(["poison", "crash_if_poisoned"])[1].reason == "crash"


@pytest.mark.parametrize("part", ["worker", "supervisor"])
def test_a_payload_is_not_to_blame_where_somebody_else_kills_its_fresh_worker(
    make_pool: MakePool, forked: bool, part: str
) -> None:
    pool = make_pool(forked=forked)

    def kill() -> None:
        """Kill the first worker that serves the payload."""
        assert wait_until(lambda: any(psutil.Process(pid).children() for pid in pool.pids()))
        time.sleep(0.5)
        supervisor = psutil.Process(pool.pids()[0])
        (supervisor.children()[0] if part == "worker" else supervisor).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    (outcome,) = pool.map([("sleep", 2.0)])
    killer.join()
    assert outcome.ok, outcome


def test_a_worker_that_died_while_idle_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool()
    assert pool.map(["die_later"])[0].ok
    old = pool.pids()
    assert wait_until(lambda: psutil.Process(old[0]).status() == psutil.STATUS_ZOMBIE)
    assert pool.map([("echo", 1)])[0].value == 1
    assert pool.pids() != old


@pytest.mark.parametrize("whom", ["worker", "supervisor"])
def test_a_worker_killed_from_outside_costs_its_payload_only(make_pool: MakePool, forked: bool, whom: str) -> None:
    pool = make_pool(forked=forked, retry_crash=False)
    pool.map([("echo", 0)])
    supervisor = psutil.Process(pool.pids()[0])
    (worker,) = supervisor.children()
    victim = worker if whom == "worker" else supervisor
    threading.Timer(0.3, victim.kill).start()
    outcomes = pool.map([("sleep", 30), ("echo", 1)])
    assert [o.reason for o in outcomes] == ["crash", "ok"]
    assert "signal 9" in outcomes[0].message
    assert wait_until(lambda: gone([worker, supervisor]))


def test_a_timeout_ends_what_the_worker_started(make_pool: MakePool) -> None:
    pool = make_pool(timeout_s=1.0)
    pool.map([("echo", 0)])
    supervisor = psutil.Process(pool.pids()[0])
    thread = threading.Thread(target=pool.map, args=([("grandchild", "300")],))
    thread.start()
    assert wait_until(lambda: len(supervisor.children(recursive=True)) == 2)
    processes = [supervisor, *supervisor.children(recursive=True)]
    thread.join()
    assert gone(processes)


def test_the_target_can_be_made_once_a_worker(make_pool: MakePool) -> None:
    assert [o.value for o in make_pool("worker_targets:Counter", factory=True).map([0, 0, 0])] == [1, 2, 3]


@pytest.mark.parametrize(
    ("target", "factory", "words"),
    [
        ("no_such_module:serve", False, "No module named 'no_such_module'"),
        ("worker_targets:nothing", False, "nothing"),
        ("worker_targets", False, "module:function"),
        ("worker_targets:broken_factory", True, "no device here"),
        ("worker_targets:dying_factory", True, "SIGABRT"),
    ],
)
def test_a_worker_that_cannot_start_is_an_error_with_its_cause(
    make_pool: MakePool, forked: bool, target: str, factory: bool, words: str
) -> None:
    with pytest.raises(WorkerStartError, match=words):
        make_pool(target, forked=forked, factory=factory).map([1, 2])


def test_a_worker_that_does_not_start_in_time_is_an_error(make_pool: MakePool, forked: bool) -> None:
    with pytest.raises(WorkerStartError, match=r"did not start in 0\.01 s"):
        make_pool("slow_import:serve", forked=forked, start_timeout_s=0.01).map([("echo", 1)])


def test_closing_ends_a_map_in_another_thread(make_pool: MakePool) -> None:
    pool = make_pool()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(pool.map([("sleep", 60), ("echo", 1)])))
    thread.start()
    assert wait_until(lambda: bool(pool.pids()))
    time.sleep(0.3)
    pool.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert [o.reason for o in results] == ["error", "error"]
    assert "closed" in results[0].message
    assert pool.map([("echo", 2)])[0].value == 2


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores and Linux"
)
def test_workers_may_use_all_cores_even_if_their_starter_is_bound_to_one(make_pool: MakePool) -> None:
    every = os.sched_getaffinity(0)
    stop = threading.Event()
    unbound = threading.Thread(target=stop.wait)
    unbound.start()
    try:
        os.sched_setaffinity(0, {min(every)})  # as TVM does to the thread that runs a kernel
        assert usable_cores() == len(every)
        assert make_pool().map(["cores"])[0].value == every
    finally:
        os.sched_setaffinity(0, every)
        stop.set()
        unbound.join()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="n_workers must be positive, got 0"):
        PoolConfig("a:b", n_workers=0)


OWNER = """
import os, signal, sys, threading, time
print("main runs", flush=True)
import psutil
from chameleon.cores import usable_cores
from chameleon.workers.pool import PoolConfig, WorkerPool
how, forked = sys.argv[1], sys.argv[2] == "True"
pool = WorkerPool(PoolConfig("worker_targets:serve", n_workers=2, timeout_s=100, forked=forked))
started = threading.Thread(target=lambda: pool.map([("sleep", 0.5), ("sleep", 0.5)]))  # from a thread that ends
started.start()
started.join()
print("pids", *pool.pids(), *{p.pid for p in psutil.Process().children()} - set(pool.pids()), flush=True)
if how == "return":
    sys.exit(0)
if how == "exception":
    raise RuntimeError("the owner failed")
if how == "hard exit":
    os._exit(5)
if how == "fork":
    if os.fork() == 0:  # a child that holds copies of our pipes and lives on
        os.close(1)
        os.close(2)
        time.sleep(15)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
print("mapping", flush=True)
pool.map(["hang", ("grandchild", "300")])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "signum"),
    [
        ("return", None),
        ("exception", None),
        ("hard exit", None),
        ("fork", None),
        ("map", signal.SIGKILL),
        ("map", signal.SIGINT),
        ("map", signal.SIGTERM),
    ],
)
def test_nothing_outlives_the_owner(tmp_path: Path, forked: bool, how: str, signum: int | None) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)  # without a guard: a worker that imported it would start workers of its own
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    owner = subprocess.Popen(
        [sys.executable, str(script), how, str(forked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "main runs\n"
    processes = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()[1:]]
    assert len(processes) == 2 + forked  # the fork server
    supervisors = processes[:2]
    if signum is not None:
        assert owner.stdout.readline() == "mapping\n"
        assert wait_until(lambda: sum(len(s.children(recursive=True)) for s in supervisors) == 3)
        processes += [child for s in supervisors for child in s.children(recursive=True)]
        owner.send_signal(signum)
    rest, _ = owner.communicate(timeout=20)  # ends only when nobody holds the owner's output
    assert "main runs" not in rest
    assert wait_until(lambda: gone(processes), limit_s=5)
