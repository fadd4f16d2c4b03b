"""Kernels built and run by AutoTVM's own builders and runners, devices that die included."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import tvm
from tvm import autotvm, relay, rpc
from tvm.contrib import graph_executor
from tvm.rpc.tracker import Tracker

from chameleon.search import Status
from scripts.common.ports import free_port
from tests.autotvm.templates import LLVM, conv_task, create, kind_task
from tuners.autotvm import AnnealingTuner, ChameleonTuner

pytestmark = pytest.mark.autotvm

KEY = "some-device"


@pytest.fixture(scope="module")
def builder() -> autotvm.LocalBuilder:
    return autotvm.LocalBuilder(timeout=20)


def local(builder, timeout=10) -> dict:
    runner = autotvm.LocalRunner(number=1, repeat=1, min_repeat_ms=1, cooldown_interval=0, timeout=timeout)
    return autotvm.measure_option(builder=builder, runner=runner)


def test_the_log_of_a_tuned_operator_builds_the_best_one(builder, tmp_path):
    n, task, log = 32, create("chameleon/matmul", 32, 32), tmp_path / "tune.log"
    tuner = ChameleonTuner(task)
    tuner.tune(6, local(builder), callbacks=[autotvm.callback.log_to_file(str(log))])
    assert [t.status for t in tuner.trials] == [Status.OK] * 6
    with autotvm.apply_history_best(str(log)), tvm.target.Target(LLVM):
        schedule, args = task.func(n, n)
        kernel = tvm.build(schedule, args)
    a, b = np.random.default_rng(0).random((2, n, n)).astype("float32")
    c = tvm.nd.array(np.zeros((n, n), dtype="float32"))
    kernel(tvm.nd.array(a), tvm.nd.array(b), c)
    np.testing.assert_allclose(c.numpy(), a @ b, rtol=1e-4)


def test_the_log_of_a_tuned_network_builds_it(builder, tmp_path):
    data, weights = relay.var("data", shape=(1, 16, 14, 14)), relay.var("weights", shape=(16, 16, 3, 3))
    convolution = relay.nn.relu(relay.nn.conv2d(data, weights, padding=(1, 1), kernel_size=(3, 3), channels=16))
    mod = tvm.IRModule.from_expr(relay.Function([data, weights], convolution))
    target, log = tvm.target.Target(LLVM), tmp_path / "tune.log"
    params = {"weights": np.random.default_rng(0).random((16, 16, 3, 3)).astype("float32")}
    (task,) = autotvm.task.extract_from_program(mod["main"], target=target, params=params)
    tuner = AnnealingTuner(task, adaptive=True)
    tuner.tune(4, local(builder), callbacks=[autotvm.callback.log_to_file(str(log))])
    assert all(t.status is Status.OK for t in tuner.trials)

    def run():
        with tvm.transform.PassContext(opt_level=3):
            library = relay.build(mod, target=target, params=params)
        module = graph_executor.GraphModule(library["default"](tvm.cpu()))
        module.set_input("data", np.ones((1, 16, 14, 14), dtype="float32"))
        module.run()
        return module.get_output(0).numpy()

    untuned = run()
    with autotvm.apply_history_best(str(log)) as best:
        assert best.query(target, task.workload).index == tuner.best_config.index
        np.testing.assert_allclose(run(), untuned, rtol=1e-4)


def test_a_filtered_space_reaches_the_build_workers(builder):
    tuner = ChameleonTuner(kind_task("huge"))
    tuner.tune(2, local(builder))
    assert [t.status for t in tuner.trials] == [Status.OK] * 2


def broken(tuner) -> list[bool]:
    """Which trials have a tile that the `fault` of the template breaks."""
    return [tuner._knobs.config(t.config)["x"].size[-1] >= 8 for t in tuner.trials]


@pytest.mark.parametrize(
    ("fault", "statuses"), [("build", {Status.BUILD_ERROR}), ("hang", {Status.TIMEOUT, Status.RUN_ERROR})]
)
def test_a_configuration_that_fails_costs_itself(fault, statuses, builder, caplog):
    """The server ends a session that takes too long, which may reach the runner as a lost connection first."""
    tuner = ChameleonTuner(create("chameleon/matmul", 16, 16, fault), seed=2)
    tuner.tune(8, local(builder, timeout=2))
    assert any(broken(tuner))
    assert {t.status for t, b in zip(tuner.trials, broken(tuner), strict=True) if b} <= statuses
    assert all(t.status is Status.OK for t, b in zip(tuner.trials, broken(tuner), strict=True) if not b)
    assert sum(tuner.failures.values()) == sum(broken(tuner))
    assert set(tuner.failures) <= {"compile_host", "run_timeout", "runtime_device", "device lost"}
    assert "8 trials, best" in caplog.text


def test_a_kernel_that_crashes_takes_the_local_server_along_and_another_is_started():
    """On TVM 0.19 its thread ends with the session's process, and whatever is run after that times out."""
    tuner = ChameleonTuner(create("chameleon/matmul", 64, 64, "crash"))
    knobs, numbers = tuner._knobs, range(49)
    fine = [i for i in numbers if knobs.config(knobs.digits(i))["x"].size[-1] < 8]
    crashing = next(i for i in numbers if i not in fine)
    tuner._first.extend(knobs.digits(i) for i in (*fine[:9], crashing, *fine[9:18]))
    tuner.tune(21, local(autotvm.LocalBuilder(n_parallel=1), timeout=2))
    assert tuner.failures == {"runtime_device": 1, "device lost": 2}
    ran = {knobs.index(t.config) for t in tuner.trials if t.status is Status.OK}
    assert ran == set(fine[:18])


def test_what_the_template_refuses_is_not_built(builder):
    task = create("chameleon/matmul", 16, 16, "instantiate")
    tuner = ChameleonTuner(task)
    tuner.tune(5, local(builder))
    assert [t.status for t in tuner.trials] == [Status.OK] * 5
    assert set(tuner.failures) <= {"invalid: tile of x too large"}


class Devices:
    """A tracker, and servers that come and go."""

    def __init__(self) -> None:
        port = free_port()
        self.tracker = Tracker(host="127.0.0.1", port=port, port_end=port + 50, silent=True)
        self.servers: list[rpc.Server] = []

    def start(self) -> None:
        port, address = free_port(), ("127.0.0.1", self.tracker.port)
        self.servers.append(rpc.Server("127.0.0.1", port, port + 50, tracker_addr=address, key=KEY, silent=True))

    def kill(self) -> None:
        """One loses its power."""
        server = self.servers.pop()
        process = psutil.Process(server.proc._proc.pid)
        for victim in [*process.children(recursive=True), process]:
            victim.kill()

    def option(self, builder, **options) -> dict:
        runner = autotvm.RPCRunner(
            KEY, "127.0.0.1", self.tracker.port, number=1, repeat=1, min_repeat_ms=1, cooldown_interval=0, **options
        )
        return autotvm.measure_option(builder=builder, runner=runner)


@pytest.fixture
def devices() -> Iterator[Devices]:
    devices = Devices()
    devices.start()
    yield devices
    for server in devices.servers:
        server.terminate()
    devices.tracker.terminate()


@pytest.mark.parametrize("n_parallel", [1, 3])
def test_devices_at_a_tracker(devices, n_parallel, builder):
    devices.start()
    tuner = ChameleonTuner(conv_task())
    tuner.tune(6, devices.option(builder, n_parallel=n_parallel))
    assert [t.status for t in tuner.trials] == [Status.OK] * 6


def test_a_device_that_dies_and_comes_back_costs_one_configuration(devices):
    """What it was to measure meanwhile is measured again; the first may be why it died."""

    def power(tuner, inputs, results):
        if len(tuner.trials) == 8:
            devices.kill()
        if len(tuner.trials) == 12:
            threading.Timer(1.0, devices.start).start()

    tuner = ChameleonTuner(create("chameleon/matmul", 64, 64))
    single = autotvm.LocalBuilder(n_parallel=1)
    tuner.tune(26, devices.option(single, n_parallel=1, timeout=2), callbacks=[power])
    failed = [t for t in tuner.trials if t.status is not Status.OK]
    assert len(failed) >= 4
    assert tuner.failures["device lost"] == len(failed) - 1
    measured = {t.config for t in tuner.trials if t.status is Status.OK}
    assert all(t.config in measured for t in failed[1:])
