#!/usr/bin/env python3
"""Write the small networks of the zoos in `configs`, with random weights: two ONNX files and an exported program.

    python -m scripts.models.zoo_networks [--out configs/networks]

They are narrow residual and mobile networks for images of 32 x 32. The residual ones have convolutions in common with
each other and with `resnet20_cifar10`. The same PyTorch writes the same files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from chameleon.cli import guarded
from scripts.models.make import save_onnx, save_program
from scripts.models.modules import Module

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").splitlines()[0])


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its norm."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, 3, stride), nn.ReLU(), conv(outputs, outputs, 3))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def head(channels: int, classes: int) -> list[nn.Module]:
    """From the last image to the classes."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def residual(blocks: int, classes: int) -> nn.Module:
    """As ResNet-20 begins: stages of 16 and 32 channels."""
    layers: list[nn.Module] = [conv(3, 16, 3), nn.ReLU()]
    for inputs, outputs, stride in ((16, 16, 1), (16, 32, 2)):
        layers += [Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1) for i in range(blocks)]
    return nn.Sequential(*layers, *head(32, classes))


def mobile(classes: int) -> nn.Module:
    """Depthwise and pointwise convolutions in turns."""
    layers: list[nn.Module] = [conv(3, 16, 3), nn.ReLU6()]
    for inputs, outputs, stride in ((16, 24, 2), (24, 48, 2), (48, 48, 1)):
        layers += [conv(inputs, inputs, 3, stride, inputs), nn.ReLU6(), conv(inputs, outputs, 1), nn.ReLU6()]
    return nn.Sequential(*layers, *head(48, classes))


def image() -> tuple[Tensor]:
    """An input of all these networks."""
    return (torch.randn(1, 3, 32, 32),)


NAMES = (("image",), ("classes",))
FILES = {
    "resnet10_narrow.onnx": Module(lambda: residual(2, 10), image, onnx=NAMES),
    "mobile_narrow.onnx": Module(lambda: mobile(10), image, onnx=NAMES),
    "resnet6_narrow.pt2": Module(lambda: residual(1, 100), image),
}


@app.command()
def main(out: Annotated[Path, typer.Option(help="Folder of the files.")] = Path("configs/networks")) -> None:
    """Write the files."""
    out.mkdir(parents=True, exist_ok=True)
    for name, module in FILES.items():
        path = (save_onnx if name.endswith(".onnx") else save_program)(module, out / name)
        print(f"{path.stat().st_size:>9} {path}")


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
