"""Read a Relax function of operators, before they become kernels, as the graph that identity rewriting works on.

The graph has one node for each operator, and the node has the name of the operator's variable. Sizes are as if every
operator had a kernel of its own, and as if activations and sums were computed in place. So the graph tells where the
identities of `chameleon.serenity.rewrite.identities` apply, and roughly how much they save. Which of them are kept is
decided on the kernels (see `chameleon.memory.rewrite`).
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule, TupleType

from chameleon.ir import is_call, static_shape, tensor_bytes
from chameleon.serenity.graph import Graph, Node

UNARY = frozenset(
    f"relax.{name}"
    for name in (
        *(
            "abs",
            "ceil",
            "clip",
            "cos",
            "erf",
            "exp",
            "floor",
            "log",
            "negative",
            "round",
            "rsqrt",
            "sigmoid",
            "sign",
            "sin",
        ),
        *(
            "sqrt",
            "square",
            "tanh",
            "nn.gelu",
            "nn.gelu_tanh",
            "nn.leakyrelu",
            "nn.relu",
            "nn.relu6",
            "nn.selu",
            "nn.silu",
        ),
        *("nn.softplus",),
    )
)
BINARY = frozenset(
    f"relax.{name}" for name in ("add", "divide", "maximum", "minimum", "multiply", "power", "subtract")
)
POOLS = frozenset(f"relax.nn.{name}" for name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"))
VIEWS = frozenset(f"relax.{name}" for name in ("reshape", "flatten", "expand_dims", "squeeze"))


@dataclass(frozen=True)
class ConcatGraph:
    """A graph, and what its nodes are in the function that it was read from.

    Attributes:
        graph: one node for each binding of an operator; tuples are no nodes, their elements are read directly.
        variables: the variable of each node.
        values: what each variable is bound to.
        axis: the axis of the channels.
    """

    graph: Graph
    variables: dict[str, relax.Var] = field(repr=False)
    values: dict[relax.Var, relax.Expr] = field(repr=False)
    axis: int


def concat_graph(mod: IRModule) -> ConcatGraph | None:
    """Read the graph of `main`; `None` if `main` is not one dataflow block with static shapes."""
    block = _the_block(mod["main"])
    if block is None:
        return None
    main = mod["main"]
    values = {binding.var: binding.value for binding in block.bindings}
    reader = _Reader(values, _channel_axis(values.values()))
    if any(_bytes_of(param.ty) < 0 for param in main.params):
        return None
    for param in main.params:
        reader.read(param, None)
    for var, value in values.items():
        if not isinstance(value, (relax.Tuple, relax.Var, GenericConst)):
            if _bytes_of(var.ty) < 0:
                return None
            reader.read(var, value)
    outputs = dict.fromkeys(reader.leaves(main.body.body))
    inputs = tuple(reader.names[param] for param in main.params)
    graph = Graph(tuple(reader.nodes.values()), inputs, tuple(outputs))
    return ConcatGraph(graph, {name: var for var, name in reader.names.items()}, values, reader.axis)


def without_inputs(graph: Graph) -> Graph:
    """The graph with inputs that take 0 bytes: they belong to the caller, as in the graph of the kernels."""
    given = set(graph.inputs)
    nodes = (
        replace(n, output_bytes=0) if n.name in given else replace(n, in_place="") if n.in_place in given else n
        for n in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def constant_positions(call: Call) -> list[int]:
    """The positions of those arguments of a call that are constants."""
    return [i for i, argument in enumerate(call.args) if isinstance(argument, GenericConst)]


def _the_block(main: relax.Function) -> relax.DataflowBlock | None:
    body = main.body
    if not (
        isinstance(body, relax.SeqExpr) and len(body.blocks) == 1 and isinstance(body.blocks[0], relax.DataflowBlock)
    ):
        return None
    plain = all(isinstance(binding, relax.VarBinding) for binding in body.blocks[0].bindings)
    return body.blocks[0] if plain and isinstance(body.body, (relax.Var, relax.Tuple)) else None


def _channel_axis(values: Any) -> int:
    """The axis of the channels in the layout that most convolutions have; concatenations have it too."""
    axes = Counter(v.attrs.data_layout.index("C") for v in values if is_call(v, "relax.nn.conv2d"))
    return axes.most_common(1)[0][0] if axes else 1


@dataclass
class _Reader:
    values: dict[relax.Var, relax.Expr]
    axis: int
    nodes: dict[str, Node] = field(default_factory=dict)
    names: dict[relax.Var, str] = field(default_factory=dict)

    def read(self, var: relax.Var, value: relax.Expr | None) -> None:
        """Add the node of a variable; a variable without a value is a parameter."""
        name, number = var.name, 1
        while name in self.nodes:
            number += 1
            name = f"{var.name}'{number}"
        self.names[var] = name
        sources = () if value is None else tuple(self.leaves(value))
        op, attrs = ("input", {}) if value is None else self._describe(value)
        owner = (
            self._owner(sources[0])
            if sources and (is_call(value, VIEWS) or isinstance(value, relax.TupleGetItem))
            else ""
        )
        size = _bytes_of(var.ty)
        in_place = ""
        if op in ("unary", "affine", "add", "binary"):
            in_place = next((s for s in dict.fromkeys(sources) if self.nodes[self._owner(s)].output_bytes == size), "")
        self.nodes[name] = Node(
            name, sources, 0 if owner else size, storage=owner, in_place=in_place, op=op, attrs=attrs
        )

    def leaves(self, value: relax.Expr) -> list[str]:
        """The nodes that an expression reads, in order; tuples and aliases are replaced by what they stand for."""
        if isinstance(value, relax.Var):
            if value in self.names:
                return [self.names[value]]
            return self.leaves(self.values[value])
        if isinstance(value, Call):
            return [leaf for argument in value.args for leaf in self.leaves(argument)]
        if isinstance(value, relax.Tuple):
            return [leaf for part in value.fields for leaf in self.leaves(part)]
        if isinstance(value, relax.TupleGetItem):
            return self.leaves(value.tuple_value)
        return []

    def _owner(self, name: str) -> str:
        return self.nodes[name].storage or name

    def _describe(self, value: relax.Expr) -> tuple[str, dict[str, Any]]:
        """`op` and `attrs` of a node, for the rewriting; an operator that it does not know keeps its own name."""
        if not (isinstance(value, Call) and isinstance(value.op, tvm.ir.Op)):
            return "other", {}
        found = self._concat(value) or self._conv(value) or self._elementwise(value)
        return found or (value.op.name, {})

    def _concat(self, call: Call) -> tuple[str, dict[str, Any]] | None:
        if not is_call(call, "relax.concat"):
            return None
        parts = call.args[0]
        while isinstance(parts, relax.Var) and parts in self.values:
            parts = self.values[parts]
        rank = len(static_shape(call.ty) or ())
        if not isinstance(parts, relax.Tuple) or rank != 4 or int(call.attrs.axis) % rank != self.axis:
            return None
        if not all(isinstance(part, relax.Var) for part in parts.fields):
            return None
        channels = [int(part.ty.shape[self.axis]) for part in parts.fields]
        return ("concat", {"channels": channels}) if all(channels) else None  # a part may be empty

    def _conv(self, call: Call) -> tuple[str, dict[str, Any]] | None:
        if not is_call(call, "relax.nn.conv2d") or constant_positions(call) != [1]:
            return None
        attrs, data = call.attrs, call.args[0].ty.shape
        if attrs.data_layout.index("C") != self.axis or attrs.out_layout != attrs.data_layout:
            return None
        if sorted(attrs.kernel_layout) != sorted("OIHW"):
            return None
        groups, into, out = int(attrs.groups), int(data[self.axis]), int(call.ty.shape[self.axis])
        if groups == 1:
            return "conv", {}
        return ("depthwise", {"multiplier": out // into}) if groups == into else None

    def _elementwise(self, call: Call) -> tuple[str, dict[str, Any]] | None:
        if is_call(call, UNARY):
            return "unary", {}
        if is_call(call, POOLS):
            layouts = {str(call.attrs.layout), str(call.attrs.out_layout)}
            channels_last = all(len(text) == 4 and text.index("C") == self.axis for text in layouts)
            return ("pool", {}) if channels_last else None
        if not is_call(call, BINARY):
            return None
        constants = constant_positions(call)
        if not constants:
            alike = all(_is_alike(argument.ty, call.ty) for argument in call.args)
            return ("add" if is_call(call, "relax.add") and alike else "binary"), {}
        shape, rank = call.args[constants[0]].value.numpy().shape, len(call.ty.shape)
        padded = (1,) * (rank - len(shape)) + tuple(shape)
        per_channel = rank == 4 and all(size == 1 or i == self.axis for i, size in enumerate(padded))
        data = call.args[1 - constants[0]]
        return ("affine", {}) if per_channel and static_shape(data.ty) == static_shape(call.ty) else None


def _is_alike(ty: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and type."""
    return (
        static_shape(ty) is not None and static_shape(ty) == static_shape(other) and str(ty.dtype) == str(other.dtype)
    )


def _bytes_of(ty: Any) -> int:
    """Bytes of a value of this type; -1 if its shape is not static."""
    if isinstance(ty, TupleType):
        sizes = [_bytes_of(part) for part in ty.fields]
        return -1 if min(sizes, default=0) < 0 else sum(sizes)
    shape = static_shape(ty)
    return -1 if shape is None else tensor_bytes(shape, ty.dtype)
