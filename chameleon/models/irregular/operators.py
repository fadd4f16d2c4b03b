"""Describe a cell of an irregularly wired network as data: its operators as they were published, and their tensors.

Two things are made from one `Cell`: the PyTorch module (`chameleon.models.irregular.modules`), and the graph for the
memory-aware scheduler (`cell_graph`). So both describe the same network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from chameleon.serenity.graph import Graph, Node

Kind = Literal[
    "randwire", "mean", "sep_conv", "dil_conv", "relu_conv", "conv_relu", "depthwise_relu", "relu", "add", "concat"
]
Shape = tuple[int, int, int]
"""Channels, height, width of a tensor; the batch is 1."""

FLOAT_BYTES = 4
# For each kind: its `op` in the graph, and attributes that say what it computes if the name does not. A norm is a
# batch norm. `chameleon.serenity.rewrite.identities` says what the values of `op` mean for the rewriting.
_OPS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "randwire": ("randwire", {"computes": "weighted sum, relu, separable convolution, norm"}),
    "mean": ("mean", {}),
    "sep_conv": ("sep_conv", {"computes": "relu, depthwise, pointwise, norm; twice"}),
    "dil_conv": ("dil_conv", {"computes": "relu, dilated depthwise, pointwise, norm"}),
    "relu_conv": ("conv", {"before": "relu", "after": "norm"}),
    "conv_relu": ("conv", {"after": "norm, relu"}),
    "depthwise_relu": ("depthwise", {"after": "norm, relu"}),
    "relu": ("unary", {"function": "relu"}),
    "add": ("add", {}),
    "concat": ("concat", {}),
}


@dataclass(frozen=True)
class Operator:
    """One published operator, which makes one tensor.

    Attributes:
        name: a name that is unique in the cell.
        kind: what the operator computes.
        inputs: names of operators or of the cell's inputs.
        channels: channels of the output; 0 if the inputs fix them (`mean`, `relu`, `add`, `concat`, `depthwise_relu`).
        kernel: height and width of the convolution's window.
        stride: stride of the convolution; of the first one if there are several.
        dilation: dilation of the convolution.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    channels: int = 0
    kernel: int = 1
    stride: int = 1
    dilation: int = 1


@dataclass(frozen=True)
class Cell:
    """Operators in the order in which the published code runs them.

    Attributes:
        name: the name of the cell.
        inputs: the shape of each input, by name.
        operators: the operators; each comes after those that it reads.
        output: the name of the operator whose tensor is the result.
    """

    name: str
    inputs: Mapping[str, Shape] = field(hash=False)
    operators: tuple[Operator, ...]
    output: str

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor, by name, with the inputs.

        Convolutions are padded so that only strides change height and width.
        """
        shapes = dict(self.inputs)
        for op in self.operators:
            channels, height, width = shapes[op.inputs[0]]
            if op.kind == "concat":
                channels = sum(shapes[name][0] for name in op.inputs)
            height, width = (-(-size // op.stride) for size in (height, width))
            shapes[op.name] = (op.channels or channels, height, width)
        return shapes


def cell_graph(cell: Cell) -> Graph:
    """The graph of a cell as the paper counts it: a node for every published operator, tensors of 32-bit floats.

    There are no workspaces. An operator may need memory inside, such as the padded input of a convolution, or the
    tensor between the two halves of a separable convolution. This is not counted here, because it depends on the
    compiler. `chameleon.memory` counts it on the compiled kernels.
    """
    nodes = [Node(name, (), _bytes(shape), op="input") for name, shape in cell.inputs.items()]
    nodes += [
        Node(op.name, op.inputs, _bytes(cell.shapes[op.name]), op=_OPS[op.kind][0], attrs=_attrs(cell, op))
        for op in cell.operators
    ]
    return Graph(tuple(nodes), tuple(cell.inputs), (cell.output,), cell.name)


def _bytes(shape: Shape) -> int:
    return math.prod(shape) * FLOAT_BYTES


def _attrs(cell: Cell, op: Operator) -> dict[str, Any]:
    """The attributes that the rewriting and a human reader need; usual values (stride 1, dilation 1) are left out."""
    attrs = dict(_OPS[op.kind][1])
    if op.kind == "concat":
        attrs["channels"] = [cell.shapes[name][0] for name in op.inputs]
    if op.kind in ("relu_conv", "conv_relu", "depthwise_relu", "sep_conv", "dil_conv", "randwire"):
        attrs |= {
            "in_channels": cell.shapes[op.inputs[0]][0],
            "out_channels": cell.shapes[op.name][0],
            "kernel": op.kernel,
        }
    attrs |= {key: value for key in ("stride", "dilation") if (value := getattr(op, key)) != 1}
    return attrs
