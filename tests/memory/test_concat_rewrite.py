"""Identity rewriting on relax: the outputs of built networks, and kernels that add up one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

from chameleon.kernels.lower import kernels_of, to_target_layout
from chameleon.memory.operator_graph import concat_graph
from chameleon.memory.rewrite import apply_sites, find_sites
from chameleon.models.load import input_arrays, load_model
from chameleon.serenity.accounting import validate
from chameleon.serenity.graph import Graph

pytestmark = pytest.mark.tvm
TARGET = Target({"kind": "llvm", "num-cores": 1})
Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def conv(into: int, out: int, kernel: int = 3, **options: object) -> nn.Module:
    """A convolution and a batch norm far from its initial state."""
    options = {"padding": kernel // 2, "bias": False, **options}
    norm = nn.BatchNorm2d(out)
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)  # type: ignore[arg-type]
    for tensor in (norm.bias, norm.running_mean):
        nn.init.uniform_(tensor, -1.0, 1.0)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(into, out, kernel, **options), norm)  # type: ignore[arg-type]


class Net(nn.Module):
    """Three parts of 5, 3 and 4 channels (the last is the input), concatenated; then layers of a test's choice."""

    def __init__(self, forward: Callable[[nn.Module, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.second = conv(4, 5), conv(4, 3, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.after = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self, torch.cat([self.first(x), self.second(x), x], 1))


def nested(m: nn.Module, c: torch.Tensor) -> torch.Tensor:
    return m.y(F.relu(torch.cat([m.z(c), c], 1)))


def densely(m: nn.Module, c: torch.Tensor) -> torch.Tensor:
    c = torch.cat([c, m.y(F.relu(c))], 1)
    return m.z(F.relu(c))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: Net(lambda m, c: m.y(c), y=conv(12, 6, stride=2)),
    "dilated, behind a relu": lambda: Net(lambda m, c: m.y(F.relu(c)), y=conv(12, 6, dilation=2, padding=2)),
    "padded on one axis": lambda: Net(lambda m, c: m.y(torch.sigmoid(c)), y=conv(12, 6, padding=(2, 0))),
    "with bias": lambda: Net(lambda m, c: F.relu(m.y(c)), y=nn.Conv2d(12, 6, 1)),
    "depthwise": lambda: Net(lambda m, c: m.y(F.relu(c)), y=conv(12, 12, groups=12, stride=2)),
    "behind a clip": lambda: Net(lambda m, c: m.y(F.relu6(c)), y=conv(12, 6)),
    "depthwise with a multiplier": lambda: Net(lambda m, c: m.y(c), y=conv(12, 24, groups=12)),
    "separable": lambda: Net(lambda m, c: m.z(m.y(F.relu(c))), y=nn.Conv2d(12, 12, 3, groups=12), z=conv(12, 7, 1)),
    "a norm before the activation": lambda: Net(lambda m, c: m.y(F.silu(m.n[1](c))), n=conv(1, 12), y=conv(12, 6)),
    "a pooling": lambda: Net(lambda m, c: m.y(F.max_pool2d(c, 3, 2, 1)), y=conv(12, 6)),
    "several readers": lambda: Net(lambda m, c: m.y(F.relu(c)) + m.z(c), y=conv(12, 6), z=conv(12, 6, 1)),
    "summed up": lambda: Net(
        lambda m, c: m.y(F.relu(c)) + m.z(c) + F.relu(m.z(F.silu(c))) / 3, y=conv(12, 6), z=conv(12, 6, 1)
    ),
    "a reader that stays": lambda: Net(lambda m, c: m.y(c) + F.softmax(c, 1)[:, :6], y=conv(12, 6)),
    "nested": lambda: Net(nested, z=conv(12, 4), y=conv(16, 6)),
    "densely connected": lambda: Net(densely, y=conv(12, 4), z=conv(16, 6)),
    "grouped": lambda: Net(lambda m, c: m.y(c), y=conv(12, 6, groups=2)),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[IRModule, np.ndarray, np.ndarray]]:
    """By name a network's module in NCHW, an input and what PyTorch computes."""
    folder, known = tmp_path_factory.mktemp("networks"), {}

    def load(name: str) -> tuple[IRModule, np.ndarray, np.ndarray]:
        if name not in known:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                module = NETWORKS[name]().eval()
                path = Path(folder / "n.pt2")
                torch.export.save(torch.export.export(module, (torch.randn(1, 4, 9, 9),)), path)
                model = load_model(str(path))
                (x,) = input_arrays(model, np.random.default_rng(1))
                known[name] = model.mod, x, module(torch.from_numpy(x)).numpy()
        return known[name]

    return load


def outputs(mod: IRModule, x: np.ndarray) -> np.ndarray:
    executable = tvm.compile(kernels_of(mod, TARGET), TARGET, relax_pipeline="default_build")
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x))
    return (result if isinstance(result, tvm.runtime.Tensor) else result[0]).numpy()


IN_NCHW = ("strided", "summed up", "depthwise with a multiplier", "separable", "behind a clip")


@pytest.mark.parametrize(("name", "layout"), [*((n, "NHWC") for n in NETWORKS), *((n, "NCHW") for n in IN_NCHW)])
def test_a_rewritten_network_computes_the_same(name: str, layout: str, loaded: Callable[[str], tuple]) -> None:
    mod, x, expected = loaded(name)
    mod = to_target_layout(mod, TARGET) if layout == "NHWC" else mod
    sites = find_sites(mod)
    kinds = {site.kind for site in sites}
    if name == "grouped":
        assert kinds == {"zero_copy"}
    else:
        assert kinds > {"zero_copy"}
    after = apply_sites(mod, sites)
    relax.analysis.well_formed(after)
    assert find_sites(mod) == sites  # names of sites are stable, and the module is as it was
    np.testing.assert_allclose(outputs(after, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["several readers", "summed up", "separable", "nested"])
def test_any_choice_of_sites_computes_the_same_in_any_order(name: str, loaded: Callable[[str], tuple]) -> None:
    mod, x, expected = loaded(name)
    sites = list(find_sites(mod))
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = [site for site in sites if rng.random() < 0.6]
        after = apply_sites(mod, chosen, backwards)
        np.testing.assert_allclose(outputs(after, x), expected, rtol=1e-4, atol=1e-5)


def backwards(graph: Graph) -> list[str]:
    """A valid order that runs first what is listed last."""
    order, done = [], set(graph.inputs)
    while len(order) < len(graph.steps):
        order.append(
            next(n for n in reversed(graph.steps) if n not in done and done.issuperset(graph.by_name[n].inputs))
        )
        done.add(order[-1])
    validate(graph, order)
    return order


def test_each_partial_convolution_is_a_kernel_that_adds_to_the_one_before(loaded: Callable[[str], tuple]) -> None:
    mod, _, _ = loaded("dilated, behind a relu")
    (site,) = (site for site in find_sites(mod) if site.kind == "channel_wise")
    after = apply_sites(mod, [site, *find_sites(mod)[site]])
    kernels = kernels_of(after, TARGET)
    calls = [b for b in kernels["main"].body.blocks[0].bindings if isinstance(b.value, tvm.ir.Call)]
    names = [re.sub(r"\d", "", b.value.args[0].name_hint.replace("conv2d", "conv")) for b in calls]
    assert not any("concat" in name for name in names)
    partial = [i for i, name in enumerate(names) if "conv" in name][2:]  # after those that make the parts
    assert [names[i] for i in partial] == ["conv_part", "conv_part_add", "fused_conv_add_add"]
    for before, after_it in pairwise(partial):
        assert any(argument.same_as(calls[before].var) for argument in calls[after_it].value.args[1].fields)


def test_functions_that_are_no_single_block_of_static_shapes_have_no_sites() -> None:
    x = relax.Var("x", relax.TensorType((tvm.tirx.Var("n", "int64"), 4, 9, 9), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.concat([x, x], 1))
        builder.emit_func_output(y)
    assert concat_graph(builder.get()) is None
    assert find_sites(builder.get()) == {}
    assert apply_sites(builder.get(), []) is not None
