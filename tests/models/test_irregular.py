"""The irregular cells: wirings are the published or the seeded ones, tensors the graph's, weights follow the seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chameleon.errors import UsageError
from chameleon.models.errors import ModelError
from chameleon.models.irregular import CELLS, cell, cell_graph, cell_module
from chameleon.models.pytorchcv import model_names, zoo_network
from chameleon.models.shapes import GivenShapes
from chameleon.serenity.graph import read_graph
from chameleon.serenity.wiring import watts_strogatz

GRAPHS = Path(__file__).parents[2] / "configs" / "serenity"
TABLE = list(CELLS)[:9]


def inputs_of(name: str) -> list[torch.Tensor]:
    rng = np.random.default_rng(5)
    return [
        torch.from_numpy(rng.standard_normal((1, *shape)).astype(np.float32)) for shape in cell(name).inputs.values()
    ]


@pytest.mark.parametrize("name", CELLS)
def test_every_operator_makes_the_tensor_that_the_graph_counts(name: str) -> None:
    made = cell(name)
    graph, module = cell_graph(made), cell_module(made, np.random.default_rng(0))
    seen: dict[str, int] = {}
    for op in made.operators:
        keep = lambda _m, _i, out, key=op.name: seen.update({key: out.numel() * out.element_size()})  # noqa: E731
        module.operators[op.name].register_forward_hook(keep)
    result = module(*inputs_of(name))
    assert seen == {step: graph.by_name[step].output_bytes for step in graph.steps}
    assert torch.isfinite(result).all()
    assert 0.01 < float(result.std()) < 10  # neither died out nor blew up: equal outputs mean something


@pytest.mark.parametrize(
    ("name", "n", "seed", "size"),
    [
        ("randwire-cifar10-a", 32, [0], 32_768),
        ("randwire-cifar100-c", 32, [4], 8_192),
        ("ws64", 64, [64], 16_384),
    ],
)
def test_a_randwire_cell_has_the_wiring_of_its_seed(name: str, n: int, seed: list[int], size: int) -> None:
    expected = watts_strogatz(n, 4, 0.75, rng=np.random.default_rng(seed), sizes=[size] * n, end_bytes=size)
    graph = cell_graph(cell(name))
    wiring = {node.name: node.inputs for node in expected.nodes}
    assert {
        node.name: tuple("input" if i == "x" else i for i in node.inputs) for node in graph.nodes if node.inputs
    } == {key: sources for key, sources in wiring.items() if sources}
    assert {node.output_bytes for node in graph.nodes} == {size}


def test_a_randwire_node_is_a_weighted_sum_and_a_separable_convolution() -> None:
    made = cell("ws16")
    module = cell_module(made, np.random.default_rng(3))
    op = next(op for op in made.operators if len(op.inputs) == 3)
    node = module.operators[op.name]
    xs = [torch.randn(1, 16, 16, 16) for _ in op.inputs]
    weights = torch.sigmoid(node.sum.logits)
    assert weights.unique().numel() == 3
    x = torch.relu(sum(w * x for w, x in zip(weights, xs, strict=True)))
    relu, depthwise, pointwise, norm = (layer for layer in list(node)[:-1])
    assert isinstance(relu, torch.nn.ReLU)
    x = torch.nn.functional.conv2d(x, depthwise.weight, padding=1, groups=16)
    x = norm(torch.nn.functional.conv2d(x, pointwise.weight))
    torch.testing.assert_close(node(*xs), x)


def test_the_darts_cell_is_the_published_genotype() -> None:
    graph = cell_graph(cell("darts-normal-cell"))
    pairs = {}
    for name in ("n2", "n3", "n4", "n5"):
        terms = [graph.by_name[term] for term in graph.by_name[name].inputs]
        pairs[name] = sorted((t.op, t.inputs[0]) if t.op.endswith("conv") else ("skip", t.name) for t in terms)
    assert pairs == {
        "n2": [("sep_conv", "s0"), ("sep_conv", "s1")],
        "n3": [("sep_conv", "s0"), ("sep_conv", "s1")],
        "n4": [("sep_conv", "s1"), ("skip", "s0")],
        "n5": [("dil_conv", "n2"), ("skip", "s0")],
    }
    assert graph.by_name["concat"].inputs == ("n2", "n3", "n4", "n5")
    assert graph.by_name["concat"].attrs["channels"] == [48] * 4
    assert graph.by_name["s0"].output_bytes == 150_528
    layers = [
        type(layer).__name__
        for layer in cell_module(cell("darts-normal-cell"), np.random.default_rng(0)).operators["sep_conv2_s0"]
    ]
    assert layers == ["ReLU", "Conv2d", "Conv2d", "BatchNorm2d"] * 2


def test_the_swiftnet_like_cells_have_the_published_numbers_of_nodes_and_can_be_rewritten() -> None:
    graphs = [cell_graph(cell(f"swiftnet-hpd-{part}")) for part in "abc"]
    assert [len(g.steps) for g in graphs] == [21, 19, 22]
    whole = cell_graph(cell("swiftnet-hpd"))
    assert len(whole.steps) == 62
    assert [node.output_bytes for node in whole.nodes[1:]] == [
        g.by_name[s].output_bytes for g in graphs for s in g.steps
    ]
    for graph in graphs:
        behind = {graph.by_name[r].op for n in graph.nodes if n.op == "concat" for r in graph.consumers[n.name]}
        assert behind == {"conv", "depthwise"}


def test_weights_follow_the_seed_and_leave_the_random_state() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (zoo_network("ws16", seed).module.state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if key.endswith(("weight", "running_var")))


@pytest.mark.needs("pytorchcv")
def test_names_are_in_the_zoo_and_the_nearest_are_named() -> None:
    assert set(CELLS) <= set(model_names())
    network = zoo_network("DARTS-normal-cell", 0)
    assert (network.name, network.shapes) == ("darts-normal-cell", {"s0": (1, 48, 28, 28), "s1": (1, 48, 28, 28)})
    assert zoo_network("ws16", 0, GivenShapes((1, 16, 8, 8))).shapes == {"x": (1, 16, 8, 8)}
    with pytest.raises(UsageError, match=r"did you mean .*randwire-cifar10-a"):
        zoo_network("randwire-cifar-a", 0)
    with pytest.raises(UsageError, match="did you mean ws"):
        cell("ws33")
    with pytest.raises(ModelError, match="give each its shape by name"):
        zoo_network("darts-normal-cell", 0, GivenShapes((1, 48, 14, 14)))


@pytest.mark.slow
def test_building_a_network_loads_no_tvm() -> None:
    code = (
        "import sys; from chameleon.models.pytorchcv import zoo_network; zoo_network('ws16', 0); "
        "print([name for name in sys.modules if name.partition('.')[0] in ('tvm', 'tvm_ffi')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("name", CELLS)
def test_the_graphs_on_file_are_those_of_the_cells(name: str) -> None:
    assert read_graph(GRAPHS / f"{name}.json") == cell_graph(cell(name))
