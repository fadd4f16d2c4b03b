"""Programs of `torch.export` that TVM's importer alone takes wrongly or slowly: what PyTorch computes counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tvm")

from torch import nn

from chameleon.models.exported import prepared_program
from chameleon.models.load import Model, ModelError, load_model
from tests.support.running import assert_same, outputs_of

pytestmark = pytest.mark.tvm


def saved(module: nn.Module, inputs: tuple[Any, ...], path: Path, **export: Any) -> str:
    torch.export.save(torch.export.export(module, inputs, **export), path)
    return str(path)


def expect_right(model: Model, module: nn.Module, inputs: tuple[torch.Tensor, ...], tolerance: float = 1e-4) -> None:
    with torch.no_grad():
        result = module(*inputs)
    wanted = [x.numpy() for x in (result if isinstance(result, tuple) else (result,))]
    assert_same(outputs_of(model.mod, [x.numpy() for x in inputs]), wanted, tolerance)


class Norms(nn.Module):
    """Batch and instance norms with statistics that are far from those of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.batch, self.instance = nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.without = nn.BatchNorm2d(6, track_running_stats=False)
        for norm in (self.batch, self.instance):
            nn.init.uniform_(norm.running_mean, 2, 3)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 2, 3)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.without(torch.relu(self.instance(torch.relu(self.batch(self.conv(x))))))


@pytest.mark.parametrize("training", [True, False])
def test_norms_take_the_statistics_of_their_mode(training: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Norms().train(training), torch.randn(2, 3, 8, 8)
    model = load_model(saved(module, (x,), tmp_path / "norms.pt2"))
    expect_right(model, module, (x,))


def test_a_random_network_is_refused_with_its_place(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    with pytest.raises(ModelError, match=r"random: aten.native_dropout.*module.eval\(\)"):
        load_model(saved(module, (torch.randn(2, 4),), tmp_path / "dropout.pt2"))


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.dense = nn.Embedding(20, 8), nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.dense(self.words(ids)) * mask[..., None]
        return x.reshape(ids.shape[0], ids.shape[1] * 8)


def test_open_dimensions_have_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch, seq = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("seq", min=2, max=64)
    module, dims = Ids(), {0: batch, 1: seq}
    example = (torch.zeros(2, 6, dtype=torch.int64), torch.ones(2, 6))
    path = saved(module, example, tmp_path / "ids.pt2", dynamic_shapes=(dims, dims))
    with pytest.raises(ModelError, match=r"--input-shape ids=2,6 .*--dim s\d+=2 --dim s\d+=6"):
        load_model(path)
    model = load_model(path, dims={"ids.0": 3, "ids.1": 4})
    assert [(i.name, i.shape) for i in model.inputs] == [("ids", (3, 4)), ("mask", (3, 4))]
    expect_right(model, module, (torch.randint(0, 20, (3, 4)), torch.rand(3, 4)))
    with pytest.raises(ModelError, match=r"dimension 0 .* of input 'ids' must be 1 to 8.*got 9"):
        load_model(path, input_shape={"ids": (9, 4)})


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.up = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2, 2)
        self.group, self.dense, self.layer = nn.GroupNorm(2, 4), nn.Linear(4, 6), nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group(self.up(torch.relu(self.norm(self.conv(x))))).flatten(2).transpose(1, 2)
        x = self.layer(self.dense(x))
        return torch.softmax(x @ x.transpose(1, 2) / 4, -1) @ x


class Counter(nn.Module):
    """Counts its runs; the count is an output, or nothing reads it."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.read = read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x * 2 + self.seen if self.read else x * 2


def test_a_network_that_remembers_is_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ModelError, match=r"changes its buffer 'seen'.*an input and an output"):
        load_model(saved(Counter(read=True), (x,), tmp_path / "read.pt2"))
    expect_right(load_model(saved(Counter(read=False), (x,), tmp_path / "unread.pt2")), Counter(read=False), (x,))


class CountsFromTheEnd(nn.Module):
    """Indices below zero: in the code, in constants, and among the inputs."""

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, put = torch.tensor([-1, 0, -2]), x.clone()
        put[i, i, i] = 1.0
        put[:, -1] = 2.0
        return x[:, -1], x[..., -2], x[:, rows], x[i], x[i, i], x[:, -3:-1], torch.narrow(x, 1, -2, 2), put


def test_indices_count_from_the_end(tmp_path: Path) -> None:
    module, inputs = CountsFromTheEnd(), (torch.randn(4, 5, 3), torch.tensor([-1, 2, -3]))
    expect_right(load_model(saved(module, inputs, tmp_path / "end.pt2")), module, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Half().eval().to(dtype), torch.randn(1, 3, 6, 6).to(dtype)
    model = load_model(saved(module, (x,), tmp_path / "half.pt2"))
    assert {model.inputs[0].dtype, model.outputs[0].dtype} == {str(dtype).removeprefix("torch.")}
    if dtype == torch.float16:
        expect_right(model, module, (x,), 5e-3)
        return
    import ml_dtypes

    with torch.no_grad():
        wanted = module(x).float().numpy()
    (found,) = outputs_of(model.mod, [x.float().numpy().astype(ml_dtypes.bfloat16)])
    assert_same([found.astype("float32")], [wanted], 5e-2)


class Steps(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layers, self.dense = kind(4, 6, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.layers(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_say_that_they_take_a_while(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Steps(kind).eval(), torch.randn(1, 3, 4)
    said: list[str] = []
    model = load_model(saved(module, (x,), tmp_path / "steps.pt2"), say=said.append)
    assert f"unrolling {kind.__name__}" in said[0]
    expect_right(model, module, (x,))


def test_what_depends_on_weights_only_is_computed_before_tvm_sees_it() -> None:
    module, x = Steps(nn.GRU).eval(), torch.randn(1, 2, 4)
    program = prepared_program(torch.export.export(module, (x,)), "steps")
    left = [n for n in program.graph.nodes if n.op == "call_function"]
    reached = {n for n in program.graph.nodes if n.op == "placeholder" and n.name == "x"}
    for node in left:
        if set(node.all_input_nodes) & reached:
            reached.add(node)
    assert set(left) <= reached
    with torch.no_grad():
        assert torch.allclose(program.module()(x), module(x), atol=1e-6)


class Scaled(nn.Module):
    def forward(self, batch: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
        return batch["a"] * scale + batch["b"]


def test_numbers_among_the_inputs_are_those_of_the_export(tmp_path: Path) -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    model = load_model(saved(Scaled(), ({"a": x, "b": y}, 2.0), tmp_path / "scaled.pt2"))
    assert_same(outputs_of(model.mod, [x.numpy(), y.numpy()]), [(x * 2 + y).numpy()])
