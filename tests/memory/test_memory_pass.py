"""`MemoryAware`: the same outputs in any order, one storage that stays one, and the peak that was planned."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.tirx import PrimFunc

from chameleon.jobs.compile import compile_model
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.lower import build, extract_tasks
from chameleon.kernels.scratch import scratch_bytes
from chameleon.memory.lower import lean
from chameleon.memory.measured_peak import can_measure, measure_peak
from chameleon.memory.plan import MemoryAware, MemoryOptions, plan_memory, stock_plan_bytes
from chameleon.memory.workspaces import n_workspaces
from chameleon.serenity.accounting import peak_bytes
from chameleon.serenity.graph import Graph
from chameleon.serenity.order.schedule import Schedule, schedule
from tests.jobs.test_compile import record_random_schedules
from tests.support.memory_networks import CPU, NETWORKS, inputs, network, outputs

pytestmark = pytest.mark.tvm


def randomly(seed: int):
    """A solver that takes any valid order."""
    rng = np.random.default_rng(seed)

    def solve(graph: Graph) -> Schedule:
        done, order = set(graph.inputs), []
        while len(order) < len(graph.steps):
            ready = [s for s in graph.steps if s not in done and done.issuperset(graph.by_name[s].inputs)]
            order.append(str(rng.choice(ready)))
            done.add(order[-1])
        return Schedule(tuple(order), peak_bytes(graph, order), 0, False, 0, 0.0)

    return solve


def storages(mod: IRModule) -> list[int]:
    """Bytes of the storages that the function allocates, after TVM's whole default pipeline."""
    with CPU:
        mod = relax.get_pipeline("default_build")(mod)
    sizes: list[int] = []

    def visit(node: object) -> None:
        if isinstance(node, Call) and "alloc_storage" in str(node.op):
            sizes.append(int(next(a for a in node.args if isinstance(a, relax.ShapeExpr)).values[0]))

    relax.analysis.post_order_visit(mod["main"], visit)
    return sizes


@pytest.fixture(scope="module")
def expected() -> dict[str, list[np.ndarray]]:
    """What the networks compute as TVM orders and plans them."""
    return {name: outputs(build(schedule_defaults(network(name), CPU), CPU), inputs()) for name in NETWORKS}


@pytest.mark.parametrize("hoist", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_the_same_in_any_order(name: str, hoist: bool, expected: dict[str, list[np.ndarray]]) -> None:
    """With the usual kernels, whose workspaces are moved into the arena or not, and writing over inputs or not."""
    scheduled = schedule_defaults(network(name), CPU)
    for seed, in_place in ((0, True), (1, True), (2, False)):
        mod, plan = plan_memory(scheduled, randomly(seed), MemoryOptions(hoist=hoist, in_place=in_place))
        assert storages(mod) == [plan.arena.size_bytes]
        found = outputs(build(mod, CPU), inputs())
        for ours, theirs in zip(found, expected[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_lean_kernels_compute_the_same_in_what_was_planned(name: str, expected: dict[str, list[np.ndarray]]) -> None:
    assert can_measure("llvm") == ""
    kernels = lean(network(name), CPU)
    with CPU:
        mod, plan = plan_memory(kernels, schedule)
    assert plan.schedule.proven
    assert plan.arena.size_bytes == plan.arena.bound_bytes == plan.schedule.peak_bytes  # it was aligned when ordered
    assert plan.scratch_bytes == 0
    measured = measure_peak(build(mod, CPU), [inputs()])
    assert abs(measured.tensor_peak_bytes - plan.arena.size_bytes) <= 0.02 * plan.arena.size_bytes
    assert measured.tensor_peak_bytes <= measured.heap_peak_bytes <= measured.tensor_peak_bytes + 100_000
    for ours, theirs in zip(measured.outputs, expected[name], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_less_than_tvm_plans_and_takes() -> None:
    lowered = network("fans")
    stock = schedule_defaults(lowered, CPU)
    with CPU:
        _, plan = plan_memory(lean(lowered, CPU), schedule)
    planned = stock_plan_bytes(stock)
    measured = measure_peak(build(stock, CPU), [inputs()])
    assert measured.tensor_peak_bytes >= planned  # and the kernels' own workspaces
    assert measured.tensor_peak_bytes <= planned + scratch_bytes(stock, 1)
    assert plan.arena.size_bytes < planned < measured.tensor_peak_bytes


def test_it_is_a_pass_like_others() -> None:
    aware = MemoryAware(options=MemoryOptions(name="concats"))
    passes = tvm.transform.Sequential([relax.transform.DeadCodeElimination(), aware])
    with CPU, tvm.transform.PassContext(opt_level=3):
        mod = passes(schedule_defaults(network("concats"), CPU))
    assert aware.plan is not None
    assert aware.plan.graph.name == "concats"
    assert storages(mod) == [aware.plan.arena.size_bytes]
    assert relax.analysis.check_well_formed(mod)


def test_views_copy_nothing() -> None:
    with CPU:
        mod, _ = plan_memory(schedule_defaults(network("residual"), CPU), schedule)
        text = relax.get_pipeline("default_build")(mod)["main"].script(show_meta=False)
    assert "vm.builtin.reshape" in text
    assert not any("reshape" in v.name_hint for v in mod.get_global_vars())


def test_every_part_of_a_workspace_has_its_place() -> None:
    """A softmax keeps its maxima, its exponentials and their sums."""
    mod, plan = plan_memory(schedule_defaults(network("residual"), CPU), schedule)
    kernels = [f for f in mod.functions.values() if isinstance(f, PrimFunc) and n_workspaces(f)]
    assert kernels
    assert any(node.workspace_bytes for node in plan.graph.nodes)
    assert scratch_bytes(mod, 1) == 0


@pytest.mark.parametrize("name", ["residual", "concats"])
def test_tuned_schedules_are_ordered_with_their_workspaces(name: str, expected: dict[str, list[np.ndarray]]) -> None:
    lowered = network(name)
    database = record_random_schedules(extract_tasks(lowered, CPU))
    plain = compile_model(lowered, CPU, database)
    aware = compile_model(lowered, CPU, database, schedule)
    assert aware.untuned == plain.untuned == ()
    assert plain.memory is None
    assert aware.memory is not None
    measured = measure_peak(aware.executable, [inputs()])
    assert measured.tensor_peak_bytes == aware.memory.arena.size_bytes
    assert aware.memory.scratch_bytes == 0
    for ours, same, theirs in zip(measured.outputs, outputs(plain.executable, inputs()), expected[name], strict=True):
        np.testing.assert_array_equal(ours, same)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_records_is_the_lean_default() -> None:
    compiled = compile_model(network("fans"), CPU, ms.database.MemoryDatabase(), schedule)
    assert compiled.memory is not None
    assert all(node.workspace_bytes == 0 for node in compiled.memory.graph.nodes)
