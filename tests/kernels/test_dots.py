"""Products of 8-bit integers: the processor's instructions compute exactly what the integers say."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.dots import DOTS, Dot, dots_of, packed_weights, with_dots
from chameleon.kernels.lower import build, extract_tasks, kernels_of
from chameleon.kernels.registers import dot_space
from chameleon.target import runs_here
from tests.support.running import assert_same
from tuners.task_space import task_space

pytestmark = pytest.mark.tvm

PROCESSORS = {"avx2": "haswell", "avx512bw": "skylake-avx512", "avx512vnni": "icelake-server", "avxvnni": "alderlake"}
"""A processor for each kind of instruction, by the feature that it has and the ones before have not."""


def target_of(processor: str) -> Target:
    return Target({"kind": "llvm", "num-cores": 2, "mcpu": processor})


ALL = [target_of(p) for p in PROCESSORS.values()]
HERE = [t for t in ALL if runs_here(t)]
on_all_of_this_machine = pytest.mark.parametrize("target", HERE, ids=[str(t.attrs["mcpu"]) for t in HERE])


@dataclass(frozen=True)
class Case:
    """A convolution, or a matrix product if it has no kernel, of random integers."""

    data: tuple[int, ...]
    out: int
    kernel: tuple[int, int] | None = None
    stride: int = 1
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: int = 1
    zero: int = 0

    def weights(self) -> NDArray[np.int8]:
        shape = (*(self.kernel or ()), self.data[-1], self.out)
        return np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)

    def numbers(self) -> NDArray[np.uint8]:
        return np.random.default_rng(2).integers(0, 256, self.data).astype(np.uint8)

    def module(self) -> IRModule:
        """The centred data times the weights, as `chameleon.models.integers` writes it, channels last."""
        builder, op = relax.BlockBuilder(), relax.op
        x = relax.Var("x", relax.TensorType(self.data, "uint8"))
        with builder.function("main", [x]):
            q = builder.emit(op.astype(x, "int16"))
            q = builder.emit(op.subtract(q, relax.const(self.zero, "int16"))) if self.zero else q
            w = relax.const(self.weights())
            if self.kernel is None:
                y = builder.emit(op.matmul(q, w, out_dtype="int32"))
            else:
                sizes = (self.stride, list(self.pad), self.dilation)
                y = builder.emit(op.nn.conv2d(q, w, *sizes, 1, "NHWC", "HWIO", "NHWC", "int32"))
            builder.emit_func_output(builder.emit(op.multiply(y, relax.const(3, "int32"))))
        return relax.transform.ConvertToDataflow()(builder.get())

    def expected(self) -> NDArray[np.int32]:
        """In 64 bits, one product after the other."""
        q, w = self.numbers().astype(np.int64) - self.zero, self.weights().astype(np.int64)
        if self.kernel is None:
            return (3 * (q @ w)).astype(np.int32)
        top, left, bottom, right = self.pad
        q = np.pad(q, ((0, 0), (top, bottom), (left, right), (0, 0)))
        height, width = (
            (size - (k - 1) * self.dilation - 1) // self.stride + 1
            for size, k in zip(q.shape[1:3], self.kernel, strict=True)
        )
        total = np.zeros((q.shape[0], height, width, self.out), np.int64)
        for i, j in itertools.product(*map(range, self.kernel)):
            rows = slice(i * self.dilation, i * self.dilation + (height - 1) * self.stride + 1, self.stride)
            columns = slice(j * self.dilation, j * self.dilation + (width - 1) * self.stride + 1, self.stride)
            total += q[:, rows, columns] @ w[i, j]
        return (3 * total).astype(np.int32)


CASES = {
    "3x3": Case((1, 6, 6, 16), 32, (3, 3), pad=(1, 1, 1, 1)),
    "3x3 with a zero point": Case((1, 6, 6, 16), 16, (3, 3), pad=(1, 1, 1, 1), zero=131),
    "first layer": Case((1, 16, 16, 3), 16, (7, 7), stride=2, pad=(3, 3, 3, 3), zero=114),
    "1x1": Case((2, 4, 4, 24), 48, (1, 1), zero=7),
    "half a vector": Case((1, 4, 4, 8), 24, (1, 1)),
    "uneven pads and channels": Case((1, 7, 5, 6), 16, (3, 2), stride=2, pad=(0, 1, 2, 0), zero=255),
    "dilated": Case((1, 9, 9, 8), 16, (3, 3), pad=(2, 2, 2, 2), dilation=2, zero=128),
    "product": Case((12, 20), 48, zero=128),
    "one row": Case((1, 64), 40),
    "batches": Case((2, 3, 18), 16, zero=3),
}


def run(mod: IRModule, target: Target, x: NDArray[np.uint8]) -> NDArray[np.int32]:
    machine = relax.VirtualMachine(build(mod, target), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


@on_all_of_this_machine
@pytest.mark.parametrize("name", CASES)
def test_the_default_schedule_is_exact(name: str, target: Target) -> None:
    case = CASES[name]
    lowered = kernels_of(with_dots(case.module(), target), target)
    assert [str(p.dtype) for t in extract_tasks(lowered, target) for p in t.mod["main"].params] == [
        "uint8",
        dots_of(target)[0].weight,
        *(["int32"] if dots_of(target)[0].group == 4 and case.zero else []),  # what the zero point adds up to
        "int32",
    ]
    np.testing.assert_array_equal(run(schedule_defaults(lowered, target), target, case.numbers()), case.expected())


@on_all_of_this_machine
@pytest.mark.parametrize("name", ["3x3 with a zero point", "first layer", "1x1", "half a vector", "product"])
def test_any_schedule_is_exact(name: str, target: Target) -> None:
    case = CASES[name]
    lowered = kernels_of(with_dots(case.module(), target), target)
    (task,) = extract_tasks(lowered, target)
    traces, algorithms = task_space(task.mod, target)
    assert algorithms == {"dots": list(range(len(traces.forms)))}
    rng = np.random.default_rng(0)
    arrays = [case.numbers(), *(c.value.numpy() for c in constants_of(lowered)), np.zeros_like(case.expected())]
    for config in traces.space.sample(5, rng):
        schedule = traces.schedule(config)
        assert "call_llvm_pure_intrin" in schedule.mod.script()
        tensors = [tvm.runtime.tensor(a) for a in arrays]
        tvm.compile(schedule.mod, target)["main"](*tensors)
        np.testing.assert_array_equal(tensors[-1].numpy(), case.expected())


def constants_of(lowered: IRModule) -> list[relax.Constant]:
    """The constants of `main`, in the order in which its only kernel takes them."""
    found = []

    def visit(node: object) -> None:
        if isinstance(node, relax.Tuple):
            found.extend(f for f in node.fields if hasattr(f, "value"))

    relax.analysis.post_order_visit(lowered["main"], visit)
    return found


@pytest.mark.parametrize("target", ALL, ids=[str(t.attrs["mcpu"]) for t in ALL])
def test_the_compiler_is_told_the_instruction(target: Target) -> None:
    """It compiles for every kind of processor, whatever this machine has."""
    lowered = kernels_of(with_dots(CASES["3x3"].module(), target), target)
    executable = build(schedule_defaults(lowered, target), target)
    assembly = "".join(m.inspect_source("asm") for m in executable.mod.imports if m.kind == "llvm")
    assert ("vpdpbusd" if dots_of(target)[0].group == 4 else "vpmaddwd") in assembly


def test_the_widest_instruction_that_the_channels_fill_is_taken() -> None:
    vnni = target_of("icelake-server")
    assert [(d.lanes, d.group) for d in dots_of(vnni)] == [(16, 4), (8, 4)]
    assert [(d.lanes, d.group) for d in dots_of(target_of("haswell"))] == [(8, 2)]
    assert dots_of(target_of("x86-64")) == ()
    assert dots_of(Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"})) == ()


@pytest.mark.parametrize(
    ("case", "processor", "because"),
    [
        (Case((1, 4, 4, 8), 12, (1, 1), zero=9), "x86-64-v3", "1 whose channels do not fill a vector"),
        (CASES["3x3 with a zero point"], "x86-64", "1 for which the target has no dot product that is known here"),
        (CASES["product"], "x86-64", "1 for which the target has no dot product that is known here"),
    ],
)
def test_what_no_instruction_fits_is_computed_as_floats_and_said(
    case: Case, processor: str, because: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = target_of(processor)
    with caplog.at_level(logging.WARNING):
        mod = with_dots(case.module(), target)
    assert f"1 of 1 products of 8-bit integers are computed as floats: {because}" in caplog.text
    lowered = kernels_of(mod, target)
    assert all(dot_space(t.mod, target) is None for t in extract_tasks(lowered, target))
    np.testing.assert_array_equal(run(schedule_defaults(lowered, target), target, case.numbers()), case.expected())


def test_a_convolution_with_its_channels_first_is_computed_as_floats(caplog: pytest.LogCaptureFixture) -> None:
    builder, op = relax.BlockBuilder(), relax.op
    x = relax.Var("x", relax.TensorType((1, 4, 5, 5), "uint8"))
    w = np.random.default_rng(1).integers(-128, 128, (16, 4, 3, 3)).astype(np.int8)
    with builder.function("main", [x]):
        q = builder.emit(op.astype(x, "int16"))
        builder.emit_func_output(builder.emit(op.nn.conv2d(q, relax.const(w), out_dtype="int32")))
    with caplog.at_level(logging.WARNING):
        mod = with_dots(relax.transform.ConvertToDataflow()(builder.get()), target_of("x86-64-v3"))
    assert "computed as floats: 1 whose layout is not NHWC" in caplog.text
    q = np.random.default_rng(2).integers(0, 256, (1, 4, 5, 5)).astype(np.uint8)
    lowered = kernels_of(mod, HERE[0])
    found = run(schedule_defaults(lowered, HERE[0]), HERE[0], q)
    windows = np.lib.stride_tricks.sliding_window_view(q[0].astype(np.int64), (3, 3), axis=(1, 2))
    assert_same([found], [np.einsum("cyxij,kcij->kyx", windows, w.astype(np.int64))[None].astype(np.int32)])


def test_a_network_without_integers_is_left_as_it_is() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.matmul(x, relax.const(np.ones((4, 16), np.float32)))))
    mod = builder.get()
    assert with_dots(mod, ALL[0]).same_as(mod)


@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([dot for _, dots in DOTS for dot in dots]),
)
def test_packed_weights_hold_each_weight_where_the_instruction_reads_it(
    outer: list[int], c: int, blocks: int, dot: Dot
) -> None:
    shape = (*outer, c, blocks * dot.lanes)
    weights = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    packed = packed_weights(weights, dot)
    assert packed.dtype == dot.weight
    assert packed.shape == (blocks, *outer, -(-c // dot.group), dot.lanes, dot.group)
    for *at, channel, k in np.ndindex(*shape):
        place = (k // dot.lanes, *at, channel // dot.group, k % dot.lanes, channel % dot.group)
        assert packed[place] == weights[(*at, channel, k)]
    assert np.abs(packed.astype(np.int64)).sum() == np.abs(weights.astype(np.int64)).sum()  # the rest is zero
