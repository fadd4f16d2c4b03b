"""Questions about a kernel and its tensors."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from typing import Any

from tvm.ir import Call, Op, TensorLoad
from tvm.s_tir import SBlock
from tvm.tirx import Buffer, BufferStore, IntImm, PrimFunc
from tvm.tirx.buffer import is_buffer_var
from tvm_ffi import structural_equal, structural_walk

from chameleon.ir import static_shape, tensor_bytes

STACK_BYTES = 1024
"""TVM's code generator puts allocations of a kernel that are smaller than this on the stack (`kMaxStackAlloca`)."""


def blocks_of(func: PrimFunc, *, with_root: bool = False) -> list[SBlock]:
    """All blocks of a kernel; the root block is left out unless `with_root` is set."""
    found: list[SBlock] = []
    structural_walk(func.body, (SBlock, lambda block: found.append(block)))
    return [block for block in found if with_root or block.name_hint != "root"]


def names_elements_only(func: PrimFunc) -> bool:
    """Whether a kernel uses its tensors only by indices, which can be moved, and never by an address."""
    taken: list[str] = []

    def call(node: Call) -> None:
        if isinstance(node.op, Op) and ("address_of" in node.op.name or "access_ptr" in node.op.name):
            taken.append(node.op.name)

    structural_walk(func.body, (Call, call))
    return not taken and not any(block.match_buffers for block in blocks_of(func, with_root=True))


def only_moves(func: PrimFunc) -> bool:
    """Whether a kernel only moves data: it writes all that it reads, unchanged, perhaps to other places."""
    values: list[Any] = []
    structural_walk(func.body, (BufferStore, lambda store: values.append(store.value)))
    shapes = [static_shape(p) for p in func.params if is_buffer_var(p)]
    if len(shapes) != 2 or not all(isinstance(value, TensorLoad) for value in values):
        return False
    read, written = shapes
    return read is not None and written is not None and math.prod(read) == math.prod(written)


def alike(a: Buffer, b: Buffer) -> bool:
    """Whether two buffers have the same type and shape."""
    return a.dtype == b.dtype and structural_equal(list(a.shape), list(b.shape))


def is_one(extent: Any) -> bool:
    """Whether an extent is known to be 1."""
    return isinstance(extent, IntImm) and int(extent) == 1


def size_bytes(buffer: Buffer) -> int | None:
    """Bytes of a buffer; `None` if its shape is not static."""
    dims = static_shape(buffer)
    return None if dims is None else tensor_bytes(dims, buffer.dtype)


def takes_heap(buffer: Buffer) -> bool:
    """Whether a kernel that allocates this buffer asks the runtime for memory.

    It does so for what is too large for the stack, for buffers without elements, and for all that has another scope
    than `global`: TVM's code generator for CPUs has no place of its own for `local` and the others.
    """
    size = size_bytes(buffer)
    return size is not None and (size == 0 or size >= STACK_BYTES or buffer.scope() != "global")


def dims_of(buffer: Buffer) -> list[int]:
    """The shape of a buffer whose shape is static."""
    return [int(d) for d in buffer.shape]
