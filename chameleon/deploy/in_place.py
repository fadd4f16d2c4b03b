"""Kernels that may write their output over an input.

A kernel may take the memory of an input if every element of that input is read only by the statement that writes the same
element of the output, once. `overwriting` then makes a kernel that reads the output's buffer in place of the input's, so that
no two of its pointers name the same memory, which TVM's code generator takes for granted.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.ir import Call, Op
from tvm.ir.expr import TensorLoad, TensorRegion
from tvm.s_tir import SBlock
from tvm.tirx import Buffer, IntImm, PrimFunc
from tvm.tirx.buffer import is_buffer_var
from tvm_ffi import structural_equal, structural_map, structural_walk

_ATTR = "chameleon.may_overwrite"
DATA_PARALLEL = 0  # IterVar.DataPar: every value of the variable is one element of the output


def in_place_inputs(func: PrimFunc, n_inputs: int) -> list[int]:
    """The inputs, by position, whose memory the kernel's first output may take.

    Args:
        func: with the inputs as its first parameters, scheduled or not.
        n_inputs: how many of its parameters are inputs.
    """
    params = list(func.params)
    if len(params) <= n_inputs or not all(map(is_buffer_var, params)):
        return []
    output, blocks = params[n_inputs], blocks_of(func)
    known = int(func.attrs.get(_ATTR, -1)) if func.attrs else -1
    return [i for i, buffer in enumerate(params[:n_inputs]) if i == known or _replaceable(buffer, output, blocks)]


def may_overwrite(func: PrimFunc, position: int) -> PrimFunc:
    """The kernel with the note that its schedule allows its output in the memory of this input."""
    made: Any = func.with_attr(_ATTR, position)
    return made


def overwriting(func: PrimFunc, position: int, n_inputs: int) -> PrimFunc:
    """The kernel that takes one input from where it writes its output; to be called with both in the same memory."""
    old, new = func.params[position], func.params[n_inputs]

    def load(node: TensorLoad) -> Any:
        return tirx.BufferLoad(new, node.indices) if node.source.same_as(old) else node

    def region(node: Any) -> Any:
        return tirx.BufferRegion(new, node.region) if node.source.same_as(old) else node

    return func.with_body(structural_map(func.body, [(TensorLoad, load), (TensorRegion, region)]))


def blocks_of(func: PrimFunc, *, with_root: bool = False) -> list[SBlock]:
    """All blocks of a kernel, its root only if asked for."""
    found: list[SBlock] = []
    structural_walk(func.body, (SBlock, lambda block: found.append(block)))
    return [block for block in found if with_root or block.name_hint != "root"]


def names_elements_only(func: PrimFunc) -> bool:
    """Whether a kernel touches its tensors by indices only, which can be moved, and never by an address."""
    taken: list[str] = []

    def call(node: Call) -> None:
        if isinstance(node.op, Op) and ("address_of" in node.op.name or "access_ptr" in node.op.name):
            taken.append(node.op.name)

    structural_walk(func.body, (Call, call))
    return not taken and not any(block.match_buffers for block in blocks_of(func, with_root=True))


def _replaceable(buffer: Buffer, output: Buffer, blocks: Sequence[SBlock]) -> bool:
    if not alike(buffer, output):
        return False
    readers = [block for block in blocks if any(r.source.same_as(buffer) for r in block.reads)]
    writers = [block for block in blocks if any(r.source.same_as(output) for r in block.writes)]
    if len(readers) != 1 or len(writers) != 1 or not readers[0].same_as(writers[0]):
        return False
    block = readers[0]
    if any(int(v.iter_type) != DATA_PARALLEL for v in block.iter_vars) or len(block.writes) != 1:
        return False
    (written,) = block.writes
    return all(_same_element(read, written) for read in block.reads if read.source.same_as(buffer))


def _same_element(read: Any, written: Any) -> bool:
    pairs = zip(read.region, written.region, strict=True)
    return all(is_one(a.extent) and is_one(b.extent) and structural_equal(a.min, b.min) for a, b in pairs)


def alike(a: Buffer, b: Buffer) -> bool:
    """Whether two buffers have one type and shape."""
    return a.dtype == b.dtype and structural_equal(list(a.shape), list(b.shape))


def is_one(extent: Any) -> bool:
    """Whether an extent is known to be 1."""
    return isinstance(extent, IntImm) and int(extent) == 1
