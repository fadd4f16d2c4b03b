"""A cell of an irregularly wired network as data: its operators as they were published, and what each makes.

From one `Cell` come the PyTorch module (`chameleon.models.irregular.modules`) and the graph for the memory-aware scheduler
(`cell_graph`), so that both are of the same network.
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
# What a kind is called in the graph (`chameleon.serenity.rewrite.identities` says what it makes of that), and, where its name does
# not say so, what it computes besides. Norms are batch norms.
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
        name: unique in its cell.
        kind: what it computes.
        inputs: names of operators or of the cell's inputs.
        channels: of its output; 0 where the inputs say it (`mean`, `relu`, `add`, `concat`, `depthwise_relu`).
        kernel: size of the convolution's window.
        stride: of the (first) convolution.
        dilation: of the convolution.
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
        name: of the cell.
        inputs: per input its shape.
        operators: each after its inputs.
        output: the operator whose tensor is the result.
    """

    name: str
    inputs: Mapping[str, Shape] = field(hash=False)
    operators: tuple[Operator, ...]
    output: str

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor, inputs included; convolutions are padded so that only strides change height and width."""
        shapes = dict(self.inputs)
        for op in self.operators:
            channels, height, width = shapes[op.inputs[0]]
            if op.kind == "concat":
                channels = sum(shapes[name][0] for name in op.inputs)
            height, width = (-(-size // op.stride) for size in (height, width))
            shapes[op.name] = (op.channels or channels, height, width)
        return shapes


def cell_graph(cell: Cell) -> Graph:
    """The cell as the paper counts it: a node for every published operator, tensors of 32-bit floats, no workspaces.

    What an operator needs inside (the padded input of a convolution, the tensor between the two halves of a separable one) is
    not counted here: it depends on who compiles it, and `chameleon.deploy` counts it there.
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
    """What the rewriting and a reader want to know; what is as usual is left out."""
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
