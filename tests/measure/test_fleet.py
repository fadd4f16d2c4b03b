"""Whose fault it is when a device gives no answer; and a fleet on loopback whose devices die, hang and come back."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("tvm")

from tvm.s_tir import meta_schedule as ms

from chameleon.measure import WarmBuilder, failure_reason, rpc_runner
from chameleon.measure.device_facts import DeviceFacts, ask_device
from chameleon.measure.fleet import CRASH, GONE, MOST_GONE, MOST_REST_S, TIMEOUT, Health, Setback, blame
from chameleon.measure.tracker import Grant, Tracker, give_back, next_device
from chameleon.target import detect_target
from chameleon.workers.faults import ENVIRONMENT
from tests.support import misbuild
from tests.support.fleets import KEY, LoopbackFleet, loopback_fleet

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize(
    "kinds", [kinds for n in (1, 2, 3) for kinds in itertools.product((CRASH, GONE, TIMEOUT, ENVIRONMENT), repeat=n)]
)
def test_a_candidate_is_blamed_only_after_enough_witnesses(kinds: tuple[str, ...], others: bool) -> None:
    """Against the sentences of the docstring of `blame`, over all rows of up to three setbacks."""
    setbacks = [Setback(f"d{i}", kind, kind) for i, kind in enumerate(kinds)]
    if any(blame(setbacks[:n], others=others) for n in range(1, len(kinds))):
        return  # it would not have been measured again
    found = blame(setbacks, others=others)
    told = [kind for kind in kinds if kind != GONE]
    lonely = told == [TIMEOUT] and not others
    assert (found is not None) == (len(told) == 2 or lonely or len(kinds) == MOST_GONE)
    if found is not None:
        assert found.kind == (told[-1] if len(told) == 2 or lonely else CRASH)


def test_a_device_rests_longer_after_each_setback_and_a_result_ends_that(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    health = Health(lambda: now_s)
    for expected_s in (0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, MOST_REST_S, MOST_REST_S):
        health.failed(Setback("d", GONE, "it is gone"))
        assert health.rests("d") == (expected_s > 0)
        now_s += expected_s
        assert not health.rests("d")
    assert not health.rests("another")
    assert "was not taken back" in health.report()[0]
    health.answered("d")
    assert "taken back" in caplog.messages[-1]
    assert health.report() == ["the device d gave no answer 9 times, which no candidate is blamed for"]
    health.failed(Setback("d", GONE, "it is gone"))
    assert not health.rests("d")


GOOD, CRASHING = misbuild.kernel("getpid"), misbuild.kernel("abort")


@pytest.fixture(scope="module")
def artifacts() -> Iterator[tuple[str, str]]:
    """A good one, and one that crashes."""
    with WarmBuilder(export="tar", n_workers=1) as builder:
        results = builder.build([ms.builder.BuilderInput(mod, detect_target()) for mod in (GOOD, CRASHING)])
        yield str(results[0].artifact_path), str(results[1].artifact_path)


def submit(runner: ms.Runner, *paths: str) -> list[ms.runner.RunnerFuture]:
    args_info = ms.arg_info.ArgInfo.from_entry_func(GOOD, remove_preproc=True)
    return list(runner.run([ms.runner.RunnerInput(path, "cpu", args_info) for path in paths]))


def wait_for(runner: object, futures: list[ms.runner.RunnerFuture], n: int) -> None:
    until_s = time.monotonic() + 120
    while sum(f.done() for f in futures) < n:
        assert time.monotonic() < until_s, sum(f.done() for f in futures)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_survives_devices_that_are_killed_hang_and_start_again(
    artifacts: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Four servers: one is killed, one hangs and goes on later, one is killed and comes back, one is well."""
    caplog.set_level(logging.WARNING, "chameleon")
    with loopback_fleet(4, wait_s=0.5) as fleet:
        dead, hung, back, _ = fleet.servers
        with rpc_runner(fleet.tracker, KEY, session_timeout_s=4, min_repeat_ms=1) as runner:
            futures = submit(runner, *[artifacts[0]] * 60)
            wait_for(runner, futures, 6)
            assert len(runner.worker_pids()) == 4  # as many in flight as devices
            dead.kill()
            wait_for(runner, futures, 12)
            hung.stop()
            wait_for(runner, futures, 20)
            back.kill()
            wait_for(runner, futures, 24)
            back.start()
            results = [f.result() for f in futures]
            assert [r.error_msg for r in results] == [None] * 60
            assert hung.device in " ".join(m for m in caplog.messages if "is left out" in m)
            hung.go_on()
            fleet.wait_until_free(3)
            for _ in range(8):  # until both have had their turn
                assert all(f.result().error_msg is None for f in submit(runner, *[artifacts[0]] * 3))
            assert runner.report()
    for server in (hung, back):
        lines = [m for m in caplog.messages if server.device in m]
        assert any("left out" in m or "measured again" in m for m in lines), caplog.messages
    assert any("answers again" in m and hung.device in m for m in caplog.messages), caplog.messages


@pytest.mark.slow
def test_a_candidate_that_ends_servers_is_blamed_and_the_servers_come_back(artifacts: tuple[str, str]) -> None:
    good, crashing = artifacts
    with loopback_fleet(2) as fleet, rpc_runner(fleet.tracker, KEY, session_timeout_s=20) as runner:
        bad, *rest = [f.result() for f in submit(runner, crashing, good, good)]
        assert failure_reason(bad.error_msg) == "crash", bad.error_msg
        assert [r.error_msg for r in rest] == [None, None]
        fleet.wait_until_free(2)
        assert runner.report() == []  # no device is blamed for what the candidate did


@pytest.fixture(scope="module")
def pair() -> Iterator[LoopbackFleet]:
    with loopback_fleet(2) as fleet:
        yield fleet


@pytest.mark.slow
def test_a_device_says_what_it_is(pair: LoopbackFleet) -> None:
    facts = ask_device(pair.tracker, KEY)
    here = detect_target()
    assert facts.cpu == here.attrs["mcpu"]
    assert facts.processors is not None
    assert facts.processors >= facts.threads >= 1
    assert facts.memory_bytes is not None
    assert facts.memory_bytes > 1 << 28
    assert f'"num-cores": {facts.threads}' in str(facts.target())
    assert "mtriple" not in str(facts.target())  # it is this machine's


@pytest.mark.slow
def test_room_is_what_the_tracker_has_free(pair: LoopbackFleet) -> None:
    pair.wait_until_free(2)
    tracker = Tracker(pair.tracker)
    with rpc_runner(pair.tracker, KEY) as runner:
        assert runner.room() == 2
        grant = next_device(tracker, KEY, lambda: True)
        assert isinstance(grant, Grant)
        time.sleep(0.5)
        assert runner.room() == 1
        give_back(grant)
        pair.wait_until_free(2)
        time.sleep(0.5)
        assert runner.room() == 2


def test_a_device_that_does_not_know_its_processor_gives_no_target() -> None:
    assert DeviceFacts("d", 4).target() is None
    assert DeviceFacts("d", 4, "aarch64-linux-gnu", "cortex-a72").target() == (
        '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 4}'
    )
    assert "TVM_NUM_THREADS=8" in DeviceFacts("d", 4, processors=8).advice
    assert not DeviceFacts("d", 4, processors=4).advice
