"""Where the time of a network goes: the parts add up, and every kernel is found in the network by its task."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.jobs.compile import compile_model
from chameleon.jobs.config import TuneConfig
from chameleon.jobs.in_network import Alone, Profile, ProfileConfig, breakdown, profile_network, spent, summary
from chameleon.jobs.records import Records
from chameleon.jobs.session import database_of, open_session
from chameleon.kernels.lower import extract_tasks, kernel_tasks, lower, moving_kernels
from chameleon.models.load import load_model
from chameleon.search import Status, Trial
from tests.support.networks import write_residual

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 2})
SECONDS = st.floats(1e-7, 1.0)


def test_calls_inside_a_call_count_once_and_the_instrument_is_taken_off():
    events = [
        ("main", True, 0),
        ("vm.builtin.null_value", True, 10),
        ("vm.builtin.null_value", False, 12),  # the shortest: 2 ns of the instrument's own
        ("conv", True, 20),
        ("conv", False, 70),
        ("conv", True, 80),
        ("conv", False, 110),
        ("main", False, 200),
    ]
    found = spent(events)
    assert found["conv"] == (pytest.approx((48 + 28) * 1e-9), 2)
    assert found["vm.builtin.null_value"] == (0, 1)
    assert found["main"] == (pytest.approx((200 - 2 - 50 - 30 - 2) * 1e-9), 1)


def test_medians_over_runs_and_kernels_apart_from_allocation():
    runs = [{"conv": (s, 2), "vm.builtin.alloc_tensor": (s / 10, 3)} for s in (1.0, 5.0, 2.0)]
    profile = summary([4.0, 9.0, 3.0], [*runs, {"conv": (2.0, 2), "vm.builtin.copy": (1.0, 1)}])
    assert profile == Profile(4.0, {"conv": 2.0}, {"conv": 2}, pytest.approx(0.15))


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(SECONDS, st.integers(1, 9)), min_size=1),
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(SECONDS, st.none() | SECONDS)),
    SECONDS,
    SECONDS,
)
def test_the_parts_add_up(kernels, alone, network_s, allocation_s):
    profile = Profile(
        network_s, {n: s for n, (s, _) in kernels.items()}, {n: c for n, (_, c) in kernels.items()}, allocation_s
    )
    found = breakdown(profile, {n: Alone(n, hot, cold) for n, (hot, cold) in alone.items()}, moves="ab")
    kernels_ms = found.alone_ms + found.cold_ms + found.slower_ms + found.untimed_ms
    assert kernels_ms == pytest.approx(found.kernels_ms, abs=1e-9)
    assert kernels_ms + found.allocation_ms + found.calls_ms == pytest.approx(found.network_ms, abs=1e-9)
    by_kernel = {k.name: k.calls * k.network_us / 1e3 for k in found.kernels}
    assert sum(by_kernel.values()) == pytest.approx(found.kernels_ms)
    assert found.layout_ms == pytest.approx(sum(by_kernel.get(n, 0) for n in "ab"))
    assert list(by_kernel.values()) == pytest.approx(sorted(by_kernel.values(), reverse=True))  # most first
    assert {k.name for k in found.kernels if k.alone_us is None} == kernels.keys() - alone.keys()


def test_every_kernel_of_a_network_is_found_in_it(tmp_path: Path):
    """With schedules, whose weights are put into another order, so that TVM gives the kernels other names."""
    model = load_model(str(write_residual(tmp_path / "residual.onnx")))
    lowered = lower(model, CPU)
    tasks = extract_tasks(lowered, CPU)
    with Records(tmp_path / "trials.jsonl", str(CPU)) as records:
        session = open_session(tasks, CPU, records, TuneConfig(searcher="random"), "residual")
        for tuner in session.tasks:
            tuner.tell([Trial(config, Status.OK, 1e-3) for config, _ in tuner.propose(1)])
    compiled = compile_model(lowered, CPU, database_of(session.tasks, CPU))
    profile = profile_network(model, CPU, compiled.executable, ProfileConfig(rounds=2, runs=2))
    keys = kernel_tasks(lowered)
    assert set(keys.values()) == {t.key for t in tasks}
    assert profile.kernels_s.keys() == keys.keys()
    calls = {t.key: sum(profile.calls[name] for name, key in keys.items() if key == t.key) for t in tasks}
    assert calls == {t.key: t.weight for t in tasks}
    assert all(0 < s < math.inf for s in [profile.network_s, profile.allocation_s, *profile.kernels_s.values()])
    found = breakdown(profile, {name: Alone(name, 1e-3) for name in keys}, moving_kernels(lowered))
    assert found.alone_ms == pytest.approx(sum(t.weight for t in tasks))
    assert found.untimed_ms == 0


def test_what_only_moves_data_is_told_by_its_structure(tmp_path: Path):
    """The input and the output change between NCHW and NHWC."""
    lowered = lower(load_model(str(write_residual(tmp_path / "residual.onnx"))), CPU)
    found = moving_kernels(lowered)
    assert len(found) == 2
    compiled = compile_model(lowered, CPU, ms.database.MemoryDatabase())
    assert set(found) <= set(compiled.untuned)
    flop = {t.name: t.flop for t in extract_tasks(lowered, CPU)}
    assert {flop[name] for name in found} == {0}
    assert np.prod([flop[name] for name in flop.keys() - set(found)]) > 0
