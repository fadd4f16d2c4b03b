"""Prepare programs of `torch.export` for TVM's importer, which takes some wrongly or slowly. Does not need TVM.

A program becomes static and functional, what depends on weights only is computed, and what is random is refused.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from chameleon.models.errors import ModelError, first_line
from chameleon.models.shapes import GivenShapes, static_shapes
from chameleon.models.sizes import check_bytes, check_size

FOLD_LIMIT_BYTES = 1 << 24
"""A constant that is larger than what it is computed from is kept as an operator from this size on."""

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_HALF = (torch.float16, torch.bfloat16)
aten = torch.ops.aten

_TRAINED_NORMS = (aten._native_batch_norm_legit_functional.default, aten._native_batch_norm_legit.default)
_NORMS = (aten.native_layer_norm, aten.native_group_norm)  # PyTorch computes them in 32 bits, TVM in 16 or not at all
_APART = (aten.addmm, *_NORMS)
"""What is decomposed further in half precision; TVM's importer sums `addmm` in 32 bits, whatever its bias."""


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Read a `.pt2` file.

    Raises:
        ModelError: if the file is not such a program, cannot be read, or is larger than the memory.
    """
    try:
        # `ZipFile` fails if the file is no archive; torch would log a traceback.
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            check_bytes(path.name, "it unpacked", sum(part.file_size for part in archive.infolist()))
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path}: expected a program that torch.export.save wrote, but the file is something else, is cut off, "
            f"or was written by another torch than {torch.__version__}: {first_line(error)}"
        ) from error


def static_program(
    program: torch.export.ExportedProgram, name: str, given: GivenShapes
) -> tuple[torch.export.ExportedProgram, dict[str, tuple[int, ...]]]:
    """The program with static shapes, and the shapes of its inputs by name.

    Raises:
        UsageError: if there is no such input or open dimension.
        ModelError: if a dimension stays open, the program does not take a size, or an input is larger than the memory.
    """
    declared = _declared_shapes(program)
    shapes = static_shapes(name, declared, given, _example_shapes(program))
    for of_input, shape in shapes.items():
        check_size(name, f"input {of_input!r}", shape)
    if all(isinstance(d, int) for dims in declared.values() for d in dims):
        return program, shapes
    _check_ranges(name, program, declared, shapes)
    flat = [_example(program, user, shapes) for user in program.graph_signature.user_inputs]
    assert program.call_spec.in_spec is not None
    args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            fixed = torch.export.export(program.module(check_guards=False), args, kwargs)
    except Exception as error:
        raise ModelError(f"{name}: PyTorch cannot fix the input shapes {shapes}: {first_line(error)}") from error
    return fixed, shapes


def prepared_program(program: torch.export.ExportedProgram, name: str) -> torch.export.ExportedProgram:
    """The program in the operators that TVM's importer takes rightly.

    Raises:
        ModelError: if the program is random, remembers something from one run to the next, or has a tensor that is
            larger than the memory.
    """
    _refuse_huge(program, name)
    table = torch.export.default_decompositions()
    types = {_dtype(node) for node in program.graph.nodes}
    if types & set(_HALF):
        table.update(get_decompositions(_APART))
    table[aten.var_mean.correction] = _variance_and_mean
    if torch.bfloat16 in types:
        table[aten._native_batch_norm_legit_no_training.default] = _batch_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = program.run_decompositions(table)
    _drop_constant_arguments(program)
    _refuse_randomness(program, name)
    _refuse_state(program, name)
    _split_half_biases(program)
    _count_from_the_start(program.graph)
    _fold_constants(program)
    return program


def _refuse_huge(program: torch.export.ExportedProgram, name: str) -> None:
    for node in program.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape):
                check_size(name, f"tensor {node.name!r}", tuple(value.shape), value.element_size())


def _variance_and_mean(
    x: torch.Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`var_mean`, which TVM's importer does not know, as the two operators that it knows."""
    return aten.var.correction(x, dim, correction=correction, keepdim=keepdim), aten.mean.dim(x, dim, keepdim)


def _batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch norm in inference mode as arithmetic in 32 bits: TVM's takes no bfloat16."""
    shape = [1, -1, *[1] * (x.dim() - 2)]
    scale = torch.rsqrt(variance.float() + eps) * (1.0 if weight is None else weight.float())
    shift = (0.0 if bias is None else bias.float()) - mean.float() * scale
    result = (x.float() * scale.view(shape) + shift.view(shape)).to(x.dtype)
    return result, x.new_empty(0), x.new_empty(0)


def _drop_constant_arguments(program: torch.export.ExportedProgram) -> None:
    """Remove the inputs that are numbers or texts: the program was exported for one value of each."""
    specs = program.graph_signature.input_specs
    constants = {s.arg.name for s in specs if isinstance(s.arg, ConstantArgument)}
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in constants and not node.users:
            program.graph.erase_node(node)
    specs[:] = [s for s in specs if s.arg.name not in constants]


def output_metas(program: torch.export.ExportedProgram) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Name, shape and type of each output that is a tensor."""
    names = [
        spec.arg.name
        for spec in program.graph_signature.output_specs
        if spec.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT) and isinstance(spec.arg, TensorArgument)
    ]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [(n, tuple(int(d) for d in values[n].shape), values[n].dtype) for n in names]


def place_of(node: torch.fx.Node) -> str:
    """An operator, its name in the program, and the line of code that it comes from, if that is known."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
    where = f" ({Path(lines[-1][0]).name}:{lines[-1][1]})" if lines else ""
    return f"{node.target} at {node.name!r}{where}"


def _dtype(node: torch.fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _declared_shapes(program: torch.export.ExportedProgram) -> dict[str, list[int | str]]:
    """The dimensions of the user's inputs, by name; an open dimension is the text of its symbol."""
    users = {str(user) for user in program.graph_signature.user_inputs}
    shapes: dict[str, list[int | str]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in users and isinstance(node.meta.get("val"), torch.Tensor):
            shapes[node.name] = [d if isinstance(d, int) else str(d) for d in node.meta["val"].shape]
    return shapes


def _example_shapes(program: torch.export.ExportedProgram) -> dict[str, tuple[int, ...]]:
    """The shapes that the program was exported with, by input name; empty if the file does not have them."""
    if program.example_inputs is None:
        return {}
    values = pytree.tree_leaves(program.example_inputs)
    names = program.graph_signature.user_inputs
    return {str(n): tuple(v.shape) for n, v in zip(names, values, strict=False) if isinstance(v, torch.Tensor)}


def _example(program: torch.export.ExportedProgram, user: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """A value for an input: zeros for a tensor, the value that the program was exported with for anything else."""
    if user not in shapes:
        return user
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == user)
    return torch.zeros(shapes[user], dtype=node.meta["val"].dtype)


def _check_ranges(
    name: str,
    program: torch.export.ExportedProgram,
    declared: Mapping[str, Sequence[int | str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse sizes that the program was not exported for."""
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    for user, dims in declared.items():
        for i, (dim, size) in enumerate(zip(dims, shapes[user], strict=True)):
            bounds = ranges.get(str(dim)) if isinstance(dim, str) else None
            if bounds is not None and not bounds.lower <= size <= bounds.upper:
                raise ModelError(
                    f"{name}: dimension {i} ({dim!r}) of input {user!r} must be {bounds.lower} to {bounds.upper}, "
                    f"the program was exported for no other, got {size}"
                )


def _refuse_randomness(program: torch.export.ExportedProgram, name: str) -> None:
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags and not _no_dropout(node):
            raise ModelError(
                f"{name}: the network is random: {place_of(node)}; a compiled network is not. "
                "If it is a dropout, export the module after module.eval()"
            )


def _refuse_state(program: torch.export.ExportedProgram, name: str) -> None:
    """Refuse a program whose outputs depend on a buffer that each run changes. Other changes are left out."""
    signature = program.graph_signature
    kept = {spec.arg.name for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT}
    wanted = [n for n in program.graph.output_node().all_input_nodes if n.name in kept]
    read: set[torch.fx.Node] = set()
    while wanted:
        node = wanted.pop()
        if node not in read:
            read.add(node)
            statistics = node.args[3:5] if node.target in _TRAINED_NORMS else ()  # read for the new ones only
            wanted += [n for n in node.all_input_nodes if n not in statistics]
    changed = set(signature.buffers_to_mutate.values())
    buffers = signature.inputs_to_buffers
    if state := sorted(buffers[n.name] for n in read if buffers.get(n.name) in changed):
        raise ModelError(
            f"{name}: each run changes its buffer {', '.join(map(repr, state))} and the next one reads it; a compiled "
            "network remembers nothing, so export it with this state as an input and an output"
        )


def _no_dropout(node: torch.fx.Node) -> bool:
    """Whether a dropout is not in training mode, or an attention drops nothing out."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if "scaled_dot_product" in str(node.target):
        return bool(given.get("dropout_p", 0.0) == 0.0)
    return given.get("train", given.get("training")) is False


def _count_from_the_start(graph: torch.fx.Graph) -> None:
    """Replace indices that count from the end: TVM's `take` reads before the tensor's first element for those."""
    for node in list(graph.find_nodes(op="call_function", target=aten.select.int)):
        data, dim, index = node.args
        if index < 0:
            node.update_arg(2, index + data.meta["val"].shape[dim])
    for target in (aten.index.Tensor, aten.index_put.default):
        for node in list(graph.find_nodes(op="call_function", target=target)):
            shape = node.args[0].meta["val"].shape
            with graph.inserting_before(node):
                node.update_arg(1, [_from_the_start(graph, i, n) for i, n in zip(node.args[1], shape, strict=False)])


def _from_the_start(graph: torch.fx.Graph, index: torch.fx.Node | None, size: int) -> torch.fx.Node | None:
    """`index`, or `index + size` where that is negative; None and truth values stay as they are."""
    if index is None or _dtype(index) not in (torch.int32, torch.int64):
        return index
    value = index.meta["val"]
    negative = graph.call_function(aten.lt.Scalar, (index, 0))
    shifted = graph.call_function(aten.add.Tensor, (index, size))
    counted = graph.call_function(aten.where.self, (negative, shifted, index))
    negative.meta["val"], shifted.meta["val"], counted.meta["val"] = value < 0, value + size, value
    return counted


def _split_half_biases(program: torch.export.ExportedProgram) -> None:
    """Add the biases of half-precision convolutions apart, because TVM's importer has their sums in 32 bits."""
    graph = program.graph
    for node in list(graph.find_nodes(op="call_function", target=aten.convolution.default)):
        bias = node.args[2]
        if bias is None or _dtype(node) not in _HALF:
            continue
        rank = node.meta["val"].dim()
        with graph.inserting_after(node):
            shaped = graph.call_function(aten.view.default, (bias, [1, -1, *[1] * (rank - 2)]))
        with graph.inserting_after(shaped):
            total = graph.call_function(aten.add.Tensor, (node, shaped))
        shaped.meta["val"] = bias.meta["val"].view(1, -1, *[1] * (rank - 2))
        total.meta.update(node.meta)
        node.replace_all_uses_with(total, delete_user_cb=lambda user, new=total: user is not new)
        node.update_arg(2, None)
    for spec in program.graph_signature.output_specs:
        _rename_output(spec, program)


def _rename_output(spec: Any, program: torch.export.ExportedProgram) -> None:
    """Bring an output's name in the signature up to date with the graph."""
    position = program.graph_signature.output_specs.index(spec)
    node = program.graph.output_node().args[0][position]  # type: ignore[index]
    if isinstance(spec.arg, TensorArgument) and isinstance(node, torch.fx.Node):
        spec.arg = TensorArgument(name=node.name)


def _fold_constants(program: torch.export.ExportedProgram) -> None:
    """Compute what depends on weights only, with PyTorch; TVM would compile a kernel for each such operator."""
    graph, values = program.graph, _weights(program)
    for node in list(graph.nodes):
        if node.op == "call_function" and all(n in values for n in node.all_input_nodes):
            value = _evaluated(node, values)
            if value is not None:
                values[node] = value
    folded = {n: v for n, v in values.items() if n.op == "call_function" and isinstance(v, torch.Tensor)}
    first = next(iter(graph.nodes))
    for node, value in folded.items():
        if not all(user in values for user in node.users):
            _become_constant(program, node, value, first)
    for node in reversed(list(graph.nodes)):
        if node in values and node.op == "call_function" and not node.users:
            graph.erase_node(node)


def _weights(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, Any]:
    """The tensors that belong to the program, by placeholder."""
    tensors = {**dict(program.named_buffers()), **dict(program.named_parameters()), **program.constants}
    specs = program.graph_signature.input_specs
    known = {s.arg.name: tensors[s.target] for s in specs if s.kind in _CONSTANTS and s.target is not None}
    return {
        n: known[n.name].detach()
        for n in program.graph.find_nodes(op="placeholder")
        if n.name in known and isinstance(known[n.name], torch.Tensor) and known[n.name].layout == torch.strided
    }


def _evaluated(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> Any:
    """The value of an operator on constants; `None` if it cannot be computed or is large."""
    operands = [values[n] for n in node.all_input_nodes]
    size = sum(_bytes(v) for v in pytree.tree_leaves(node.meta.get("val")))
    if not size and "getitem" not in str(node.target):
        return None
    if size > max(FOLD_LIMIT_BYTES, sum(_bytes(v) for v in pytree.tree_leaves(operands))):
        return None
    try:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])  # type: ignore[misc]
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # what PyTorch cannot compute here stays an operator
        return None


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _become_constant(
    program: torch.export.ExportedProgram, node: torch.fx.Node, value: torch.Tensor, first: torch.fx.Node
) -> None:
    """Replace an operator by a constant of the program."""
    with program.graph.inserting_before(first):
        constant = program.graph.placeholder(f"folded_{node.name}")
    constant.meta["val"] = node.meta["val"]
    program.constants[constant.name] = value.contiguous().clone()
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=constant.name), constant.name)
    program.graph_signature.input_specs.insert([*program.graph.nodes].index(constant), spec)
    node.replace_all_uses_with(constant)
    for output in program.graph_signature.output_specs:
        _rename_output(output, program)
