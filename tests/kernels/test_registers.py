"""The space whose tiles follow from the registers: which tiles it has, which kernels, and that these stay right."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

import tvm
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target
from tvm.tirx import AllocBuffer, PrimFunc
from tvm_ffi import structural_equal, structural_walk

from chameleon.kernels.dots import dots_of
from chameleon.kernels.inspect import STACK_BYTES, blocks_of, takes_heap
from chameleon.kernels.registers import TILES, Machine, Tile, register_schedule, register_space, tiles_of
from chameleon.kernels.scratch import lowered_to_allocations
from chameleon.measure import WarmBuilder, WarmRunner
from tests.support.fused import convolution, product
from tuners.trace_space import TraceSpace

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 2, "mcpu": "x86-64-v3"})
AVX2 = Machine(lanes=8, registers=16, cores=2)

KERNELS = {
    "3x3": convolution("bias", "relu", out=32),
    "stride 2": convolution("bias", "sum", "relu", size=12, channels=4, out=16, stride=2),
    "first layer": convolution("bias", "relu", size=16, channels=3, out=16, kernel=7, stride=2, padding=3),
    "1x1": convolution("bias", "swish", size=6, channels=24, out=48, kernel=1, padding=0),
    "depthwise": convolution("bias", size=6, channels=16, out=16, groups=16),
    "product": product("bias", "relu", rows=12, inner=20, columns=48),
    "odd sizes": convolution(size=7, channels=5, out=24),
    "half a vector": convolution("bias", size=6, channels=8, out=20, kernel=1, padding=0),
}


@pytest.mark.parametrize(
    ("attributes", "machine"),
    [
        ({"mcpu": "x86-64"}, Machine(4, 16, 3)),
        ({"mcpu": "x86-64-v3"}, Machine(8, 16, 3)),
        ({"mcpu": "x86-64-v4"}, Machine(16, 32, 3)),
        ({"mcpu": "x86-64", "mattr": ["+avx2"]}, Machine(8, 16, 3)),
        ({"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}, Machine(4, 32, 3)),
    ],
)
def test_a_target_says_how_many_registers_there_are(attributes, machine):
    target = Target({"kind": "llvm", "num-cores": 3, **attributes})
    assert Machine.of(target) == replace(machine, dots=dots_of(target))


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=2),
    st.integers(1, 40),
    st.sampled_from([Machine(4, 16, 1), AVX2, Machine(16, 32, 1), Machine(4, 32, 1)]),
)
def test_all_results_of_a_tile_fit_the_registers(rows, vectors, machine):
    channels = vectors * machine.lanes
    tiles = tiles_of(rows, channels, machine)
    assert 1 <= len(tiles) <= TILES
    assert len(set(tiles)) == len(tiles)
    for tile in tiles:
        assert all(r % t == 0 for r, t in zip(rows, tile.rows, strict=True))
        assert channels % tile.channels == 0
        assert tile.channels % machine.lanes == 0
        results = math.prod(tile.rows) * tile.channels
        assert results // machine.lanes + 2 <= machine.registers
        assert 4 * results < STACK_BYTES  # what is larger is allocated at each use, and never gets into registers


def test_the_first_tiles_load_least_for_what_they_compute():
    """On a core with 16 registers 12 results are 4 x 3 or 6 x 2: the tiles of BLIS for this kind of core."""
    assert tiles_of([48], 48, AVX2)[0] == Tile((4,), 24)
    assert tiles_of([6], 16, AVX2)[0] == Tile((6,), 16)
    assert tiles_of([7, 7], 64, AVX2)[0] == Tile((1, 7), 16)  # 14 results; a whole row of the image
    assert tiles_of([8], 12, AVX2) == []  # no whole vectors


@pytest.mark.parametrize("packed", [False, True], ids=["as it is", "packed weights"])
@pytest.mark.parametrize("name", KERNELS)
def test_any_schedule_computes_what_the_kernel_computes(name, packed):
    mod = KERNELS[name]
    if packed:
        mod = IRModule({"main": mod["main"].with_attr("layout_free_buffers", [1])})
    space = register_space(mod, CPU)
    assert space is not None
    traces = TraceSpace(mod, CPU, space_generator=space)
    rng = np.random.default_rng(0)
    shapes = [tuple(int(d) for d in p.shape) for p in mod["main"].params]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    expected = run(mod, arrays)
    configs = traces.space.sample(6, rng)
    assert len(set(configs[:, 0])) > 1
    for config in configs:
        np.testing.assert_allclose(run(traces.schedule(config).mod, arrays), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True], ids=["as it is", "packed weights"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_default_schedule_computes_what_the_kernel_computes(name, packed):
    mod = IRModule({"main": KERNELS[name]["main"].with_attr("layout_free_buffers", [1])})
    func = register_schedule(mod["main"], AVX2, packed=packed)
    assert func is not None
    assert structural_equal(func, register_schedule(mod["main"], AVX2, packed=packed))
    assert ("layout_rewrite_preproc" in func.script()) == packed
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([int(d) for d in p.shape]).astype(np.float32) for p in func.params]
    np.testing.assert_allclose(run(IRModule({"main": func}), arrays), run(mod, arrays), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("out", "lanes"), [(32, 16), (40, 8), (20, 4)])
def test_a_kernel_has_the_longest_vectors_that_its_channels_fill(out: int, lanes: int):
    mod = convolution(size=6, channels=8, out=out, kernel=1, padding=0)
    func = register_schedule(mod["main"], Machine(16, 32, 2))
    assert func is not None
    widths = {int(loop.extent) for loop in loops_of(func) if loop.kind == tvm.tirx.ForKind.VECTORIZED}
    assert all(width % lanes == 0 and out % width == 0 for width in widths)
    assert widths


def loops_of(func: PrimFunc) -> list[tvm.tirx.For]:
    found: list[tvm.tirx.For] = []
    structural_walk(func.body, (tvm.tirx.For, found.append))
    return found


def run(mod: IRModule, arrays: list[np.ndarray]) -> np.ndarray:
    """What a kernel writes to its last parameter."""
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    tvm.compile(mod, Target({"kind": "llvm", "num-cores": 2}))["main"](*tensors)
    return tensors[-1].numpy()


def on_the_heap(func: PrimFunc) -> set[str]:
    """The names of what a kernel asks the runtime for while it runs."""
    found: list[AllocBuffer] = []
    structural_walk(lowered_to_allocations(func).body, (AllocBuffer, found.append))
    return {node.buffer.name for node in found if takes_heap(node.buffer)}


def test_the_results_stay_in_registers_over_the_whole_reduction():
    """The innermost reduction loop surrounds the tile, which has the registers' size and no memory of the heap."""
    mod = KERNELS["3x3"]
    traces = TraceSpace(mod, CPU, space_generator=register_space(mod, CPU))
    for config in traces.space.sample(4, np.random.default_rng(1)):
        schedule, _ = traces.replay(config)
        block = schedule.get_sblock("conv2d_nhwc")
        assert on_the_heap(schedule.mod["main"]) <= {"pad_temp"}
        inner = [int(schedule.get(loop).extent) for loop in schedule.get_loops(block)]
        rows, vector = inner[-3:-1], inner[-1]
        assert math.prod(rows) * vector // AVX2.lanes + 2 <= AVX2.registers


@pytest.mark.parametrize(
    "mod",
    [
        convolution(out=10),  # no whole vectors
        convolution(dtype="float16", out=16),
        convolution(layout="NCHW", out=16),  # the last axis is no channel
    ],
    ids=["vectors", "half", "channels first"],
)
def test_other_kernels_have_no_such_space(mod):
    assert register_space(mod, CPU) is None


@pytest.mark.slow
def test_it_serves_stock_metaschedule(tmp_path):
    """As the space of `tune_tir`, with a strategy of TVM's own."""
    mod = KERNELS["1x1"]
    with WarmBuilder() as builder, WarmRunner() as runner:
        database = ms.tune_tir(
            mod,
            CPU,
            str(tmp_path),
            4,
            space=register_space(mod, CPU),
            strategy="replay-trace",
            builder=builder,
            runner=runner,
            cost_model="random",
        )
    (best,) = database.get_top_k(database.commit_workload(mod), 1)
    schedule = Schedule(mod)
    best.trace.apply_to_schedule(schedule, remove_postproc=False)
    assert any(block.name_hint.endswith("_update") for block in blocks_of(schedule.mod["main"]))
