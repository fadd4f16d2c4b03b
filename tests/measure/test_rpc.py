"""Remote measuring against a real tracker and real servers on loopback, dying and coming back included."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tvm import rpc
from tvm.rpc.tracker import Tracker
from tvm.s_tir import meta_schedule as ms

from chameleon.cli import main
from chameleon.errors import UsageError
from chameleon.measure import WarmBuilder, failure_reason, rpc_runner
from chameleon.measure.remote import RemoteConfig, RemoteRunner
from chameleon.measure.tracker import check_tracker, parse_tracker
from chameleon.target import detect_target
from chameleon.workers.faults import EnvironmentFault
from scripts.common.ports import free_port
from tests.support import misbuild
from tests.support.networks import write_network

pytestmark = pytest.mark.tvm

KEY = "some-device"


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    port = free_port()
    tracker = Tracker(host="127.0.0.1", port=port, port_end=port + 50, silent=True)
    yield tracker
    tracker.terminate()


Serve = Callable[[], rpc.Server]


@pytest.fixture
def serve(tracker: Tracker) -> Iterator[Serve]:
    servers = []

    def start() -> rpc.Server:
        port = free_port()
        address = ("127.0.0.1", tracker.port)
        servers.append(rpc.Server("127.0.0.1", port, port + 50, tracker_addr=address, key=KEY, silent=True))
        return servers[-1]

    yield start
    for server in servers:
        server.terminate()


def wait_until_registered(tracker: Tracker) -> None:
    """A server registers in the background, some time after it has started."""
    deadline = time.monotonic() + 60
    session = rpc.connect_tracker("127.0.0.1", tracker.port)
    while not session.summary()["server_info"]:
        assert time.monotonic() < deadline, "no server has registered"
        time.sleep(0.2)
    session.close()


def kill(server: rpc.Server) -> None:
    """The device loses its power."""
    process = psutil.Process(server.proc._proc.pid)
    for victim in [*process.children(recursive=True), process]:
        victim.kill()
    process.wait()


@pytest.fixture
def runner(tracker: Tracker) -> Iterator[RemoteRunner]:
    with rpc_runner(f"127.0.0.1:{tracker.port}", KEY, session_timeout_s=5, wait_timeout_s=20) as runner:
        yield runner


GOOD, HANGING = misbuild.kernel("getpid"), misbuild.kernel("sleep", 1000)


@pytest.fixture(scope="module")
def artifacts() -> Iterator[list[str]]:
    """A good one and one that hangs."""
    with WarmBuilder(export="tar", n_workers=1) as builder:
        results = builder.build([ms.builder.BuilderInput(mod, detect_target()) for mod in (GOOD, HANGING)])
        yield [str(r.artifact_path) for r in results]


def submit(runner: ms.Runner, *paths: str) -> list[ms.runner.RunnerFuture]:
    args_info = ms.arg_info.ArgInfo.from_entry_func(GOOD, remove_preproc=True)
    return list(runner.run([ms.runner.RunnerInput(path, "cpu", args_info) for path in paths]))


def test_candidates_are_timed_remotely_and_one_that_hangs_costs_itself(
    serve: Serve, runner: RemoteRunner, artifacts: list[str]
) -> None:
    serve()
    good, hanging = artifacts
    results = [f.result() for f in submit(runner, good, hanging, good)]
    assert [failure_reason(r.error_msg) for r in results] == ["ok", "timeout", "ok"]
    assert all(0 < float(s) < 1 for r in (results[0], results[2]) for s in r.run_secs)
    workers = [psutil.Process(pid) for pid in runner.worker_pids()]
    assert workers
    runner.close()
    assert not any(w.is_running() for w in workers)


def test_cold_caches_are_asked_for_remotely(serve: Serve, runner: RemoteRunner, artifacts: list[str]) -> None:
    """Each repeat is then one run: only the first one finds cold caches."""
    serve()
    runner.cold = True
    (cold,) = submit(runner, artifacts[0])
    runner.cold = False
    (hot,) = submit(runner, artifacts[0])
    config = RemoteConfig("", "")
    assert len(cold.result().run_secs) == config.number * config.repeats
    assert len(hot.result().run_secs) == config.repeats
    assert all(float(s) > 0 for s in cold.result().run_secs)


def test_measuring_goes_on_when_a_dead_server_is_back(
    serve: Serve, runner: RemoteRunner, artifacts: list[str]
) -> None:
    server = serve()
    good, hanging = artifacts
    assert submit(runner, good)[0].result().error_msg is None
    (lost,) = submit(runner, hanging)
    time.sleep(2.0)  # it hangs on the device by now
    kill(server)
    result = lost.result()
    assert failure_reason(result.error_msg) == "environment"  # no device came back, so it is not the candidate's fault
    (next_one,) = submit(runner, good)  # no device is there
    time.sleep(1.0)
    assert not next_one.done()
    serve()
    assert next_one.result().error_msg is None


def test_without_a_device_the_wait_ends_with_a_reason(tracker: Tracker, artifacts: list[str]) -> None:
    with rpc_runner(f"127.0.0.1:{tracker.port}", "no-such-key", session_timeout_s=1, wait_timeout_s=1) as runner:
        message = str(submit(runner, artifacts[0])[0].result().error_msg)
    assert message.startswith("environment: ")
    assert "no-such-key" in message
    assert "in 1 s" in message


def test_without_a_tracker_the_reason_says_so(artifacts: list[str]) -> None:
    with rpc_runner(f"127.0.0.1:{free_port()}", KEY, session_timeout_s=2, wait_timeout_s=10) as runner:
        message = str(submit(runner, artifacts[0])[0].result().error_msg)
    assert message.startswith("environment: ")
    assert "tracker" in message


def test_a_tracker_is_asked_for_the_device_before_anything_else(tracker: Tracker, serve: Serve) -> None:
    serve()
    wait_until_registered(tracker)
    address = f"127.0.0.1:{tracker.port}"
    check_tracker(address, KEY)
    with pytest.raises(EnvironmentFault, match=f"no device with the key 'other': there are {KEY}"):
        check_tracker(address, "other")
    with pytest.raises(EnvironmentFault, match="no RPC tracker answers at"):
        check_tracker(f"127.0.0.1:{free_port()}", KEY)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(EnvironmentFault, match="is no RPC tracker"):
        check_tracker(f"127.0.0.1:{mute.getsockname()[1]}", KEY)


def test_integers_are_drawn_inside_what_a_remote_kernel_reads(serve: Serve, runner: RemoteRunner) -> None:
    serve()
    mod = misbuild.embedding()
    with WarmBuilder(export="tar", n_workers=1) as builder:
        (built,) = builder.build([ms.builder.BuilderInput(mod, detect_target())])
        args_info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)
        runs = [ms.runner.RunnerInput(str(built.artifact_path), "cpu", args_info)]
        assert runner.run(runs)[0].result().error_msg is None


def test_closing_fails_what_waits(tracker: Tracker, artifacts: list[str]) -> None:
    runner = rpc_runner(f"127.0.0.1:{tracker.port}", "no-such-key")
    futures = submit(runner, artifacts[0], artifacts[0])
    time.sleep(1.0)
    workers = [psutil.Process(pid) for pid in runner.worker_pids()]
    runner.close()
    assert all("closed" in str(f.result().error_msg) for f in futures)
    assert not any(w.is_running() for w in workers)


def test_two_devices_work_at_a_time(tracker: Tracker, serve: Serve, artifacts: list[str]) -> None:
    serve()
    serve()
    with rpc_runner(f"127.0.0.1:{tracker.port}", KEY, session_timeout_s=20) as runner:
        results = [f.result() for f in submit(runner, *[artifacts[0]] * 4)]
        assert len(runner.worker_pids()) == 2
    assert [r.error_msg for r in results] == [None] * 4


@pytest.mark.parametrize("text", ["", "localhost", "localhost:", ":9190", "localhost:port", "localhost:70000"])
def test_a_malformed_tracker_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        parse_tracker(text)


def test_a_tracker_may_have_a_numeric_address_of_either_kind() -> None:
    assert parse_tracker("[::1]:9190") == ("::1", 9190)
    assert parse_tracker("10.0.0.7:9190") == ("10.0.0.7", 9190)


def test_the_command_tunes_on_a_device_at_the_tracker(serve: Serve, tracker: Tracker, tmp_path: Path) -> None:
    serve()
    out = tmp_path / "run"
    network = write_network(tmp_path / "tiny.onnx")
    command = ["tune", str(network), "--out", str(out), "--trials", "8", "--searcher", "random"]
    assert main([*command, "--tracker", f"127.0.0.1:{tracker.port}", "--device-key", KEY]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["trials"] == 8
    assert report["failures"] == {}
    assert report["latency_ms"] == {"untuned": None, "tuned": None}  # the device is elsewhere
    assert (out / "network.so").exists()
