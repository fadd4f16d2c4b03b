"""A Relax function as a graph of the memory-aware scheduler: every kernel call is a node.

What counts as what:

- A **call of a kernel** (`call_tir`, `call_dps_packed`) is a node; its tensor takes the bytes of its shape. Several tensors of
  one call lie in one piece of memory, each from a multiple of `ALIGNMENT`, and are freed together.
- **Reshapes, tuples and their elements, and names of other names** move no data: they are no nodes; who reads them reads the
  tensors behind them.
- **Constants** are the weights: they are in memory before and after, and are not counted.
- **Parameters** belong to the caller and take 0 bytes, unless `count_inputs` is set: then they count as TFLite counts them,
  from the beginning until their last reader.
- **Workspaces** that a kernel gets from outside (`chameleon.memory.workspaces`) count while it runs.
- **Outputs** are planned like every other tensor and live to the end.
- **Parts of a concatenation that copies nothing** lie in its memory (`chameleon.memory.placed_concats`).
- **In place**: a kernel whose output may take the memory of an input says so (`chameleon.kernels.in_place`).
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import relax
from tvm.ir import Call, GenericConst, GlobalVar, IRModule, TupleType
from tvm.tirx import PrimFunc

from chameleon.ir import is_call, operator_name, static_shape, tensor_bytes
from chameleon.kernels.in_place import in_place_inputs
from chameleon.memory.placed_concats import placed_inputs
from chameleon.memory.workspaces import n_workspaces
from chameleon.serenity.graph import Graph, GraphError, Node

ALIGNMENT = 64
"""Tensors begin at multiples of this many bytes: what TVM's kernels and its zero-copy views need."""

_KERNEL_CALLS = ("relax.call_tir", "relax.call_dps_packed")
_VIEWS = ("relax.reshape", "relax.memory.view", "relax.memory.ensure_zero_offset")


@dataclass(frozen=True)
class TensorType:
    """Shape and type of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        return tensor_bytes(self.shape, self.dtype)


@dataclass(frozen=True)
class KernelCall:
    """One node's call: its variable, its outputs and, last among them, its workspaces."""

    binding: Any = field(repr=False, compare=False)
    outputs: tuple[TensorType, ...]
    workspaces: tuple[TensorType, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of each output in the node's memory."""
        return _offsets(self.outputs)[:-1]

    @property
    def workspace_offsets(self) -> tuple[int, ...]:
        """Of each workspace in the node's workspace."""
        return _offsets(self.workspaces)[:-1]

    @property
    def output_bytes(self) -> int:
        return _offsets(self.outputs)[-1]

    @property
    def workspace_bytes(self) -> int:
        return _offsets(self.workspaces)[-1]


@dataclass(frozen=True)
class Extracted:
    """A graph and where its nodes come from.

    Attributes:
        graph: of the function `main`.
        calls: for every step of the graph its kernel call.
        block: the dataflow block that they stand in.
        arguments: for every step the nodes behind its call's arguments, `None` for constants.
    """

    graph: Graph
    calls: dict[str, KernelCall]
    block: Any = field(repr=False, compare=False)
    arguments: dict[str, list[Any]] = field(repr=False, compare=False)

    def argument(self, name: str, source: str) -> int:
        """The position of a node's tensor among the arguments of another's call."""
        return self.arguments[name].index(source)


def extract_graph(mod: IRModule, name: str = "main", *, count_inputs: bool = False) -> Extracted:
    """The graph of a module's function `main`, whose body is one dataflow block of kernel calls.

    Args:
        name: of the network, for messages.
        count_inputs: whether the inputs' memory counts; by default it is the caller's.

    Raises:
        GraphError: on what has no static memory: dynamic shapes, control flow, calls of other functions. The message names the
            variable.
    """
    main = mod["main"] if "main" in [v.name_hint for v in mod.get_global_vars()] else None
    if not isinstance(main, relax.Function):
        raise GraphError(f"{name}: expected a Relax function `main`, found none")
    return _Extractor(mod, name, count_inputs).run(main)


class _Extractor:
    """Walks the block once; `tensors` knows for every variable the nodes that its tensors belong to."""

    def __init__(self, mod: IRModule, name: str, count_inputs: bool) -> None:
        self.mod, self.name, self.count_inputs = mod, name, count_inputs
        self.nodes: list[Node] = []
        self.calls: dict[str, KernelCall] = {}
        self.tensors: dict[Any, Any] = {}  # variable -> node's name, None for a constant, or a list of these
        self.arguments: dict[str, list[Any]] = {}
        self.replaceable: dict[str, list[str]] = {}
        self.inside: dict[str, str] = {}  # node -> the concatenation that its tensor lies in
        self.names: set[str] = set()

    def run(self, main: relax.Function) -> Extracted:
        block = _only_block(self.name, main)
        inputs = [self._input(param) for param in main.params]
        for binding in block.bindings:
            self._binding(binding)
        outputs = dict.fromkeys(_leaves(self._behind(main.body.body, "the result")))
        graph = Graph(
            self._with_storage(self._with_in_place()),
            tuple(i for leaves in inputs for i in leaves),
            tuple(outputs),
            self.name,
        )
        return Extracted(graph, self.calls, block, self.arguments)

    def _input(self, param: Any) -> list[str]:
        """A node for each tensor of a parameter."""
        place = f"{self.name}: input `{param.name}`"
        made = []
        for ty in _tensor_types(param.ty, place):
            made.append(self._unique(param.name))
            self.nodes.append(Node(made[-1], (), ty.size_bytes if self.count_inputs else 0, op="input"))
        self.tensors[param] = made if isinstance(param.ty, TupleType) else made[0]
        return made

    def _binding(self, binding: Any) -> None:
        place = f"{self.name}: `{binding.var.name}`"
        if not isinstance(binding, relax.VarBinding):
            raise GraphError(f"{place} is a match_cast, a shape known at run time only; expected static shapes")
        value = binding.value
        if is_kernel_call(value):
            self._kernel(binding, value, place)
        else:
            self.tensors[binding.var] = self._behind(value, place)

    def _kernel(self, binding: Any, call: Call, place: str) -> None:
        callee = call.args[0]
        func = self.mod[callee] if isinstance(callee, GlobalVar) else None
        all_types = _tensor_types(binding.var.ty, place)
        n_work = n_workspaces(func) if isinstance(func, PrimFunc) else 0
        n_out = len(all_types) - n_work
        made = KernelCall(binding, tuple(all_types[:n_out]), tuple(all_types[n_out:]))
        arguments = self._behind(call.args[1], place)
        arguments = arguments if isinstance(arguments, list) else [arguments]
        op = callee.name_hint if isinstance(callee, GlobalVar) else str(callee.global_symbol)
        node = Node(
            self._unique(binding.var.name),
            tuple(dict.fromkeys(_leaves(arguments))),
            made.output_bytes,
            made.workspace_bytes,
            op=op,
            attrs={"shapes": [list(t.shape) for t in made.outputs], "dtype": made.outputs[0].dtype},
        )
        self.nodes.append(node)
        self.calls[node.name] = made
        self.arguments[node.name] = arguments
        self.replaceable[node.name] = self._replaceable(func, arguments, made)
        self.inside |= {arguments[i]: node.name for i in (placed_inputs(func) if isinstance(func, PrimFunc) else ())}
        self.tensors[binding.var] = (
            [node.name] * len(all_types) if isinstance(binding.var.ty, TupleType) else node.name
        )

    def _replaceable(self, func: Any, arguments: Sequence[Any], made: KernelCall) -> list[str]:
        """The inputs whose memory the output may take."""
        if not isinstance(func, PrimFunc) or len(made.outputs) != 1:
            return []
        names = [arguments[i] for i in in_place_inputs(func, len(arguments))]
        known = [n for n in names if isinstance(n, str) and n in self.calls and arguments.count(n) == 1]
        return [
            n for n in known if len(self.calls[n].outputs) == 1 and self.calls[n].output_bytes == made.output_bytes
        ]

    def _with_in_place(self) -> tuple[Node, ...]:
        """The nodes, each with the one input to overwrite that the fewest others read."""
        readers = Counter(source for node in self.nodes for source in node.inputs)
        chosen = {name: min(known, key=lambda n: readers[n]) for name, known in self.replaceable.items() if known}
        return tuple(dataclasses.replace(node, in_place=chosen.get(node.name, "")) for node in self.nodes)

    def _with_storage(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """The nodes, those that lie in a concatenation in the memory of the outermost; nothing overwrites them."""
        found = []
        for node in nodes:
            owner = node.name
            while owner in self.inside:
                owner = self.inside[owner]
            in_place = "" if owner != node.name or node.in_place in self.inside else node.in_place
            found.append(dataclasses.replace(node, storage=owner if owner != node.name else "", in_place=in_place))
        return tuple(found)

    def _behind(self, value: Any, place: str) -> Any:
        """The nodes behind an expression that moves no data."""
        if isinstance(value, relax.Var):
            if value not in self.tensors:
                raise GraphError(f"{place} reads `{value.name}`, which is not bound before it")
            return self.tensors[value]
        if isinstance(value, (GenericConst, relax.ShapeExpr)):
            return None
        if isinstance(value, relax.Tuple):
            return [self._behind(part, place) for part in value.fields]
        if isinstance(value, relax.TupleGetItem):
            return self._behind(value.tuple_value, place)[int(value.index)]
        if isinstance(value, Call) and operator_name(value) in _VIEWS:
            _tensor_types(value.ty, place)
            return self._behind(value.args[0], place)
        raise GraphError(f"{place}: {_unsupported(value)}")

    def _unique(self, name: str) -> str:
        """Variables may share a name; nodes may not."""
        number, found = 1, name
        while found in self.names:
            found, number = f"{name}_{number}", number + 1
        self.names.add(found)
        return found


def _only_block(name: str, main: relax.Function) -> Any:
    blocks = list(main.body.blocks) if isinstance(main.body, relax.SeqExpr) else []
    for block in blocks:
        for binding in block.bindings:
            if isinstance(getattr(binding, "value", None), relax.If):
                raise GraphError(
                    f"{name}: `{binding.var.name}` is a branch (If); only straight dataflow can be scheduled"
                )
    if len(blocks) != 1 or not isinstance(blocks[0], relax.DataflowBlock):
        kinds = ", ".join(
            "dataflow" if isinstance(b, relax.DataflowBlock) else f"{len(b.bindings)} bindings" for b in blocks
        )
        raise GraphError(f"{name}: expected one dataflow block, got {len(blocks)} blocks ({kinds or 'none'})")
    return blocks[0]


def is_kernel_call(value: Any) -> bool:
    """Whether an expression is a step of the graph: a call of a kernel, made by TVM or by others."""
    return is_call(value, _KERNEL_CALLS)


def _unsupported(value: Any) -> str:
    if isinstance(value, Call) and isinstance(value.op, GlobalVar):
        return f"it calls the function `{value.op.name_hint}`; expected kernels only (inline it first)"
    if isinstance(value, Call):
        what = operator_name(value) or str(value.op)
        return f"unsupported operator {what}; expected kernel calls (call_tir) and views: legalise the module first"
    return f"unsupported expression {type(value).__name__}"


def _tensor_types(ty: Any, place: str) -> list[TensorType]:
    """The tensors of a type, tuples flattened."""
    if isinstance(ty, TupleType):
        return [t for part in ty.fields for t in _tensor_types(part, place)]
    dims = static_shape(ty)
    if dims is None:
        raise GraphError(f"{place} has no static shape, got {ty}; memory can be planned for static shapes only")
    return [TensorType(dims, str(ty.dtype))]


def _leaves(tensors: Any) -> Iterator[str]:
    if isinstance(tensors, list):
        for part in tensors:
            yield from _leaves(part)
    elif tensors is not None:
        yield tensors


def _offsets(types: Sequence[TensorType]) -> tuple[int, ...]:
    """Where each of several tensors begins in their common memory, and the size of all."""
    offsets, end = [], 0
    for ty in types:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(begin)
        end = begin + ty.size_bytes
    return (*offsets, end)
