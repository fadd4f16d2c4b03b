"""A model's memory from end to end: the command, the numbers that it gives, and tuned networks with planned memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("tvm")

import tvm
from tvm import relax

from chameleon.cli import main
from chameleon.jobs.memory import MemorySettings, memory_of_model
from chameleon.serenity.graph import read_graph
from chameleon.serenity.order.schedule import schedule
from tests.support.networks import write_network

pytestmark = pytest.mark.tvm


class Branches(nn.Module):
    """Five branches, a concatenation, and a convolution over all of it: channel-wise rewriting pays."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(4, 16, k, padding=k // 2) for k in (1, 3, 1, 3, 1))
        self.joint = nn.Conv2d(80, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.cat([F.relu(branch(x)) for branch in self.branches], 1)
        return F.relu(self.joint(parts)).mean((2, 3))


class Sums(nn.Module):
    """Each tensor is made of the one before, and all are added up, the last one first: as given it waits for that."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4 if i == 0 else 16, 16, 3, padding=1) for i in range(6))
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        terms = []
        for conv in self.convs:
            x = F.relu(conv(x))
            terms.insert(0, x / (len(terms) + 2))
        return self.last(F.relu(_sum(terms))).mean((2, 3))


def _sum(terms: list[torch.Tensor]) -> torch.Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(Branches(), tmp_path_factory.mktemp("model") / "branches.pt2")


def write(module: nn.Module, path: Path) -> str:
    """A model with weights that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        torch.export.save(torch.export.export(module.eval(), (torch.randn(1, 4, 16, 16),)), path)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main([*arguments])
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    assert "Traceback" not in text
    return code, text


def test_a_model_is_rewritten_planned_measured_and_still_the_same(model: str) -> None:
    found = memory_of_model(model, MemorySettings(), lambda _: None)
    summary = found.summary
    assert summary.best.proven
    assert summary.last.proven
    assert (
        summary.last.peak_bytes < 0.6 * summary.best.peak_bytes
    )  # five parts and their concatenation against one and the sum
    assert any(name.startswith("channel_wise") for name in summary.rewrites)
    assert summary.arena.size_bytes == summary.last.peak_bytes
    assert summary.measured_peak_bytes is not None
    assert abs(summary.measured_peak_bytes - summary.arena.size_bytes) <= 0.02 * summary.arena.size_bytes
    assert found.scratch_bytes == 0
    assert found.stock_measured_bytes is not None
    assert found.stock_measured_bytes > found.stock_planned_bytes > summary.arena.size_bytes
    assert found.difference is not None
    assert found.difference.relative < 1e-5


def test_sums_are_added_up_in_place_where_that_needs_less(tmp_path: Path) -> None:
    found = memory_of_model(write(Sums(), tmp_path / "sums.pt2"), MemorySettings(), lambda _: None)
    assert found.summary.rewrites == ("accumulate: 1 sum",)
    tensor = 16 * 16 * 16 * 4
    assert found.summary.best.peak_bytes == 5 * tensor  # the last convolution adds all others to its result
    assert found.summary.last.peak_bytes <= 3 * tensor  # less where convolutions overwrite what they read
    assert found.summary.measured_peak_bytes == found.summary.arena.size_bytes == found.summary.last.peak_bytes
    assert found.difference is not None
    assert found.difference.relative < 1e-5


def test_the_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, graph = tmp_path / "out.json", tmp_path / "graph.json"
    code, text = run(
        capsys, "memory", model, "--no-rewrite", "--json", str(out), "--graph", str(graph), "--budget", "1GB"
    )
    assert code == 0
    assert "it fits into 1GB" in text
    assert "outputs differ by" in text
    found = json.loads(out.read_text())
    assert found["model"] == "branches"
    assert found["peak_bytes"]["rewritten"] is None
    assert found["measured_peak_bytes"] == pytest.approx(found["arena_bytes"], rel=0.02)
    assert schedule(read_graph(graph)).peak_bytes == found["peak_bytes"]["best"]
    code, text = run(capsys, "memory", model, "--no-measure", "--budget", "1KB", "--json", str(out))
    assert code == 1
    assert "does not fit into 1KB" in text
    assert json.loads(out.read_text())["measured_peak_bytes"] is None


def test_inputs_may_count(model: str) -> None:
    plain, counted = (
        memory_of_model(model, MemorySettings(rewrite=False, measure=False, count_inputs=flag), lambda _: None).summary
        for flag in (False, True)
    )
    image = 4 * 16 * 16 * 4
    assert plain.graph.by_name[plain.graph.inputs[0]].output_bytes == 0
    assert counted.graph.by_name[counted.graph.inputs[0]].output_bytes == image


def test_models_that_cannot_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dynamic = write_network(tmp_path / "dynamic.onnx", batch="N")
    code, text = run(capsys, "memory", str(dynamic))
    assert code == 1
    assert "'x' has a dynamic shape" in text
    assert "--input-shape" in text
    code, text = run(capsys, "memory", "dartz")
    assert code == 2
    assert "darts" in text
    code, text = run(capsys, "memory", str(dynamic), "--input-shape", "1,3,16,16", "--alignment", "16")
    assert code == 2
    assert "--alignment is for graphs" in text


@pytest.mark.parametrize(("network", "rewrite"), [(Branches, False), (Branches, True), (Sums, True)])
def test_a_tuned_network_is_compiled_with_its_memory_planned(
    network: type[nn.Module], rewrite: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tune, then order; with --rewrite: rewrite, tune, then order."""
    model = write(network(), tmp_path / "network.pt2")
    flags = ["--out", str(tmp_path / "run"), *(["--rewrite"] if rewrite else [])]
    assert main(["tune", model, "--trials", "12", "--searcher", "random", *flags]) == 0
    assert (tmp_path / "run" / "rewrite.json").exists() == rewrite
    library = tmp_path / "net.so"
    code, text = run(capsys, "compile", model, "-o", str(library), "--memory-aware", *flags)
    assert code == 0
    assert "memory: arena" in text
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    x = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype("float32")
    result = machine["main"](tvm.runtime.tensor(x))
    ours = (result if isinstance(result, tvm.runtime.Tensor) else result[0]).numpy()
    with torch.no_grad():
        theirs = torch.export.load(model).module()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    if rewrite:
        kept = tmp_path / "run" / "rewrite.json"
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "fuse_depth": 2}))
        code, text = run(capsys, "compile", model, "-o", str(library), "--memory-aware", *flags)
        assert code == 1
        assert "of an earlier version" in text
    else:
        code, text = run(capsys, "tune", model, "--trials", "12", "--searcher", "random", *flags, "--rewrite")
        assert code == 1
        assert "as it is" in text
