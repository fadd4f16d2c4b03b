"""Winograd's algorithm: its matrices, the kernels made with it, their schedules and their rounding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.jobs.compile import compile_model
from chameleon.kernels.alternatives import ALGORITHMS, WINOGRAD, alternatives_of, with_alternatives
from chameleon.kernels.lower import extract_tasks, kernels_of
from chameleon.kernels.winograd import (
    INPUT,
    OUTPUT,
    TILES,
    WEIGHT,
    find_convolution,
    transformed_weights,
    winograd_form,
)
from chameleon.kernels.winograd_schedules import winograd_space
from tests.support.workloads import conv2d
from tuners.meta_schedule import args_info_of
from tuners.trace_space import TraceSpace

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 2})
ERROR = {2: 2e-6, 4: 5e-5}
"""The largest error that is right, divided by the largest output; the bounds that chameleon.kernels.winograd names."""
op = relax.op


def exact(matrix: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(float(v)).limit_denominator(24) for v in row] for row in matrix]


def times(matrix: list[list[Fraction]], vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("m", TILES)
@given(data=st.data())
def test_in_one_dimension_it_is_the_convolution_exactly(m: int, data: st.DataObject) -> None:
    numbers = st.fractions(-9, 9, max_denominator=9)
    d = data.draw(st.lists(numbers, min_size=m + 2, max_size=m + 2))
    g = data.draw(st.lists(numbers, min_size=3, max_size=3))
    products = [a * b for a, b in zip(times(exact(WEIGHT[m]), g), times(exact(INPUT[m]), d), strict=True)]
    assert times(exact(OUTPUT[m]), products) == [sum(d[i + j] * g[j] for j in range(3)) for i in range(m)]


def kernel(
    shape: tuple[int, int, int, int],
    k: int,
    *,
    behind: str = "relu",
    pad: Any = 1,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    dtype: str = "float32",
    constant: bool = True,
) -> tuple[IRModule, Any, Any]:
    """A network of one convolution in NHWC lowered to kernels, with its weights `[h, w, c, k]` and its bias `[k]`."""
    rng = np.random.default_rng(sum(shape) + k)
    c = shape[3]
    w = rng.standard_normal((size, size, c // groups, k)).astype(dtype)
    b = rng.standard_normal(k).astype(dtype)
    x = relax.Var("x", relax.TensorType(shape, dtype))
    weight = relax.const(w) if constant else relax.Var("w", relax.TensorType(w.shape, dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [x] if constant else [x, weight]):
        with builder.dataflow():
            y = op.nn.conv2d(
                x, weight, padding=pad, strides=stride, groups=groups, data_layout="NHWC", kernel_layout="HWIO"
            )
            y = builder.emit(y)
            biased = op.add(y, relax.const(b.reshape(1, 1, 1, k)))
            out = {
                "nothing": lambda: y,
                "relu": lambda: op.nn.relu(biased),
                "swish": lambda: op.nn.silu(biased),
                "twice": lambda: op.multiply(op.add(y, op.nn.relu(y)), biased),
            }[behind]()
            out = builder.emit_output(builder.normalize(out))
        builder.emit_func_output(out)
    return kernels_of(builder.get(), CPU), w, b


def reference(x: np.ndarray, w: np.ndarray, b: np.ndarray, behind: str, pad: tuple[int, int, int, int]) -> np.ndarray:
    """The same in double precision; `pad` is top, left, bottom, right."""
    top, left, bottom, right = pad
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    y = conv2d(padded.transpose(0, 3, 1, 2), w.astype(np.float64).transpose(3, 2, 0, 1), padding=0)
    y = y.transpose(0, 2, 3, 1)
    biased = y + b
    return {
        "nothing": lambda: y,
        "relu": lambda: np.maximum(biased, 0),
        "swish": lambda: biased / (1 + np.exp(-biased)),
        "twice": lambda: (y + np.maximum(y, 0)) * biased,
    }[behind]()


def conv_task(lowered: IRModule) -> IRModule:
    return next(t.mod for t in extract_tasks(lowered, CPU) if "conv2d" in t.name)


def form_of(mod: IRModule, m: int) -> IRModule | None:
    found = find_convolution(mod["main"])
    assert found is not None
    return winograd_form(mod, found, m)


def error_of(mod: IRModule, m: int, x: np.ndarray, w: np.ndarray, b: np.ndarray, expected: np.ndarray) -> float:
    """The largest error of a built kernel, divided by the largest output."""
    library = tvm.compile(mod, CPU)
    out = tvm.runtime.tensor(np.zeros(expected.shape, np.float32))
    arguments: list[np.ndarray] = [x, transformed_weights(w, m), b.reshape(1, 1, 1, -1)]
    n_inputs = len(mod["main"].params) - 1
    library["main"](*map(tvm.runtime.tensor, arguments[:n_inputs]), out)
    return float(np.abs(out.numpy() - expected).max() / np.abs(expected).max())


CASES = [
    # shape, channels out, what is behind, padding (top, left, bottom, right)
    ((1, 12, 12, 16), 16, "relu", (1, 1, 1, 1)),
    ((1, 14, 9, 8), 24, "swish", (1, 1, 1, 1)),  # tiles that stand over, in both directions
    ((2, 8, 8, 5), 10, "nothing", (1, 1, 1, 1)),  # several images, odd numbers of channels
    ((1, 13, 12, 3), 8, "twice", (0, 0, 0, 0)),  # no padding, an output that is used three times
    ((1, 11, 11, 16), 8, "relu", (0, 1, 2, 1)),  # uneven padding
]


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize(("shape", "k", "behind", "pad"), CASES)
def test_every_sketch_computes_the_convolution(shape: Any, k: int, behind: str, pad: Any, m: int) -> None:
    lowered, w, b = kernel(shape, k, behind=behind, pad=pad)
    form = form_of(conv_task(lowered), m)
    assert form is not None
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = reference(x, w, b, behind, pad)
    traces = TraceSpace(form, CPU, space_generator=winograd_space(m, CPU))
    rows = traces.space.sample(64, np.random.default_rng(0))
    assert len(traces.signatures) >= 2
    for sketch in range(len(traces.signatures)):
        row = next(r for r in rows if r[0] == sketch)
        assert error_of(traces.schedule(row).mod, m, x, w, b, expected) <= ERROR[m]


@pytest.mark.parametrize("m", TILES)
def test_rounding_is_bounded_for_many_channels(m: int) -> None:
    shape = (1, 16, 16, 256)
    lowered, w, b = kernel(shape, 32)
    form = form_of(conv_task(lowered), m)
    assert form is not None
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    assert error_of(form, m, x, w, b, reference(x, w, b, "relu", (1, 1, 1, 1))) <= ERROR[m]


OTHERS: dict[str, dict[str, Any]] = {
    "stride 2": {"stride": 2},
    "5x5": {"size": 5, "pad": 2},
    "1x1": {"size": 1, "pad": 0},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 16},
    "half precision": {"dtype": "float16"},
    "weights that are an input": {"constant": False},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_keep_their_algorithm(name: str) -> None:
    lowered, _, _ = kernel((1, 12, 12, 16), 16, **OTHERS[name])
    mod = conv_task(lowered)
    assert find_convolution(mod["main"]) is None
    assert alternatives_of(mod, CPU, WINOGRAD) == []


def test_too_few_tiles_do_not_pay() -> None:
    lowered, _, _ = kernel((1, 7, 7, 16), 16)
    assert form_of(conv_task(lowered), 2) is not None
    assert form_of(conv_task(lowered), 4) is None  # four tiles


def test_a_database_says_which_algorithm_a_network_gets() -> None:
    lowered, w, b = kernel((1, 12, 12, 16), 16)
    (task,) = (t for t in extract_tasks(lowered, CPU) if "conv2d" in t.name)
    x = np.random.default_rng(3).standard_normal((1, 12, 12, 16)).astype(np.float32)
    expected = reference(x, w, b, "relu", (1, 1, 1, 1))
    others = alternatives_of(task.mod, CPU)
    assert tuple(a.name for a in others) == ALGORITHMS
    traces = TraceSpace(task.mod, CPU, alternatives=[(a.mod, a.space) for a in others])
    rows = traces.space.sample(200, np.random.default_rng(0))
    for form, name in enumerate((None, *ALGORITHMS)):
        row = next(r for r in rows if traces.forms[r[0]] == form)
        schedule, database = traces.schedule(row), ms.database.MemoryDatabase()
        workload = database.commit_workload(traces.workload(row))
        database.commit_tuning_record(
            ms.database.TuningRecord(schedule.trace, workload, [1e-3], CPU, args_info_of(schedule))
        )
        chosen = with_alternatives(lowered, database)
        assert (chosen is lowered) == (name not in WINOGRAD)
        compiled = compile_model(lowered, CPU, database)
        assert compiled.untuned == ()
        assert "weight_layout_rewrite" not in compiled.executable.as_text()
        machine = relax.VirtualMachine(compiled.executable, tvm.cpu())
        got = machine["main"](tvm.runtime.tensor(x)).numpy()
        assert np.abs(got - expected).max() <= 5e-5 * np.abs(expected).max()


def test_names_restrict_the_alternatives() -> None:
    lowered, _, _ = kernel((1, 12, 12, 16), 16)
    mod = conv_task(lowered)
    assert [a.name for a in alternatives_of(mod, CPU, ["winograd2"])] == ["winograd2"]
    assert alternatives_of(mod, CPU, []) == []
    assert alternatives_of(mod, Target({"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 1024})) == []
