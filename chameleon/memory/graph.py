"""Read a Relax function as a graph for the memory-aware scheduler: every kernel call is a node.

How each part of the function is counted:

- A **call of a kernel** (`call_tir`, `call_dps_packed`) is a node. Its tensor takes the bytes of its shape. If one
  call makes several tensors, they lie in one piece of memory and are freed together. Each begins at a multiple of
  `ALIGNMENT`.
- A **call of a packed function** (`call_pure_packed`) is a node as well, but its tensor takes 0 bytes: the function
  allocates it itself, outside of the arena. The result may be a view of an argument, so who reads it counts as a
  reader of the arguments too.
- **Reshapes, tuples, elements of tuples, and second names of a variable** move no data, so they are not nodes. A
  kernel that reads one of them counts as a reader of the tensors behind it.
- **Tensors whose shape is known at run time only** take 0 bytes: TVM allocates them when the network runs, outside of
  the arena. What tells their shape (`tensor_to_shape`, `match_cast`) moves no data, and counts as a reader does.
- **Constants** are the weights. They are in memory before and after the run, and are not counted.
- **Parameters** belong to the caller and take 0 bytes. If `count_inputs` is set, they count as TFLite counts them:
  from the beginning until their last reader.
- **Workspaces** that a kernel gets from outside (`chameleon.memory.workspaces`) count while the kernel runs.
- **Outputs** are planned like every other tensor, and live to the end.
- **Parts of a concatenation that copies nothing** lie in the memory of the concatenation
  (`chameleon.memory.placed_concats`).
- **In place**: a node notes which input its output may overwrite (`chameleon.kernels.in_place`).
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tvm import relax
from tvm.ir import Call, GenericConst, GlobalVar, IRModule, TupleType
from tvm.ir.expr import StringImm
from tvm.tirx import FloatImm, IntImm, PrimFunc

from chameleon.ir import is_call, operator_name, static_shape, tensor_bytes
from chameleon.kernels.in_place import in_place_inputs, overwriting
from chameleon.kernels.optional import if_possible
from chameleon.memory.placed_concats import placed_inputs
from chameleon.memory.workspaces import n_workspaces
from chameleon.serenity.graph import Graph, GraphError, Node

WAY_OUT = "TVM can plan its memory itself: compile it without --memory-aware"

ALIGNMENT = 64
"""Tensors begin at multiples of this many bytes: TVM's kernels and its zero-copy views need that."""

_KERNEL_CALLS = ("relax.call_tir", "relax.call_dps_packed")
_PACKED_CALL = "relax.call_pure_packed"
_NO_TENSOR = (GenericConst, relax.ShapeExpr, relax.ExternFunc, IntImm, FloatImm, StringImm)
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
    """The kernel call of one node.

    Attributes:
        binding: the variable of the call, and the call.
        outputs: the tensors that the call makes.
        workspaces: the workspaces that the call gets. In the Relax function they are its last outputs.
    """

    binding: Any = field(repr=False, compare=False)
    outputs: tuple[TensorType, ...]
    workspaces: tuple[TensorType, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each output begins in the node's memory, in bytes."""
        return _offsets(self.outputs)[:-1]

    @property
    def workspace_offsets(self) -> tuple[int, ...]:
        """Where each workspace begins in the node's workspace, in bytes."""
        return _offsets(self.workspaces)[:-1]

    @property
    def output_bytes(self) -> int:
        return _offsets(self.outputs)[-1]

    @property
    def workspace_bytes(self) -> int:
        return _offsets(self.workspaces)[-1]


@dataclass(frozen=True)
class Extracted:
    """A graph, and the kernel calls that its nodes come from.

    Attributes:
        graph: the graph of the function `main`.
        calls: the kernel call of every step, by name of the step.
        block: the dataflow block that holds the calls.
        unplanned: the variables of tensors that are allocated when the network runs, outside of the arena.
        arguments: by name of the step, the nodes behind the arguments of its call; `None` for a constant.
    """

    graph: Graph
    calls: dict[str, KernelCall]
    block: Any = field(repr=False, compare=False)
    arguments: dict[str, list[Any]] = field(repr=False, compare=False)
    unplanned: tuple[str, ...] = ()

    def argument(self, name: str, source: str) -> int:
        """The position of the tensor of node `source` among the arguments of the call of node `name`."""
        return self.arguments[name].index(source)


def extract_graph(mod: IRModule, name: str = "main", *, count_inputs: bool = False) -> Extracted:
    """Read the graph of a module's function `main`, whose body is one dataflow block of kernel calls.

    Args:
        name: the network's name, for messages.
        count_inputs: whether the memory of the inputs counts; by default it belongs to the caller and does not count.

    Raises:
        GraphError: if the memory of the function is not static: inputs or views of dynamic shape, control flow, or
            calls of other functions. The message names the variable.
    """
    main = mod["main"] if "main" in [v.name_hint for v in mod.get_global_vars()] else None
    if not isinstance(main, relax.Function):
        raise GraphError(f"{name}: expected a Relax function `main`, found none")
    return _Extractor(mod, name, count_inputs).run(main)


class _Extractor:
    """Walks the block once and notes in `tensors`, for every variable, the nodes that its tensors belong to."""

    def __init__(self, mod: IRModule, name: str, count_inputs: bool) -> None:
        self.mod, self.name, self.count_inputs = mod, name, count_inputs
        self.nodes: list[Node] = []
        self.calls: dict[str, KernelCall] = {}
        self.tensors: dict[Any, Any] = {}  # variable -> node's name, None for a constant, or a list of these
        self.arguments: dict[str, list[Any]] = {}
        self.replaceable: dict[str, list[str]] = {}
        self.inside: dict[str, str] = {}  # node -> the concatenation that its tensor lies in
        self.names: set[str] = set()
        self.sizes: dict[Any, Any] = {}  # symbolic dimension -> the nodes behind the tensor that tells it
        self.unplanned: list[str] = []

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
        return Extracted(graph, self.calls, block, self.arguments, tuple(self.unplanned))

    def _input(self, param: Any) -> list[str]:
        """Add a node for each tensor of a parameter, and return the names of these nodes."""
        place = f"{self.name}: input `{param.name}`"
        made = []
        for ty in _tensor_types(_flat(param.ty), place):
            made.append(self._unique(param.name))
            self.nodes.append(Node(made[-1], (), ty.size_bytes if self.count_inputs else 0, op="input"))
        self.tensors[param] = made if isinstance(param.ty, TupleType) else made[0]
        return made

    def _binding(self, binding: Any) -> None:
        place = f"{self.name}: `{binding.var.name}`"
        value = binding.value
        if not isinstance(binding, relax.VarBinding):
            self.sizes |= dict.fromkeys(symbolic_dims(binding), self._behind(value, place))
        if is_call(value, _PACKED_CALL):
            self._packed(binding, value, place)
        elif is_kernel_call(value):
            self._kernel(binding, value, place)
        else:
            self.tensors[binding.var] = self._behind(value, place)

    def _packed(self, binding: Any, call: Call, place: str) -> None:
        """Add a node for a packed function that allocates its result."""
        types = _flat(binding.var.ty)
        arguments = [self._behind(argument, place) for argument in call.args[1:]]
        sources = tuple(dict.fromkeys(_leaves(arguments)))
        node = Node(self._unique(binding.var.name), sources, op=str(call.args[0].global_symbol))
        self.nodes.append(node)
        self.calls[node.name] = KernelCall(binding, (), ())
        self.arguments[node.name] = arguments
        self.unplanned.append(node.name)
        held = [node.name, *sources]
        self.tensors[binding.var] = [held] * len(types) if isinstance(binding.var.ty, TupleType) else held

    def _kernel(self, binding: Any, call: Call, place: str) -> None:
        callee = call.args[0]
        func = self.mod[callee] if isinstance(callee, GlobalVar) else None
        leaves = _flat(binding.var.ty)
        n_work = n_workspaces(func) if isinstance(func, PrimFunc) else 0
        n_out = len(leaves) - n_work
        planned = [ty for ty in leaves[:n_out] if static_shape(ty) is not None]
        made = KernelCall(binding, _tensor_types(planned, place), _tensor_types(leaves[n_out:], place))
        arguments = self._behind(call.args[1], place)
        arguments = arguments if isinstance(arguments, list) else [arguments]
        told = [self.sizes.get(size) for size in symbolic_dims(binding)]
        self.unplanned += [binding.var.name] * (len(planned) < n_out)
        op = callee.name_hint if isinstance(callee, GlobalVar) else str(callee.global_symbol)
        node = Node(
            self._unique(binding.var.name),
            tuple(dict.fromkeys(_leaves([arguments, told]))),
            made.output_bytes,
            made.workspace_bytes,
            op=op,
            attrs={"shapes": [list(t.shape) for t in made.outputs], "dtype": str(leaves[0].dtype)},
        )
        self.nodes.append(node)
        self.calls[node.name] = made
        self.arguments[node.name] = arguments
        self.replaceable[node.name] = self._replaceable(func, arguments, made)
        self.inside |= {arguments[i]: node.name for i in (placed_inputs(func) if isinstance(func, PrimFunc) else ())}
        self.tensors[binding.var] = [node.name] * len(leaves) if isinstance(binding.var.ty, TupleType) else node.name

    def _replaceable(self, func: Any, arguments: Sequence[Any], made: KernelCall) -> list[str]:
        """The nodes whose memory the output of this call may take: inputs of the call."""
        if not isinstance(func, PrimFunc) or len(made.outputs) != 1:
            return []
        names = [
            arguments[i] for i in if_possible("in place", made.binding.var.name, partial(_over, func, arguments), [])
        ]
        read = Counter(_leaves(arguments))
        known = [n for n in names if isinstance(n, str) and n in self.calls and read[n] == 1]
        return [
            n for n in known if len(self.calls[n].outputs) == 1 and self.calls[n].output_bytes == made.output_bytes
        ]

    def _with_in_place(self) -> tuple[Node, ...]:
        """The nodes; each notes at most one input to overwrite: the one with the fewest readers."""
        readers = Counter(source for node in self.nodes for source in node.inputs)
        chosen = {name: min(known, key=lambda n: readers[n]) for name, known in self.replaceable.items() if known}
        return tuple(dataclasses.replace(node, in_place=chosen.get(node.name, "")) for node in self.nodes)

    def _with_storage(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """The nodes, where the parts of concatenations note whose memory they lie in.

        A part lies in the memory of the outermost concatenation around it. Parts neither overwrite nor are
        overwritten.
        """
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
        if isinstance(value, _NO_TENSOR) or is_call(value, "relax.null_value"):
            return None
        if isinstance(value, relax.Tuple):
            return [self._behind(part, place) for part in value.fields]
        if isinstance(value, relax.TupleGetItem):
            return self._behind(value.tuple_value, place)[int(value.index)]
        if is_call(value, "relax.tensor_to_shape"):
            return self._behind(value.args[0], place)
        if is_call(value, _VIEWS):
            _tensor_types([value.ty], place)
            return self._behind(value.args[0], place)
        raise GraphError(f"{place}: {_unsupported(value)}")

    def _unique(self, name: str) -> str:
        """A name for a node that no other node has: variables may share a name, nodes may not."""
        number, found = 1, name
        while found in self.names:
            found, number = f"{name}_{number}", number + 1
        self.names.add(found)
        return found


def _over(func: PrimFunc, arguments: Sequence[Any]) -> list[int]:
    """The positions of the inputs that a kernel may overwrite; raises if no kernel that does so can be made."""
    found = in_place_inputs(func, len(arguments))
    for position in found:
        overwriting(func, position, len(arguments))
    return found


def _only_block(name: str, main: relax.Function) -> Any:
    blocks = list(main.body.blocks) if isinstance(main.body, relax.SeqExpr) else []
    for block in blocks:
        for binding in block.bindings:
            if isinstance(getattr(binding, "value", None), relax.If):
                raise GraphError(
                    f"{name}: `{binding.var.name}` is a branch (If); only straight dataflow can be ordered. {WAY_OUT}"
                )
    if not blocks:
        return relax.DataflowBlock([])
    if len(blocks) != 1 or not isinstance(blocks[0], relax.DataflowBlock):
        kinds = ", ".join(
            "dataflow" if isinstance(b, relax.DataflowBlock) else f"{len(b.bindings)} bindings" for b in blocks
        )
        raise GraphError(
            f"{name}: expected one dataflow block, got {len(blocks)} blocks ({kinds or 'none'}). {WAY_OUT}"
        )
    return blocks[0]


def is_kernel_call(value: Any) -> bool:
    """Whether an expression is a step of the graph: a call of a kernel, whether TVM made the kernel or not."""
    return is_call(value, (*_KERNEL_CALLS, _PACKED_CALL))


def _unsupported(value: Any) -> str:
    if isinstance(value, Call) and isinstance(value.op, GlobalVar):
        return f"it calls the function `{value.op.name_hint}`; expected kernels only (inline it first). {WAY_OUT}"
    if isinstance(value, Call):
        what = operator_name(value) or str(value.op)
        expected = "expected kernel calls (call_tir) and views: legalise the module first"
        return f"unsupported operator {what}; {expected}. {WAY_OUT}"
    return f"unsupported expression {type(value).__name__}. {WAY_OUT}"


def symbolic_dims(binding: Any) -> list[Any]:
    """The dimensions in the type of a binding's variable, and in the arguments of its call, that run time tells."""
    types = [binding.var.ty, *(a.ty for a in getattr(binding.value, "args", ()) if isinstance(a, relax.ShapeExpr))]
    return [var for ty in types for var in relax.analysis.tir_vars_in_type(ty)]


def _flat(ty: Any) -> list[Any]:
    """The types in a type, where tuples are flattened."""
    return [leaf for part in ty.fields for leaf in _flat(part)] if isinstance(ty, TupleType) else [ty]


def _tensor_types(types: Sequence[Any], place: str) -> tuple[TensorType, ...]:
    return tuple(_tensor_type(ty, place) for ty in types)


def _tensor_type(ty: Any, place: str) -> TensorType:
    dims = static_shape(ty)
    if dims is None:
        raise GraphError(
            f"{place} has no static shape, got {ty}; memory can be planned for static shapes only. {WAY_OUT}"
        )
    return TensorType(dims, str(ty.dtype))


def _leaves(tensors: Any) -> Iterator[str]:
    if isinstance(tensors, list):
        for part in tensors:
            yield from _leaves(part)
    elif tensors is not None:
        yield tensors


def _offsets(types: Sequence[TensorType]) -> tuple[int, ...]:
    """Where each of several tensors begins in their common memory, in bytes; the last number is the size of all."""
    offsets, end = [], 0
    for ty in types:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(begin)
        end = begin + ty.size_bytes
    return (*offsets, end)
