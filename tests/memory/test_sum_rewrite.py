"""Sums added up in place on relax: outputs, kernels, who may overwrite what, and the peaks of RandWire's cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm_ffi import structural_equal

from chameleon.jobs.memory import MemorySettings, memory_of_model
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.in_place import in_place_inputs
from chameleon.kernels.lower import build, kernels_of
from chameleon.memory.lower import Rewrites, lean
from chameleon.memory.operator_graph import concat_graph
from chameleon.memory.plan import MemoryOptions, peak_score
from chameleon.memory.rewrite import apply_sites, find_sites, rewrite_module
from chameleon.models.load import ModelError
from chameleon.serenity.graph import Graph
from chameleon.serenity.order.schedule import schedule
from chameleon.serenity.rewrite.identities import Site
from tests.support.memory_networks import CPU, Builder, inputs, outputs

pytestmark = pytest.mark.tvm


def ladder(b: Builder, x: relax.Var) -> relax.Expr:
    """Convolutions one after the other and their sum, each with a weight, the last one first; a bias and a ReLU."""
    tensors = [b.conv(x, 8)]
    while len(tensors) < 7:
        tensors.append(b.conv(tensors[-1], 8))
    factors = [relax.const(0.25 + 0.5 * i, "float32") for i in range(6)]
    factors.append(b.weight(1, 1, 1, 8))  # a weight per channel
    terms = [b.emit(relax.op.multiply(t, f)) for t, f in zip(tensors[::-1], factors, strict=True)]
    return b.emit(relax.op.nn.relu(b.emit(relax.op.add(_added(b, terms), b.weight(1, 1, 1, 8)))))


def tree(b: Builder, x: relax.Var) -> relax.Expr:
    """Plain sums of a convolution, the input, an activation of a tensor that others read, and again of all that."""
    first, second = b.conv(x, 8), b.conv(x, 8, 1)
    gate = b.emit(relax.op.sigmoid(second))
    total = b.add(b.add(first, x), b.add(gate, b.conv(second, 8)))
    return relax.Tuple(
        [_added(b, [total, b.conv(total, 8), first, b.conv(first, 8)]), b.emit(relax.op.mean(total, [1, 2]))]
    )


def _added(b: Builder, terms: Sequence[relax.Var]) -> relax.Var:
    total = terms[0]
    for term in terms[1:]:
        total = b.add(total, term)
    return total


NETWORKS = {"ladder": ladder, "tree": tree}


def depth_first(graph: Graph) -> list[str]:
    """Every term as soon as it is there."""
    return _by_choice(graph, lambda ready: next((n for n in ready if graph.by_name[n].op == "add_term"), ready[0]))


def late(graph: Graph) -> list[str]:
    """Terms when nothing else is left to do: so they come in one run, unless other sums need this one."""
    return _by_choice(graph, lambda ready: next((n for n in ready if graph.by_name[n].op != "add_term"), ready[0]))


def shuffled(graph: Graph) -> list[str]:
    rng = np.random.default_rng(3)
    return _by_choice(graph, lambda ready: str(rng.choice(ready)))


def _by_choice(graph: Graph, choose: Callable[[list[str]], str]) -> list[str]:
    order, done = [], set(graph.inputs)
    while len(order) < len(graph.steps):
        ready = [n for n in graph.steps if n not in done and done.issuperset(graph.by_name[n].inputs)]
        order.append(choose(ready))
        done.add(order[-1])
    return order


def kernel_calls(mod: IRModule) -> list[relax.VarBinding]:
    return [b for b in mod["main"].body.blocks[0].bindings if isinstance(b.value, tvm.ir.Call)]


def built(mod: IRModule) -> list[np.ndarray]:
    return outputs(build(schedule_defaults(kernels_of(mod, CPU), CPU, lean=True), CPU), inputs())


@pytest.mark.parametrize("order", [depth_first, late, shuffled])
@pytest.mark.parametrize("name", NETWORKS)
def test_sums_in_any_order_compute_the_same(name: str, order: Callable[[Graph], list[str]]) -> None:
    mod = Builder().function(NETWORKS[name])
    sites = find_sites(mod)
    assert [site.kind for site in sites] == ["accumulate"] * len(sites)
    assert len(sites) == (2 if name == "tree" else 1)
    after = apply_sites(mod, sites, order)
    relax.analysis.well_formed(after)
    for ours, theirs in zip(built(after), built(mod), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_terms_that_come_together_are_one_kernel_and_the_last_takes_what_follows() -> None:
    mod = Builder().function(ladder)
    kernels = kernels_of(apply_sites(mod, find_sites(mod), depth_first), CPU)
    calls = kernel_calls(kernels)
    names = [b.value.args[0].name_hint for b in calls]
    added = [i for i, name in enumerate(names) if "sum_part" in name or "multiply" in name]
    assert [i for i, name in enumerate(names) if "conv" not in name] == added[:-1]
    # The first term waits for the second.
    # The last convolution, its weight, the last addition, bias and ReLU are one kernel.
    assert [names[i].rstrip("0123456789") for i in added[:-1]] == ["sum_part", *["sum_part_add"] * 4]
    assert [len(calls[i].value.args[1].fields) for i in added[:-1]] == [
        4,
        3,
        3,
        3,
        3,
    ]  # tensors and weights; the total
    assert names[added[-1]].startswith("fused_conv2d_add")
    assert re.search(r"multiply\d*_add\d*_add\d*_relu\d*$", names[added[-1]])
    assert added[-1] == len(calls) - 1
    for before, after in pairwise(added):
        assert any(argument.same_as(calls[before].var) for argument in calls[after].value.args[1].fields)
    for i in added[:-1]:
        func = schedule_defaults(kernels, CPU, lean=True)[calls[i].value.args[0]]
        n_inputs = len(calls[i].value.args[1].fields)
        assert in_place_inputs(func, n_inputs)[0] == 0  # the total so far, if there is one


def test_a_sum_whose_terms_come_together_stays_as_it_was() -> None:
    mod = Builder().function(ladder)
    after = apply_sites(mod, find_sites(mod), late)
    assert structural_equal(after, mod, map_free_vars=True)


def test_sums_of_others_are_no_sums() -> None:
    def body(b: Builder, x: relax.Var) -> relax.Expr:
        row = b.emit(relax.op.mean(x, [1, 2], keepdims=True))
        scaled = b.emit(relax.op.multiply(x, b.conv(x, 8)))
        return b.add(b.add(scaled, row), b.emit(relax.op.subtract(x, b.conv(x, 8))))

    mod = Builder().function(body)
    assert find_sites(mod) == {}
    read = concat_graph(mod)
    assert read is not None
    assert [node.op for node in read.graph.nodes].count(
        "binary"
    ) == 3  # the product, the difference, the sum with a row


def test_the_search_takes_what_pays_and_always_the_same() -> None:
    mod = Builder().function(ladder)

    def score(candidate: IRModule) -> tuple[int, ...]:
        return peak_score(lean(kernels_of(candidate, CPU), CPU), schedule, MemoryOptions())

    found, again = (rewrite_module(mod, score, schedule) for _ in range(2))
    assert [site.kind for site in found.choice.chosen] == ["accumulate"]
    tensor = 12 * 12 * 8 * 4
    assert (found.choice.before[0], found.choice.score[0]) == (
        6 * tensor,
        3 * tensor,
    )  # the last convolution adds the others
    assert found.choice.evaluations == 2
    assert structural_equal(found.mod, again.mod, map_free_vars=True)


def test_a_randwire_cell() -> None:
    """The least peak of a cell whose sums may be added up in any order; inputs belong to the caller."""
    found = memory_of_model("randwire-cifar10-b", MemorySettings(target="llvm"), lambda _: None)
    (size,) = {node.output_bytes for node in found.summary.graph.nodes if node.output_bytes}
    assert found.summary.last.proven
    # Less where kernels overwrite what they convolve, which the graph of the operators does not know.
    assert found.summary.last.peak_bytes <= 12 * size < found.summary.best.peak_bytes
    assert found.summary.measured_peak_bytes == found.summary.arena.size_bytes == found.summary.last.peak_bytes
    assert found.difference is not None
    assert found.difference.relative < 1e-5


def test_rewrites_as_json() -> None:
    rewrites = Rewrites((Site("channel_wise", "lv3"), Site("accumulate", "lv7"), Site("accumulate", "lv9")))
    assert str(rewrites) == "channel_wise:lv3, accumulate: 2 sums"
    assert Rewrites.from_json(rewrites.to_json()) == rewrites
    assert Rewrites.from_json({**rewrites.to_json(), "fuse_depth": None}) == rewrites  # as an earlier version wrote it
    with pytest.raises(ModelError, match="of an earlier version: its kernels held 2 operators at most"):
        Rewrites.from_json({**rewrites.to_json(), "fuse_depth": 2})
