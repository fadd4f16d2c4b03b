"""What of a Relax function becomes a graph, what counts, and what cannot be scheduled."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.script import relax as R
from tvm.script import tirx as T

from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.in_place import in_place_inputs
from chameleon.kernels.lower import kernels_of
from chameleon.memory.graph import extract_graph
from chameleon.memory.plan import MemoryOptions, plan_memory, prepare
from chameleon.serenity.accounting import footprint
from chameleon.serenity.graph import GraphError
from tests.support.memory_networks import CPU, SHAPE, Builder, network

pytestmark = pytest.mark.tvm
PIXELS = 12 * 12 * 4


def test_kernels_are_nodes_and_views_are_none() -> None:
    graph = extract_graph(prepare(network("residual"), hoist=False), "residual").graph
    assert graph.name == "residual"
    assert graph.inputs == ("x",)
    assert graph.by_name["x"].output_bytes == 0
    kinds = [graph.by_name[s].op.rstrip("0123456789") for s in graph.steps]
    assert sorted(kinds) == sorted(["fused_conv2d_add_relu", "fused_conv2d2_add_relu", kinds[2], "softmax", "mean"])
    first, _, total, softmax, mean = graph.steps
    assert [graph.by_name[s].output_bytes for s in graph.steps] == [16 * PIXELS] * 4 + [64]
    assert graph.by_name[softmax].inputs == (total,)  # through the reshape
    assert graph.by_name[mean].inputs == (total,)
    assert graph.outputs == (softmax, mean)
    assert first in graph.by_name[total].inputs


def test_inputs_count_where_asked_for() -> None:
    mod = prepare(network("fans"), hoist=False)
    given, counted = (extract_graph(mod, count_inputs=flag).graph for flag in (False, True))
    assert counted.by_name["x"].output_bytes == 8 * PIXELS
    assert footprint(given, given.steps).after[0] == 0
    assert footprint(counted, counted.steps).after[0] == 8 * PIXELS


def test_two_results_of_a_kernel_lie_in_one_piece() -> None:
    extracted = extract_graph(prepare(network("split"), hoist=False))
    (both,) = (s for s in extracted.graph.steps if extracted.graph.by_name[s].op.startswith("split"))
    call = extracted.calls[both]
    assert [t.shape for t in call.outputs] == [(1, 12, 12, 8)] * 2
    assert call.offsets == (0, 8 * PIXELS)
    assert extracted.graph.by_name[both].output_bytes == 16 * PIXELS
    assert sum(both in extracted.graph.by_name[s].inputs for s in extracted.graph.steps) >= 1


def test_workspaces_of_kernels_are_seen_once_they_are_arguments() -> None:
    mod = schedule_defaults(network("residual"), CPU)
    hidden, seen = (extract_graph(prepare(mod, hoist=hoist)).graph for hoist in (False, True))
    assert all(node.workspace_bytes == 0 for node in hidden.nodes)
    first = seen.by_name[seen.steps[0]]  # a 3x3 convolution: a padded input; its results stay in registers
    assert first.workspace_bytes == 14 * 14 * 8 * 4
    again = extract_graph(prepare(prepare(mod))).graph
    assert [n.workspace_bytes for n in again.nodes] == [n.workspace_bytes for n in seen.nodes]


def test_what_may_be_written_over() -> None:
    @T.prim_func(s_tir=True)
    def kernel(
        same: T.Buffer((4, 8), "float32"),
        turned: T.Buffer((8, 4), "float32"),
        row: T.Buffer((1, 8), "float32"),
        shifted: T.Buffer((4, 8), "float32"),
        out: T.Buffer((4, 8), "float32"),
    ):
        for i, j in T.grid(4, 8):
            with T.sblock("out"):
                a, b = T.axis.remap("SS", [i, j])
                out[a, b] = same[a, b] * same[a, b] + turned[b, a] + row[0, b] + shifted[a, (b + 1) % 8]

    @T.prim_func(s_tir=True)
    def twice(x: T.Buffer((4,), "float32"), out: T.Buffer((4,), "float32")):
        total = T.sblock_alloc_buffer((1,), "float32")
        for i in range(4):
            with T.sblock("total"):
                a = T.axis.reduce(4, i)
                with T.init():
                    total[0] = T.float32(0)
                total[0] = total[0] + x[a]
        for i in range(4):
            with T.sblock("out"):
                a = T.axis.spatial(4, i)
                out[a] = x[a] / total[0]

    assert in_place_inputs(kernel, 4) == [0]
    assert in_place_inputs(twice, 1) == []


def test_a_residual_sum_may_overwrite_what_it_adds() -> None:
    graph = extract_graph(prepare(schedule_defaults(network("residual"), CPU, lean=True))).graph
    assert all(node.workspace_bytes == 0 for node in graph.nodes if node.op.startswith("fused"))
    first, pointwise, total = graph.steps[:3]
    assert (
        graph.by_name[total].in_place == pointwise
    )  # not the convolution's own input, which it reads at other places
    assert graph.by_name[pointwise].in_place == first  # if the sum did not read it later
    assert all(not graph.by_name[s].in_place for s in graph.steps if s not in (total, pointwise))


def refuses(mod: IRModule, *words: str) -> None:
    with pytest.raises(GraphError) as caught:
        extract_graph(mod, "net")
    for word in words:
        assert word in str(caught.value), str(caught.value)
    with pytest.raises(GraphError) as again:
        plan_memory(mod, options=MemoryOptions(name="net"))
    assert str(again.value) == str(caught.value)


def test_dynamic_shapes_are_refused() -> None:
    x = relax.Var("x", relax.TensorType((tvm.tirx.Var("n", "int64"), 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.relu(x))
        builder.emit_func_output(y)
    refuses(kernels_of(builder.get(), CPU), "net: input `x` has no static shape")


def test_operators_that_are_no_kernels_are_refused() -> None:
    refuses(
        Builder().function(lambda b, x: b.conv(x, 8)), "net: `lv`", "unsupported operator relax.nn.conv2d", "legalise"
    )


def test_control_flow_is_refused() -> None:
    @R.function
    def main(x: R.Tensor((4,), "float32"), flag: R.Tensor((), "bool")) -> R.Tensor((4,), "float32"):
        if flag:  # noqa: SIM108
            y = R.add(x, x)
        else:
            y = R.multiply(x, x)
        return y

    refuses(IRModule({"main": main}), "net: `y` is a branch (If)")


def test_calls_of_functions_and_more_than_one_block_are_refused() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("inner", [x], private=True):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(x)))
    inner = next(v for v in builder.get().get_global_vars() if v.name_hint == "inner")
    y = relax.Var("y", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [y]):
        with builder.dataflow():
            z = builder.emit_output(relax.Call(inner, [y]))
        builder.emit_func_output(z)
    refuses(builder.get(), "it calls the function `inner`")
    refuses(IRModule({}), "expected a Relax function `main`")
    plain = relax.BlockBuilder()
    w = relax.Var("w", relax.TensorType(SHAPE, "float32"))
    with plain.function("main", [w]):
        plain.emit_func_output(plain.emit(relax.op.nn.relu(w)))
    refuses(plain.get(), "expected one dataflow block, got 1 blocks (1 bindings)")
