"""A cell as a PyTorch module, with random weights that are the same for every version of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from chameleon.models.irregular.operators import Cell, Operator


def cell_module(cell: Cell, rng: np.random.Generator) -> nn.Module:
    """The cell in inference mode; its `forward` takes the cell's inputs, `[1, channels, height, width]` each, by their names.

    Weights are drawn with numpy and scaled so that activations keep their size from layer to layer; batch norms have
    statistics that are not 0 and 1, so that folding them is put to the test.
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
        """The result of the cell for its inputs, by name."""
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
    """Sum of the inputs with weights in (0, 1) (Xie 2019: the sigmoid of a learned number, here kept after the sigmoid)."""

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
        """The weight of input i: a constant at inference."""
        return self._weights[i]

    def freeze(self) -> None:
        """Compute the weights once; they must not be traced."""
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
    """Weighted sum - ReLU - separable convolution - batch norm (Xie 2019, sec. 3.1)."""

    def __init__(self, n_inputs: int, in_channels: int, op: Operator) -> None:
        super().__init__(*_separable(in_channels, op.channels, op))
        self.sum = WeightedSum(n_inputs)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        x = self.sum(*inputs)
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def _separable(in_channels: int, out_channels: int, op: Operator, stride: int | None = None) -> list[nn.Module]:
    """ReLU - depthwise - pointwise - batch norm."""
    stride = op.stride if stride is None else stride
    padding = op.dilation * (op.kernel - 1) // 2
    depthwise = nn.Conv2d(
        in_channels, in_channels, op.kernel, stride, padding, op.dilation, groups=in_channels, bias=False
    )
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(out_channels)]


def _sep_conv(cell: Cell, op: Operator) -> nn.Module:
    """DARTS's: the separable convolution twice, the stride in the first (Liu 2019)."""
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
    """Fill all parameters and statistics, in the order of the modules."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = math.prod(layer.weight.shape[1:])
            gain = 2.0 if layer.groups > 1 else 1.0  # a depthwise convolution stands behind a ReLU here
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
