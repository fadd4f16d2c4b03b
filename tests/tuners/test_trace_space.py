"""Decisions of MetaSchedule's traces as digits and back, over operators and targets, and the schedules they give."""

from __future__ import annotations

import functools
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import Trace
from tvm.target import Target

from chameleon.kernels.intrinsics import import_intrinsics
from tests.support.workloads import WORKLOADS, task_of
from tuners.meta_schedule import args_info_of
from tuners.trace_space import Refused, TraceSpace

pytestmark = pytest.mark.tvm

LLVM = Target({"kind": "llvm", "num-cores": 2})
CUDA = Target("nvidia/nvidia-a100")
TARGETS = {"llvm": LLVM, "cuda": CUDA}
few = settings(max_examples=4, derandomize=True, deadline=None)


@functools.cache
def space_of(name: str, kind: str = "llvm", seed: int = 0) -> TraceSpace:
    return TraceSpace(task_of(name, TARGETS[kind]), TARGETS[kind], seed=seed)


def sampled(traces: TraceSpace, seed: int) -> np.ndarray:
    return traces.space.sample(1, np.random.default_rng(seed))[0]


def finished(traces: TraceSpace, seed: int, tries: int = 600) -> tuple[np.ndarray, Schedule]:
    """The first of a stream of random configurations that is not refused."""
    for row in traces.space.sample(tries, np.random.default_rng(seed)):
        try:
            return row, traces.schedule(row)
        except Refused:
            continue
    raise AssertionError(f"all of {tries} random configurations were refused")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", WORKLOADS)
@few
@given(seed=st.integers(0, 1 << 30))
def test_digits_survive_the_round_trip(name: str, kind: str, seed: int) -> None:
    traces = space_of(name, kind)
    row = sampled(traces, seed)
    schedule, digits = traces.replay(row)
    assert (traces.space.canonical(digits[None]) == digits).all()
    assert ((digits >= 0) & (digits < traces.space.cardinalities)).all()
    moved = [k.name for k, a, b in zip(traces.space.knobs, row, digits, strict=True) if a != b]
    assert all("location" in knob for knob in moved), f"only compute locations may be moved, got {moved}"
    again, canonical = traces.replay(digits)
    assert (canonical == digits).all()
    tvm.ir.assert_structural_equal(again.mod, schedule.mod)
    assert (traces.digits(schedule) == digits).all()
    try:
        traces.post_process(schedule, digits)
    except Refused:
        return
    assert (traces.digits(schedule) == digits).all()
    stored = Schedule(traces.modules[0])
    assert schedule.trace is not None
    Trace.apply_json_to_schedule(schedule.trace.as_json(), stored)
    assert (traces.digits(stored) == digits).all()


@pytest.mark.parametrize(
    ("name", "kind"), [("conv2d_nchw", "llvm"), ("softmax", "llvm"), ("softmax", "cuda"), ("max_pool", "cuda")]
)
@few
@given(seed=st.integers(0, 1 << 30))
def test_the_same_digits_give_the_same_schedule(name: str, kind: str, seed: int) -> None:
    row, first = finished(space_of(name, kind), seed)
    other = space_of(name, kind, seed=1 + seed % 2)
    tvm.ir.assert_structural_equal(other.schedule(row).mod, first.mod)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", ["conv2d_nchw", "softmax", "residual"])
def test_the_space_does_not_depend_on_the_generators_seed(name: str, kind: str) -> None:
    assert space_of(name, kind).space.fingerprint() == space_of(name, kind, seed=2).space.fingerprint()


def test_a_dense_space_counts_like_its_factorisations() -> None:
    def tilings(extent: int, parts: int) -> int:
        if parts == 1:
            return int(extent <= 64)
        return sum(tilings(extent // d, parts - 1) for d in range(1, extent + 1) if extent % d == 0)

    space = space_of("dense").space
    assert space.size == 3 * tilings(32, 4) * tilings(48, 4) * tilings(64, 2) * 4  # 3 sketches, 4 unroll depths
    assert {k.kind for k in space.knobs} == {"split", "option"}


@pytest.mark.parametrize("name", ["conv2d_nchw", "conv2d_nhwc", "dense"])
def test_sketches_of_one_structure_share_every_knob(name: str) -> None:
    space = space_of(name).space
    assert space.names[0] == "sketch"
    assert len(space.active) > 1
    assert space.active.all()


def test_knobs_of_different_blocks_are_kept_apart() -> None:
    space = space_of("softmax").space
    assert len(set(space.names)) == space.n_knobs > 5
    assert not space.active.all()


@pytest.mark.parametrize("name", WORKLOADS)
def test_random_schedules_compute_what_numpy_computes(name: str) -> None:
    traces, inputs = space_of(name), WORKLOADS[name].inputs()
    expected = WORKLOADS[name].reference(*inputs)
    for seed in range(2):
        _, schedule = finished(traces, seed)
        result = tvm.runtime.tensor(np.full(expected.shape, np.nan, dtype=np.float32))
        tvm.compile(schedule.mod, LLVM)["main"](*map(tvm.runtime.tensor, inputs), result)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_locations_that_do_not_fit_are_read_back_as_what_tvm_made_of_them() -> None:
    traces = space_of("conv2d_nchw")
    column = next(i for i, k in enumerate(traces.space.knobs) if k.kind == "location")
    row = sampled(traces, 3)
    taken = {}
    for digit, asked in enumerate(traces.space.knobs[column].values):
        row[column] = digit
        _, digits = traces.replay(row)
        taken[asked] = traces.space.knobs[column].values[digits[column]]
    assert taken[-1] == -1
    assert all(got <= asked or got == -1 for asked, got in taken.items())
    assert len(set(taken.values())) > 1
    assert set(taken.values()) == {asked for asked, got in taken.items() if asked == got}


def test_gpu_limits_refuse_and_the_reason_is_named() -> None:
    traces, reasons = space_of("conv2d_nchw", "cuda"), []
    rows = traces.space.sample(150, np.random.default_rng(0))
    allowed = traces.space.is_valid(rows)
    for row in rows:
        try:
            traces.schedule(row)
            reasons.append("")
        except Refused as refusal:
            reasons.append(str(refusal))
    accepted = np.array([not reason for reason in reasons])
    assert "VerifyGPUCode" in reasons
    assert accepted.any()
    assert not (accepted & ~allowed).any(), "the free predicate leaves out schedules that TVM accepts"
    assert accepted[allowed].mean() > 3 * accepted.mean(), "the free predicate spares few refusals"


@pytest.mark.parametrize("name", ["conv2d_nchw", "softmax"])
def test_a_gpu_schedule_builds_to_a_kernel(name: str) -> None:
    traces = space_of(name, "cuda")
    _, schedule = finished(traces, 0)
    lowered = tvm.tirx.transform.BindTarget(CUDA.with_host(LLVM))(schedule.mod)
    assert "blockIdx.x" in str(lowered)
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: lowered only")
    device = tvm.compile(schedule.mod, CUDA).mod.imports[0]
    assert "__global__" in device.inspect_source()


def test_a_space_without_choices_has_one_configuration() -> None:
    def fixed(sch: Schedule) -> None:
        sch.parallel(sch.get_loops(sch.get_sblock("C"))[0])

    a, b = te.placeholder((16, 16), name="A"), te.placeholder((16, 16), name="B")
    mod = tvm.IRModule(
        {"main": te.create_prim_func([a, b, te.compute((16, 16), lambda i, j: a[i, j] + b[i, j], name="C")])}
    )
    traces = TraceSpace(mod, LLVM, space_generator=fixed)
    assert traces.space.size == 1
    schedule, digits = traces.replay([0])
    assert digits.tolist() == [0]
    assert "T.parallel" in str(schedule.mod)
    assert traces.digits(schedule) is not None


def test_unknown_extents_are_refused_with_advice() -> None:
    n = te.var("n", "int64")
    a, b = te.placeholder((n, 64), name="A"), te.placeholder((64, 64), name="B")
    k = te.reduce_axis((0, 64), name="k")
    c = te.compute((n, 64), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    with pytest.raises(ValueError, match="static shapes"):
        TraceSpace(tvm.IRModule({"main": te.create_prim_func([a, b, c])}), LLVM)


def test_what_is_not_of_the_space_is_told_apart() -> None:
    traces = space_of("dense")
    with pytest.raises(ValueError, match="outside"):
        traces.replay(traces.space.cardinalities)
    with pytest.raises(ValueError, match="outside"):
        traces.replay([0])
    schedule, _ = space_of("batch_matmul").replay(sampled(space_of("batch_matmul"), 0))
    assert traces.digits(schedule) is None


@pytest.mark.parametrize("name", ["conv2d_nchw", "residual", "softmax"])
def test_the_short_way_to_a_context_gives_metaschedules_own_space(name: str) -> None:
    """CPUs with int8 dot products have schedule rules of their own, which must not matter to float operators."""
    target = Target({"kind": "llvm", "mcpu": "cascadelake", "num-cores": 2})
    mod = task_of(name, target)
    context = ms.TuneContext(mod=mod, target=target, space_generator="post-order-apply", rand_state=1, num_threads=1)
    stock = TraceSpace.from_design_spaces(mod, context.generate_design_space(), context.space_generator.postprocs)
    ours = TraceSpace(mod, target)
    assert ours.space.fingerprint() == stock.space.fingerprint()
    row, schedule = finished(ours, 0)
    tvm.ir.assert_structural_equal(stock.schedule(row).mod, schedule.mod)


def test_a_record_in_a_database_reads_back(tmp_path) -> None:
    traces = space_of("conv2d_nchw")
    row, schedule = finished(traces, 5)
    database = ms.database.JSONDatabase(str(tmp_path / "w.json"), str(tmp_path / "r.json"))
    workload = database.commit_workload(traces.modules[0])
    database.commit_tuning_record(
        ms.database.TuningRecord(schedule.trace, workload, [1e-3], LLVM, args_info_of(schedule))
    )
    loaded = ms.database.JSONDatabase(str(tmp_path / "w.json"), str(tmp_path / "r.json")).get_all_tuning_records()
    assert (traces.digits(loaded[0].trace) == traces.replay(row)[1]).all()
    assert math.isclose(float(loaded[0].run_secs[0]), 1e-3)


@pytest.mark.parametrize("name", ["conv2d_nchw", "softmax"])
def test_the_order_of_the_design_spaces_does_not_matter(name: str) -> None:
    """It changes with what was imported before, and a run must be resumable in any process."""
    import_intrinsics()
    mod = task_of(name, LLVM)
    context = ms.TuneContext(mod=mod, target=LLVM, space_generator="post-order-apply", rand_state=1, num_threads=1)
    designs, postprocs = list(context.generate_design_space()), context.space_generator.postprocs
    assert len(designs) > 1
    one, other = (TraceSpace.from_design_spaces(mod, order, postprocs) for order in (designs, designs[::-1]))
    assert one.space.fingerprint() == other.space.fingerprint()
    row, schedule = finished(one, 3)
    tvm.ir.assert_structural_equal(other.schedule(row).mod, schedule.mod)


INTRINSICS = """
import sys
from tvm.target import Target
from tests.support.workloads import task_of
from tuners.trace_space import TraceSpace

target = Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-v2", "num-cores": 4})
traces = TraceSpace(task_of("conv2d_nhwc", target), target)
assert len(traces.space.knobs) > 4
assert "tvm.s_tir.tensor_intrin.arm_cpu" in sys.modules
assert "tvm.s_tir.tensor_intrin.cuda" not in sys.modules  # takes longer than everything else
assert "tvm.s_tir.tensor_intrin" not in sys.modules  # so that the whole package can still be imported
"""


def test_a_target_of_another_architecture_needs_only_its_own_intrinsics() -> None:
    subprocess.run([sys.executable, "-c", INTRINSICS], check=True, cwd=Path(__file__).parents[2])
