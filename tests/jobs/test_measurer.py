"""Building goes on while devices elsewhere measure, and nothing starts when the time is over."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tvm")

import tvm
from tvm.s_tir import meta_schedule as ms

from chameleon.jobs import measurer as measurer_module
from chameleon.jobs.measurer import Measurer
from chameleon.target import detect_target
from chameleon.workers.faults import ENVIRONMENT, EnvironmentFault
from tests.support import misbuild

pytestmark = pytest.mark.tvm
WAIT_S = 60  # for what happens at once if it happens at all


class Bench:
    """A builder and a runner whose events a test holds in its hands.

    Args:
        f_end: waited for before a result is there; gets the number of the candidate.
        fails: the numbers of candidates that cannot be built.
    """

    def __init__(self, folder: Path, f_end: Callable[[int], object] = lambda _: None, fails: tuple[int, ...] = ()):
        self.builds = [threading.Event() for _ in range(9)]  # set when the n-th call of `build` begins
        self.started: list[int] = []
        self.running = self.most_running = 0
        self.error: str | None = None
        self._folder, self._end, self._fails = folder, f_end, fails
        self._calls, self._built = itertools.count(), itertools.count()

    def build(self, inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        self.builds[next(self._calls)].set()
        return [self._artifact(next(self._built)) for _ in inputs]

    def _artifact(self, number: int) -> ms.builder.BuilderResult:
        if number in self._fails:
            return ms.builder.BuilderResult(None, "build_error: no")
        path = self._folder / str(number) / "candidate.tar"
        path.parent.mkdir()
        return ms.builder.BuilderResult(str(path), None)

    def run(self, inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        (given,) = inputs
        number = int(Path(str(given.artifact_path)).parent.name)
        self.started.append(number)
        self.running += 1
        self.most_running = max(self.most_running, self.running)

        def result() -> ms.runner.RunnerResult:
            self._end(number)
            self.running -= 1
            if self.error:
                return ms.runner.RunnerResult(None, self.error)
            return ms.runner.RunnerResult([(number + 1) * 1e-3], None)

        return [ms.runner.RunnerFuture(lambda: True, result)]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurer_module, "usable_cores", lambda: 2)


def measure(bench: Bench, n: int, *, devices: int = 1, in_time: Callable[[], bool] = lambda: True) -> list:
    candidates = [((i,), tvm.s_tir.Schedule(misbuild.doubling(f"k:{i}"))) for i in range(n)]
    room = (lambda: devices - bench.running) if devices else None
    measurer = Measurer(detect_target(), bench, bench, room)  # type: ignore[arg-type]
    return list(measurer(candidates, task="k", in_time=in_time))


def test_the_next_are_built_while_a_device_elsewhere_measures(tmp_path: Path) -> None:
    """The first result comes only when the second call of the builder has begun, and so on."""

    def end(number: int) -> None:
        assert bench.builds[min(number // 2 + 1, 2)].wait(WAIT_S), number

    bench = Bench(tmp_path, end)
    trials = measure(bench, 6)
    assert [t.config for t in trials] == [(i,) for i in range(6)]
    assert [t.seconds for t in trials] == pytest.approx([(i + 1) * 1e-3 for i in range(6)])
    assert not list(tmp_path.iterdir())


def test_nothing_is_built_while_this_machine_measures(tmp_path: Path) -> None:
    def end(_number: int) -> None:
        assert not bench.builds[1].is_set()

    bench = Bench(tmp_path, end)
    assert len(measure(bench, 6, devices=0)) == 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("devices", [0, 1, 2, 5])
def test_each_device_gets_one_at_a_time_and_failures_are_trials(tmp_path: Path, devices: int) -> None:
    bench = Bench(tmp_path, fails=(1, 4))
    trials = measure(bench, 7, devices=devices)
    assert sorted(t.config for t in trials) == [(i,) for i in range(7)]
    assert sorted(t.config for t in trials if t.seconds is None) == [(1,), (4,)]
    assert sorted(bench.started) == [0, 2, 3, 5, 6]
    assert bench.most_running <= max(devices, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("devices", [0, 1, 2])
@pytest.mark.parametrize("allowed", [0, 1, 2, 3, 5])
def test_nothing_starts_when_the_time_is_over(tmp_path: Path, devices: int, allowed: int) -> None:
    bench = Bench(tmp_path)
    trials = measure(bench, 7, devices=devices, in_time=lambda: len(bench.started) < allowed)
    assert len(bench.started) == allowed
    assert sorted(t.config for t in trials) == [(i,) for i in sorted(bench.started)]
    assert not list(tmp_path.iterdir())


def test_devices_that_come_later_are_used(tmp_path: Path) -> None:
    """One device until three candidates have started, then four."""
    bench = Bench(tmp_path)
    candidates = [((i,), tvm.s_tir.Schedule(misbuild.doubling(f"k:{i}"))) for i in range(9)]
    room = lambda: (1 if len(bench.started) < 3 else 4) - bench.running  # noqa: E731
    measurer = Measurer(detect_target(), bench, bench, room)  # type: ignore[arg-type]
    assert len(list(measurer(candidates, task="k", in_time=lambda: True))) == 9
    assert bench.most_running > 1


def test_a_fault_of_the_environment_ends_it_and_leaves_no_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.error = f"{ENVIRONMENT}: no device answers"
    with pytest.raises(EnvironmentFault, match="no device answers"):
        measure(bench, 7, devices=2)
    assert not list(tmp_path.iterdir())
