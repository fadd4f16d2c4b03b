"""Tasks with the same main block: found by structure alone, and a schedule of one is a right schedule of the other."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm_ffi import structural_equal

from tests.support.fused import LLVM, convolution, product
from tuners.anchors import anchor_key
from tuners.meta_schedule import args_info_of
from tuners.trace_space import Refused, TraceSpace

pytestmark = pytest.mark.tvm

Make = Callable[..., IRModule]
LIKE: list[tuple[Make, tuple[str, ...]]] = [
    (convolution, ()),
    (convolution, ("relu",)),
    (convolution, ("bias", "relu")),
    (convolution, ("bias", "sum", "relu")),
    (convolution, ("bias", "swish")),
]
APART = [
    {"size": 16},
    {"channels": 16},
    {"out": 16},
    {"kernel": 5, "padding": 2},
    {"stride": 2},
    {"padding": 0},
    {"padding": 0, "size": 10},  # the same sums, without the block that pads
    {"dtype": "float16"},
    {"layout": "NCHW"},
]
few = settings(max_examples=5, derandomize=True, deadline=None)


@functools.cache
def task(make: Make, steps: tuple[str, ...], **given: object) -> IRModule:
    return make(*steps, **given)


@functools.cache
def space(mod: IRModule) -> TraceSpace:
    return TraceSpace(mod, LLVM)


def key(mod: IRModule) -> str | None:
    return anchor_key(mod, space(mod))


def pair_of(one: int, other: int) -> tuple[IRModule, IRModule]:
    return task(*LIKE[one]), task(*LIKE[other])


def test_what_is_fused_behind_a_convolution_does_not_matter() -> None:
    assert len({key(task(*like)) for like in LIKE}) == 1
    assert key(task(*LIKE[0])) is not None


def test_what_is_fused_behind_a_matrix_product_does_not_matter() -> None:
    assert len({key(task(product, steps)) for steps in ((), ("bias",), ("bias", "relu"), ("sum", "sigmoid"))}) == 1


@pytest.mark.parametrize("other", APART, ids=str)
def test_other_shapes_types_strides_and_layouts_are_apart(other: dict[str, object]) -> None:
    assert key(task(convolution, ("bias", "relu"), **other)) != key(task(*LIKE[2]))
    assert key(task(convolution, ("bias",), **other)) == key(task(convolution, ("bias", "relu"), **other))


def test_a_task_without_a_reduction_is_like_no_other() -> None:
    a = tvm.te.placeholder((64,), name="a")
    mod = IRModule({"main": tvm.te.create_prim_func([a, tvm.te.compute((64,), lambda i: a[i] * 2.0)])})
    assert anchor_key(mod, TraceSpace(mod, LLVM)) is None


def test_tasks_with_equal_keys_are_equal_for_metaschedule_too() -> None:
    """TVM compares the main blocks only; our key compares the spaces as well, so it may tell more tasks apart."""
    mods = [task(*like) for like in LIKE] + [task(convolution, ("relu",), **other) for other in APART]
    database = ms.database.MemoryDatabase(module_equality="anchor-block")
    workloads = [database.commit_workload(mod) for mod in mods]
    for i, one in enumerate(mods):
        for j, other in enumerate(mods):
            if key(one) == key(other):
                assert workloads[i].same_as(workloads[j])


def renamed(mod: IRModule, suffix: str) -> IRModule:
    """The same task with other names of blocks, buffers and variables."""
    text = mod.script()
    for name in ("conv2d_nhwc", "pad_temp", "T_add", "compute", "v_ax0", "i0"):
        text = text.replace(name, f"{name}{suffix}")
    return tvm.script.from_source(text)


@few
@given(order=st.permutations(range(8)), suffix=st.sampled_from(["_a", "_9", "x"]))
def test_groups_depend_neither_on_the_order_nor_on_names(order: list[int], suffix: str) -> None:
    mods = [task(*like) for like in LIKE[1:4]] + [task(convolution, ("relu",), stride=2)]
    mods += [renamed(mod, suffix) for mod in mods]
    groups: dict[str | None, set[int]] = defaultdict(set)
    for i in order:
        groups[key(mods[i])].add(i)
    assert sorted(map(sorted, groups.values())) == [[0, 1, 2, 4, 5, 6], [3, 7]]


@pytest.mark.parametrize(("one", "other"), [(1, 3), (3, 1), (2, 3), (4, 2)])
def test_the_same_digits_give_what_an_anchor_trace_of_tvm_gives(one: int, other: int) -> None:
    mine, yours = pair_of(one, other)
    compared = 0
    for row in space(mine).space.sample(40, np.random.default_rng(0)):
        try:
            leader = space(mine).schedule(space(mine).replay(row)[1])
            digits = space(mine).digits(leader)
            ours = space(yours).schedule(digits)
        except Refused:
            continue
        theirs = Schedule(yours)
        ms.trace_apply.schedule_using_anchor_trace(theirs, leader.trace, LLVM)
        assert structural_equal(ours.mod, theirs.mod)
        compared += 1
    assert compared > 20


@pytest.mark.parametrize(("one", "other"), [(0, 3), (3, 0), (1, 0), (2, 4)])
def test_a_schedule_of_one_computes_what_the_other_computes_untuned(one: int, other: int) -> None:
    """The convolution alone is among them: an anchor trace of TVM does not apply from it or to it."""
    mine, yours = pair_of(one, other)
    untuned = outputs(tvm.compile(yours, LLVM), yours)
    for row in space(mine).space.sample(3, np.random.default_rng(1)):
        digits = space(mine).replay(row)[1]
        schedule = space(yours).schedule(digits)
        assert (space(yours).digits(schedule) == digits).all()
        np.testing.assert_allclose(outputs(tvm.compile(schedule.mod, LLVM), yours), untuned, rtol=1e-4, atol=1e-4)


def outputs(library: tvm.runtime.Executable, mod: IRModule) -> np.ndarray:
    """What a compiled task writes to its last argument."""
    rng = np.random.default_rng(3)
    shapes = [tuple(int(n) for n in info.shape) for info in args_info_of(Schedule(mod))]
    arrays = [tvm.runtime.tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    library["main"](*arrays)
    return arrays[-1].numpy()
