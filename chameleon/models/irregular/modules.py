"""Make PyTorch modules of cells, with random weights that are the same for every version of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from chameleon.models.irregular.operators import Cell, Operator


def cell_module(cell: Cell, rng: np.random.Generator) -> nn.Module:
    """Make a module of a cell, in inference mode.

    The `forward` of the module takes the inputs of the cell by their names, `[1, channels, height, width]` each.

    Weights are drawn with numpy. They are scaled so that activations keep their size from layer to layer. The
    statistics of batch norms are not 0 and 1, so that wrong folding of batch norms shows.
    """
    with torch.random.fork_rng(devices=[]):  # constructors draw weights of their own
        module = _FORWARD[tuple(cell.inputs)](cell)
    _draw_weights(module, rng)
    return module.eval()


class CellModule(nn.Module):
    """Runs a cell's operators one after the other."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell
        self.operators = nn.ModuleDict({op.name: _MAKE[op.kind](cell, op) for op in cell.operators})

    def run(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """The result of the cell for these inputs, which are given by name."""
        for op in self.cell.operators:
            values[op.name] = self.operators[op.name](*(values[name] for name in op.inputs))
        return values[self.cell.output]


class _OneInput(CellModule):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run({"x": x})


class _TwoInputs(CellModule):
    def forward(self, s0: torch.Tensor, s1: torch.Tensor) -> torch.Tensor:
        return self.run({"s0": s0, "s1": s1})


# torch.export takes the names of the inputs from the signature.
_FORWARD: dict[tuple[str, ...], type[CellModule]] = {("x",): _OneInput, ("s0", "s1"): _TwoInputs}


class WeightedSum(nn.Module):
    """Sum of the inputs with weights in (0, 1).

    In Xie 2019 a weight is the sigmoid of a learned number. Here the result of the sigmoid is kept.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n), requires_grad=False)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) == 1:
            return inputs[0]
        total = inputs[0] * self.weight(0)
        for i, x in enumerate(inputs[1:], start=1):
            total = total + x * self.weight(i)
        return total

    def weight(self, i: int) -> float:
        """The weight of input `i`: a constant at inference."""
        return self._weights[i]

    def freeze(self) -> None:
        """Compute the weights once, as plain numbers, so that the sigmoid is not part of the traced network."""
        self._weights = [float(w) for w in torch.sigmoid(self.logits)]


class Sum(nn.Module):
    """Plain sum of two inputs."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Mean(nn.Module):
    """Average of the inputs."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return total * (1 / len(inputs)) if len(inputs) > 1 else total


class Concat(nn.Module):
    """Concatenation along the channels."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat(inputs, dim=1)


class RandWireNode(nn.Sequential):
    """A node of RandWire: weighted sum, ReLU, separable convolution, batch norm (Xie 2019, sec. 3.1)."""

    def __init__(self, n_inputs: int, in_channels: int, op: Operator) -> None:
        super().__init__(*_separable(in_channels, op.channels, op))
        self.sum = WeightedSum(n_inputs)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        x = self.sum(*inputs)
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def _separable(in_channels: int, out_channels: int, op: Operator, stride: int | None = None) -> list[nn.Module]:
    """The layers of a separable convolution: ReLU, depthwise convolution, pointwise convolution, batch norm."""
    stride = op.stride if stride is None else stride
    padding = op.dilation * (op.kernel - 1) // 2
    depthwise = nn.Conv2d(
        in_channels, in_channels, op.kernel, stride, padding, op.dilation, groups=in_channels, bias=False
    )
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(out_channels)]


def _sep_conv(cell: Cell, op: Operator) -> nn.Module:
    """The `sep_conv` of DARTS: two separable convolutions, the first with the stride (Liu 2019)."""
    c = cell.shapes[op.inputs[0]][0]
    return nn.Sequential(*_separable(c, c, op), *_separable(c, op.channels, op, stride=1))


def _conv(cell: Cell, op: Operator) -> nn.Conv2d:
    c = cell.shapes[op.inputs[0]][0]
    groups = c if op.kind == "depthwise_relu" else 1
    return nn.Conv2d(c, op.channels or c, op.kernel, op.stride, (op.kernel - 1) // 2, groups=groups, bias=False)


def _conv_relu(cell: Cell, op: Operator) -> nn.Module:
    return nn.Sequential(_conv(cell, op), nn.BatchNorm2d(cell.shapes[op.name][0]), nn.ReLU())


_MAKE: dict[str, Callable[[Cell, Operator], nn.Module]] = {
    "randwire": lambda cell, op: RandWireNode(len(op.inputs), cell.shapes[op.inputs[0]][0], op),
    "mean": lambda cell, op: Mean(),
    "sep_conv": _sep_conv,
    "dil_conv": lambda cell, op: nn.Sequential(*_separable(cell.shapes[op.inputs[0]][0], op.channels, op)),
    "relu_conv": lambda cell, op: nn.Sequential(nn.ReLU(), _conv(cell, op), nn.BatchNorm2d(op.channels)),
    "conv_relu": _conv_relu,
    "depthwise_relu": _conv_relu,
    "relu": lambda cell, op: nn.ReLU(),
    "add": lambda cell, op: Sum(),
    "concat": lambda cell, op: Concat(),
}


def _draw_weights(module: nn.Module, rng: np.random.Generator) -> None:
    """Fill all parameters and statistics with random numbers, in the order of the modules."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = math.prod(layer.weight.shape[1:])
            gain = 2.0 if layer.groups > 1 else 1.0  # in these cells a depthwise convolution follows a ReLU
            _fill(layer.weight, rng.normal(0, math.sqrt(gain / fan_in), layer.weight.shape))
        elif isinstance(layer, nn.BatchNorm2d):
            n = layer.num_features
            _fill(layer.weight, rng.uniform(0.8, 1.2, n))
            _fill(layer.bias, rng.normal(0, 0.1, n))
            _fill(layer.running_mean, rng.normal(0, 0.1, n))
            _fill(layer.running_var, rng.uniform(0.8, 1.2, n))
        elif isinstance(layer, WeightedSum):
            _fill(layer.logits, rng.normal(0, 1, layer.logits.shape))
            layer.freeze()
    module.requires_grad_(False)


def _fill(tensor: torch.Tensor | None, values: np.ndarray) -> None:
    assert tensor is not None  # batch norms keep their statistics here
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(values.astype(np.float32)))
