"""Workspaces that kernels allocate inside their loops: the same results, nothing taken from the runtime's pools."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax, te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.target import Target
from tvm.tirx import PrimFunc
from tvm_ffi import structural_walk

from chameleon.kernels.inspect import dims_of
from chameleon.kernels.scratch import PAGE_BYTES, scratch_buffers, scratch_bytes, with_scratch
from chameleon.memory.measured_peak import measure_peak
from chameleon.memory.plan import plan_memory, prepare
from chameleon.memory.workspaces import n_workspaces

pytestmark = pytest.mark.tvm
ROWS, COLUMNS = 7, 512


def exponential(x: te.Tensor, name: str) -> te.Tensor:
    return te.compute((ROWS, COLUMNS), lambda r, c: te.exp(x[r, COLUMNS - 1 - c]), name=name)


def tiled(kind: str, tiles: int = 1) -> PrimFunc:
    """Exponentials of mirrored rows, once or twice, by way of tensors that hold one row each, plus the row itself."""
    x = te.placeholder((ROWS, COLUMNS), "float32", "x")
    value = x
    for i in range(tiles):
        value = exponential(value, f"tile{i}")
    out = te.compute((ROWS, COLUMNS), lambda r, c: x[r, c] + value[r, c], name="out")
    sch = Schedule(te.create_prim_func([x, out]))
    rows, _ = sch.get_loops(sch.get_sblock("out"))
    for i in reversed(range(tiles)):
        sch.compute_at(sch.get_sblock(f"tile{i}"), rows)
    if kind == "parallel":
        sch.parallel(rows)
    return sch.mod["main"].with_attr("tirx.is_scheduled", True).without_attr("global_symbol")


def network(func: PrimFunc) -> IRModule:
    """The kernel twice in a row."""
    builder = relax.BlockBuilder()
    kernel = builder.add_func(func, "kernel")
    ty = relax.TensorType((ROWS, COLUMNS), "float32")
    x = relax.Var("x", ty)
    with builder.function("main", [x]):
        with builder.dataflow():
            first = builder.emit(relax.call_tir(kernel, [x], ty))
            result = builder.emit_output(relax.call_tir(kernel, [first], ty))
        builder.emit_func_output(result)
    return builder.get()


@pytest.mark.parametrize(("scope", "pages"), [("global", 0), ("local", 2)])
def test_small_tiles_are_on_the_stack_only_in_the_global_scope(scope: str, pages: int) -> None:
    """TVM's code generator for CPUs takes memory of another scope from each thread's pool, a page at least."""
    x = te.placeholder((ROWS, COLUMNS), "float32", "x")
    sch = Schedule(te.create_prim_func([x, te.compute((ROWS, COLUMNS), lambda r, c: te.exp(x[r, c]), name="out")]))
    block = sch.get_sblock("out")
    tile = sch.cache_write(block, 0, scope)
    columns = sch.get_loops(block)[1]
    sch.reverse_compute_at(tile, sch.split(columns, [None, 8])[0])
    sch.parallel(sch.get_loops(block)[0])
    small = network(sch.mod["main"].with_attr("tirx.is_scheduled", True).without_attr("global_symbol"))
    target = Target({"kind": "llvm", "num-cores": 2})
    assert scratch_bytes(small, 2) == pages * PAGE_BYTES
    executable = tvm.compile(small, target, relax_pipeline="default_build")
    held = measure_peak(executable, [np.ones((ROWS, COLUMNS), "float32")], 2).tensor_peak_bytes
    assert held == 2 * ROWS * COLUMNS * 4 + pages * PAGE_BYTES


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["parallel", "serial"])
def test_every_thread_has_its_part(kind: str, threads: int) -> None:
    stretches = min(threads, ROWS) if kind == "parallel" else 1
    assert [dims_of(b) for b in scratch_buffers(tiled(kind), threads)] == [[stretches, 1, COLUMNS]]
    assert [dims_of(b) for b in scratch_buffers(tiled(kind, 2), threads)] == [[stretches, 1, COLUMNS]] * 2


@pytest.mark.parametrize(("kind", "threads", "tiles"), [("parallel", 1, 1), ("parallel", 3, 2), ("serial", 2, 2)])
def test_a_network_takes_its_arena_and_nothing_else(kind: str, threads: int, tiles: int) -> None:
    target = Target({"kind": "llvm", "num-cores": threads})
    mod = network(tiled(kind, tiles))
    pages = tiles * PAGE_BYTES * -(-COLUMNS * 4 // PAGE_BYTES)
    assert scratch_bytes(mod, threads) == (threads * pages if kind == "parallel" else pages)
    with target:
        planned, plan = plan_memory(mod)
        stock = tvm.compile(mod, target, relax_pipeline="default_build")
        ours = tvm.compile(planned, target, relax_pipeline="default_build")
    stretches = min(threads, ROWS) if kind == "parallel" else 1
    assert {node.workspace_bytes for node in plan.graph.nodes[1:]} == {tiles * stretches * COLUMNS * 4}
    assert plan.scratch_bytes == 0
    x = (np.random.default_rng(0).random((ROWS, COLUMNS)) / 8).astype("float32")
    found, expected = measure_peak(ours, [x], threads), measure_peak(stock, [x], threads)
    assert found.tensor_peak_bytes == plan.arena.size_bytes
    np.testing.assert_array_equal(found.outputs[0], expected.outputs[0])


def test_more_threads_than_planned_for_do_no_harm() -> None:
    """The stretches, not the threads, own the parts."""
    target = Target({"kind": "llvm", "num-cores": 2})
    mod = network(tiled("parallel"))
    with target:
        planned, plan = plan_memory(mod)
        ours = tvm.compile(planned, target, relax_pipeline="default_build")
    x = (np.random.default_rng(0).random((ROWS, COLUMNS)) / 8).astype("float32")
    one, four = (measure_peak(ours, [x], threads) for threads in (1, 4))
    assert one.tensor_peak_bytes == four.tensor_peak_bytes == plan.arena.size_bytes
    np.testing.assert_array_equal(one.outputs[0], four.outputs[0])


def test_what_a_loop_says_of_unrolling_stays() -> None:
    sch = Schedule(tiled("parallel"))
    rows, _ = sch.get_loops(sch.get_sblock("out"))
    sch.annotate(rows, "pragma_auto_unroll_max_step", 64)
    with Target({"kind": "llvm", "num-cores": 2}):
        (kernel,) = (f for f in prepare(network(sch.mod["main"])).functions.values() if isinstance(f, PrimFunc))
    found: list[tirx.For] = []
    structural_walk(with_scratch(kernel).body, (tirx.For, lambda loop: found.append(loop)))
    (outer,) = (loop for loop in found if int(loop.kind) == int(tirx.ForKind.PARALLEL))
    assert dict(outer.annotations) == {"pragma_auto_unroll_max_step": 64}
    assert [loop for loop in found if loop.annotations] == [outer]


@pytest.mark.parametrize("target", [{"kind": "cuda", "arch": "sm_80"}, {"kind": "llvm"}])
def test_other_devices_keep_their_tiles_and_so_do_unknown_numbers_of_threads(target: dict[str, str]) -> None:
    mod = network(tiled("parallel"))
    with Target(target):
        kernels = [f for f in prepare(mod).functions.values() if isinstance(f, PrimFunc)]
    assert [n_workspaces(f) for f in kernels] == [0]
