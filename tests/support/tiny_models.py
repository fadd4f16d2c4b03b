"""Small networks with real batch norms, one for each kind of layer that the importers and layouts must get right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two like convolutions (one task), a residual sum, pooling and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.dense = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.second(self.first(x))
        return self.dense(F.dropout(x.mean(dim=(2, 3)), training=self.training))


class Mobile(nn.Module):
    """Depthwise and grouped convolutions with bias before the norm.

    Also squeeze and excitation, concatenation, max pooling.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.grouped = nn.Sequential(nn.Conv2d(8, 16, 1, groups=2), nn.BatchNorm2d(16), nn.SiLU())
        self.squeeze = nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm2d(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(x)
        y = self.grouped(x)
        y = y * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(y, 1)))
        return F.max_pool2d(self.norm(torch.cat([x, y], 1)), 3, 2, 1)


class Shared(nn.Module):
    """A convolution that its norm and another layer read: folding the norm into it would be wrong for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.up(F.relu(self.norm(y)) + torch.tanh(y))


class Attention(nn.Module):
    """Matrix products, softmax and layer norm, no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(16, 48), nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return x + torch.softmax(q @ k.transpose(-1, -2) / 4.0, dim=-1) @ v


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (1, 3, 16, 16)),
    "mobile": (Mobile, (1, 8, 12, 12)),
    "shared": (Shared, (1, 4, 9, 9)),
    "attention": (Attention, (2, 6, 16)),
}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network in inference mode, and an input.

    Its weights and running statistics are far from the initial ones.
    """
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.running_var):
                    nn.init.uniform_(tensor, 0.5, 2.0)  # type: ignore[arg-type]
                for tensor in (layer.bias, layer.running_mean):
                    nn.init.uniform_(tensor, -1.0, 1.0)  # type: ignore[arg-type]
        return module.eval(), torch.randn(shape)


def save_pt2(name: str, path: Path, **export: object) -> Path:
    """Write a network with `torch.export.save`."""
    module, x = network(name)
    torch.export.save(torch.export.export(module, (x,), **export), path)  # type: ignore[arg-type]
    return path


def save_onnx(name: str, path: Path, **export: object) -> Path:
    """Write a network as ONNX, batch norms unfolded."""
    module, x = network(name)
    keep = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the newer exporter needs onnxscript
        torch.onnx.export(module, (x,), path, dynamo=False, input_names=["x"], **keep, **export)  # type: ignore[arg-type]
    return path


def reference(name: str, x: np.ndarray) -> np.ndarray:
    """What PyTorch computes."""
    with torch.no_grad():
        return network(name)[0](torch.from_numpy(x)).numpy()
