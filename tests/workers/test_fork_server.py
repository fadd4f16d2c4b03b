"""A forked worker is as one that its owner starts now; only the imports are older."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chameleon.workers import fork_server
from chameleon.workers.pool import PoolConfig, WorkerPool, WorkerStartError

pytestmark = pytest.mark.skipif(not fork_server._possible(), reason="workers are forked on Linux only")
HERE = Path(__file__).parent


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> PoolConfig:
    monkeypatch.syspath_prepend(str(HERE))
    return PoolConfig("import_targets:where", timeout_s=20.0, recycle_after=1, forked=True)


@pytest.fixture
def pool(config: PoolConfig) -> Iterator[WorkerPool]:
    with WorkerPool(config) as pool:
        yield pool


def importers(pool: WorkerPool, n: int = 1) -> set[int]:
    """The processes that imported the target for `n` workers, each of which serves one payload."""
    outcomes = pool.map(["HOME"] * n)
    assert all(outcome.ok for outcome in outcomes), outcomes
    return {outcome.value[0] for outcome in outcomes}


def server_pid() -> int:
    assert fork_server._registry.server is not None
    return fork_server._registry.server.process.pid


def test_one_process_imports_for_all_workers_and_pools(pool: WorkerPool, config: PoolConfig) -> None:
    assert importers(pool, 3) == {server_pid()}
    with WorkerPool(config) as other:
        other.start()
        assert importers(other) == {server_pid()}


def test_the_owner_is_the_parent_of_what_is_forked(pool: WorkerPool) -> None:
    assert pool.map(["HOME"])[0].value[3] == os.getpid()
    assert psutil.Process(pool.pids()[0]).ppid() == os.getpid()


def test_a_worker_has_the_owners_variables_and_folder_of_now(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importer = importers(pool)
    monkeypatch.setenv("SOME_VARIABLE", "caf\u00e9 \udcff")
    monkeypatch.chdir(tmp_path)
    _, variable, folder, _ = pool.map(["SOME_VARIABLE"])[0].value
    assert (variable, folder) == ("caf\u00e9 \udcff", str(tmp_path))
    monkeypatch.delenv("SOME_VARIABLE")
    assert pool.map(["SOME_VARIABLE"])[0].value[1] is None
    assert importers(pool) == importer


@pytest.mark.parametrize("variable", ["TVM_NUM_THREADS", "PATH", "LD_LIBRARY_PATH"])
def test_what_imports_may_read_makes_a_new_server(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    importer = importers(pool)
    monkeypatch.setenv(variable, "3")
    assert pool.map([variable])[0].value[1] == "3"
    assert importers(pool) != importer
    assert not psutil.pid_exists(importer.pop())


def test_a_new_limit_of_this_process_makes_a_new_server(pool: WorkerPool) -> None:
    importer = importers(pool)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert importers(pool) != importer
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_lost_server_costs_no_worker_and_is_started_anew(config: PoolConfig, how: int) -> None:
    with WorkerPool(PoolConfig("worker_targets:serve", timeout_s=20.0, forked=True)) as pool:
        (worker,) = {outcome.value for outcome in pool.map(["pid"])}
        old = server_pid()
        threading.Timer(0.1, os.kill, (old, how)).start()
        assert pool.map([("sleep", 0.3), "pid"])[1].value == worker
        with WorkerPool(config) as other:
            assert importers(other) == {server_pid()} != {old}


def test_a_server_that_does_not_answer_is_given_up(pool: WorkerPool, config: PoolConfig) -> None:
    importers(pool)
    os.kill(server_pid(), signal.SIGSTOP)
    with pytest.raises(WorkerStartError, match=r"did not start in 0\.3 s"):
        WorkerPool(PoolConfig(config.target, start_timeout_s=0.3, forked=True)).map(["HOME"])
    assert importers(pool) == {server_pid()}


def test_a_server_with_a_second_thread_does_not_fork(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_TEST_IMPORT", "thread")
    pids = importers(pool, 2)
    assert len(pids) == 2
    assert server_pid() not in pids


def test_an_import_that_crashes_is_an_error_with_its_cause(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_TEST_IMPORT", "abort")
    pool.start()
    with pytest.raises(WorkerStartError, match="SIGABRT"):
        pool.map(["HOME"])


def test_a_fork_of_the_owner_has_a_server_of_its_own(pool: WorkerPool, config: PoolConfig) -> None:
    importer = importers(pool)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with WorkerPool(config) as own:
            imported_by, _, _, owner = own.map(["HOME"])[0].value
        os.write(writer, f"{imported_by} {owner} {os.getpid()}".encode())
        fork_server._end()
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader) as file:
        imported_by, owner, pid = map(int, file.read().split())
    assert owner == pid == child
    assert {imported_by} != importer == importers(pool)


def test_without_linux_every_worker_imports(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    pool.start()
    assert len(importers(pool, 2)) == 2
