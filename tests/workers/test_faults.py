"""Whose fault a failure is: candidates fail alone, the environment for everybody."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chameleon.workers import child, handle
from chameleon.workers.faults import EnvironmentFault, cause_in, cause_of
from chameleon.workers.pool import PoolConfig, WorkerPool, WorkerStartError

HERE = Path(__file__).parent


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    monkeypatch.syspath_prepend(str(HERE))
    with WorkerPool(PoolConfig("worker_targets:serve", timeout_s=20.0)) as pool:
        yield pool


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("build_error: FileNotFoundError: [Errno 2] No such file or directory: 'g++'\nTraceback ...", "compiler"),
        (
            "LocalBuilder: An exception occurred\n[Errno 2] No such file or directory: '/usr/bin/clang++-17'",
            "compiler",
        ),
        ("LocalBuilder: An exception occurred\n[Errno 13] Permission denied: 'aarch64-linux-gnu-gcc'", "compiler"),
        ("LocalBuilder: An exception occurred\n[Errno 2] No such file or directory: 'tar'", "install `tar`"),
        ("TypeError: expected str, bytes or os.PathLike object, not NoneType", "compiler"),
        ("Compilation error:\ncollect2: fatal error: cannot find 'ld'\ncompilation terminated.", "compiler"),
        ("g++: fatal error: cannot execute 'cc1plus': execvp: No such file or directory", "compiler"),
        ("ld: /tmp/x/lib0.o: file in wrong format", "--target"),
        ("LocalRunner: An exception occurred\nx.so: wrong ELF class: ELFCLASS32", "--target"),
        ("LLVM ERROR: IO failure on output stream: No space left on device", "TMPDIR"),
        ("OSError: [Errno 122] Disk quota exceeded: '/tmp/x'", "TMPDIR"),
        ("[Errno 30] Read-only file system", "TMPDIR"),
        ("RPCRunner: An exception occurred\nUnable to connect to the tracker using the following", "tracker"),
        ("RuntimeError: Cannot request rasp4b after 5 retry, last_error:timed out", "tracker"),
        ("CUDA: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected", "driver"),
    ],
)
def test_what_others_say_about_the_environment_is_recognised(message: str, advice: str) -> None:
    cause = cause_in(message)
    assert cause is not None
    assert advice in cause
    assert "\n" not in cause


@pytest.mark.parametrize(
    "message",
    [
        "timeout: killed after 30 s",
        "crash: signal 11 (SIGSEGV)",
        "build_error: InternalError: Check failed: threads <= 1024",
        "run_error: x.so: cannot open shared object file: No such file or directory",
        "FileNotFoundError: [Errno 2] No such file or directory: 'candidate.so'",
        "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
        "CUDA_ERROR_INVALID_PTX",
        "ptxas error: Entry function uses too much shared data",
        "",
    ],
)
def test_what_a_candidate_may_have_caused_is_no_fault(message: str) -> None:
    assert cause_in(message) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENOMEM, errno.ENODEV])
def test_errors_of_the_system_are_faults_by_their_number(number: int) -> None:
    cause = cause_of(OSError(number, os.strerror(number), "/tmp/some-file"))
    assert cause is not None
    assert "/tmp/some-file" in cause
    assert cause_of(OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/tmp/some-file")) is None
    assert cause_of(ValueError("no")) is None
    assert cause_of(EnvironmentFault("nothing works")) == "nothing works"


def test_a_worker_tells_faults_from_failures(pool: WorkerPool) -> None:
    outcomes = pool.map([("echo", 1), "disk_full", "fault", "raise", ("echo", 2)])
    assert [o.reason for o in outcomes] == ["ok", "environment", "environment", "error", "ok"]
    assert outcomes[1].message.startswith("environment: No space left on device (/full); ")
    assert outcomes[2].message == "environment: no such device; plug it in"


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (child.EXIT_KERNEL_OUT_OF_MEMORY, "out-of-memory", "kernel killed"),
        (child.EXIT_MACHINE_OUT_OF_MEMORY, "environment", "less than half"),
    ],
)
def test_a_kill_by_the_kernel_for_memory_is_called_that(pool: WorkerPool, code: int, reason: str, words: str) -> None:
    (outcome,) = pool.map([("exit_with", code)])
    assert outcome.reason == reason
    assert words in outcome.message


class _Kernel:
    """A kernel that counts one more kill for memory each time it is asked."""

    kills = 0

    def oom_kills(self) -> int:
        _Kernel.kills += 1
        return _Kernel.kills


def test_a_kill_counts_as_one_for_memory_if_the_kernel_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "Cgroups", _Kernel)
    assert child._ran_out_of_memory(_Kernel().oom_kills())
    assert not child._ran_out_of_memory(10**9)
    assert child._ran_out_of_memory(None)  # the kernel does not say: the likeliest cause of such a kill


def test_a_worker_that_cannot_be_started_is_a_fault(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(handle.os, "memfd_create" if hasattr(os, "memfd_create") else "pipe", full)
    with pytest.raises(WorkerStartError, match="No space left on device; free some space"):
        pool.map([("echo", 1)])
    assert issubclass(WorkerStartError, EnvironmentFault)
