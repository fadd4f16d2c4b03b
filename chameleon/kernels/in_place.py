"""Kernels that may write their output over an input.

There are three ways in which a kernel may do so:

- **Element by element**: each element of the input is read once, and only by the statement that writes the same
  element of the output (`in_place_inputs`).
- **Pixel by pixel**: all channels of a pixel are summed up before one of them is written (`pixelwise_input`).
- **Row by row**: each row of the input is copied before it is overwritten (`padded_input`, `row_loop`, `rolls`).

`overwriting` then makes a kernel that reads the output's buffer instead of the input's. So no two pointers that the
kernel uses name the same memory. TVM's code generator relies on that.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir import Range
from tvm.s_tir import SBlock, Schedule
from tvm.s_tir.dlight.analysis.common_analysis import get_sblockrealize
from tvm.sym import Analyzer
from tvm.tirx import Buffer, IntImm, IterVar, PrimFunc
from tvm.tirx.buffer import is_buffer_var
from tvm_ffi import structural_equal, structural_map, structural_walk

from chameleon.ir import element_bytes
from chameleon.kernels.buffers import with_buffers
from chameleon.kernels.inspect import STACK_BYTES, alike, blocks_of, is_one

_MAY_OVERWRITE = "chameleon.may_overwrite"
DATA_PARALLEL = 0  # IterVar.DataPar: every value of the variable is one element of the output


def in_place_inputs(func: PrimFunc, n_inputs: int) -> list[int]:
    """The positions of those inputs whose memory the kernel's first output may take.

    Args:
        func: a kernel with the inputs as its first parameters, scheduled or not.
        n_inputs: how many of its parameters are inputs.
    """
    params = list(func.params)
    if len(params) <= n_inputs or not all(map(is_buffer_var, params)):
        return []
    output, blocks = params[n_inputs], blocks_of(func)
    known = int(func.attrs.get(_MAY_OVERWRITE, -1)) if func.attrs else -1
    return [i for i, buffer in enumerate(params[:n_inputs]) if i == known or _replaceable(buffer, output, blocks)]


def may_overwrite(func: PrimFunc, position: int) -> PrimFunc:
    """The kernel with a note that, with its schedule, its output may lie in the memory of this input."""
    made: Any = func.with_attr(_MAY_OVERWRITE, position)
    return made


def overwriting(func: PrimFunc, position: int, n_inputs: int) -> PrimFunc:
    """Make the kernel read one input from the buffer of its output.

    It must be called with that input and the output in the same memory.
    """
    return func.with_body(with_buffers(func.body, {func.params[position]: func.params[n_inputs]}))


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
    if block.init is not None:  # a reduction of one element still writes its first value before it reads
        return False
    (written,) = block.writes
    return all(_same_element(read, written) for read in block.reads if read.source.same_as(buffer))


def _same_element(read: Any, written: Any) -> bool:
    pairs = zip(read.region, written.region, strict=True)
    return all(is_one(a.extent) and is_one(b.extent) and structural_equal(a.min, b.min) for a, b in pairs)


_ROLLING = "chameleon.rolling"

_OPAQUE = 4  # IterVar.Opaque: the values of the variable have an order

_ROW_AXIS, _RANK = 1, 4  # in the layout NHWC


def with_rolling(func: PrimFunc, rolling: PrimFunc) -> PrimFunc:
    """The kernel with a second kernel attached, `rolling`, which computes the same row by row."""
    made: Any = func.with_attr(_ROLLING, rolling)
    return made


def rolling_of(func: PrimFunc) -> PrimFunc | None:
    """The attached kernel that computes the same row by row; `None` if there is none."""
    return func.attrs.get(_ROLLING) if func.attrs else None


def without_rolling(func: PrimFunc) -> PrimFunc:
    """The kernel without the attached row-by-row kernel."""
    made: Any = func.without_attr(_ROLLING)
    return made


def pixelwise_input(sch: Schedule, reduction: Any, store: Any = None) -> int | None:
    """The position of the parameter that a kernel may overwrite pixel by pixel; `None` if there is none.

    The caller must then schedule the kernel so that all channels of a pixel are summed up before one of them is
    written.

    Args:
        sch: the schedule of the kernel, before loops are moved.
        reduction: the block that sums up.
        store: the block that makes the output from the sums, element by element; `None` if the reduction writes the
            output.
    """
    func, block = sch.mod["main"], sch.get(reduction)
    blocks = [block] if store is None else [block, sch.get(store)]
    if not all(_follows_its_output(sch, rv) for rv in (reduction, store) if rv is not None):
        return None
    (sums,), (written,) = block.writes, blocks[-1].writes
    if not written.source.same_as(func.params[-1]) or _pixel_bytes(written.source) >= STACK_BYTES:
        return None
    if store is not None and not _reads_own_element(blocks[-1], sums.source):
        return None
    for position, buffer in enumerate(func.params[:-1]):
        reads = [(b, read) for b in blocks for read in b.reads if read.source.same_as(buffer)]
        if (
            alike(buffer, written.source)
            and len(reads) == 1
            and reads[0][0] is block
            and _same_pixel(block, reads[0][1])
        ):
            return position
    return None


def padded_input(sch: Schedule, pad: Any) -> int | None:
    """The position of an image that only this block reads; `None` if there is none.

    The image is a parameter of the kernel, in layout NHWC, with a batch of 1 and the shape of the kernel's output.

    Args:
        pad: a block that copies, perhaps with a border around the copy.
    """
    func, block = sch.mod["main"], sch.get(pad)
    others = [sch.get(rv) for rv in sch.get_child_blocks(sch.get_sblock("root"))]
    others = [other for other in others if other.name_hint != block.name_hint]
    for position, buffer in enumerate(func.params[:-1]):
        if len(buffer.shape) == _RANK and alike(buffer, func.params[-1]) and is_one(buffer.shape[0]):
            here = [read for read in block.reads if read.source.same_as(buffer)]
            elsewhere = [read for other in others for read in other.reads if read.source.same_as(buffer)]
            if len(here) == 1 and not elsewhere:
                return position
    return None


def row_loop(sch: Schedule, store: Any) -> Any:
    """The loop over the rows of an NHWC output; `None` if the block `store` does not write its axes in this order."""
    loops = sch.get_loops(store)
    return loops[_ROW_AXIS] if len(loops) == _RANK and _follows_its_output(sch, store) else None


def rolls(sch: Schedule, pad: Any, rows: Any) -> bool:
    """Whether no row of the input is overwritten before it is copied, if every row is copied once.

    Let k be the number of rows that one row of the output reads, and p the number of rows of padding above the input.
    At row h of the output, the block needs rows h to h + k - 1 of the padded input, where row r is row r - p of the
    input. All these rows but the last were already copied at row h - 1. The last one is row h + k - 1 - p of the
    input, which is not yet overwritten if p < k.

    Args:
        pad: the block that copies, computed inside the loop over the output's rows.
        rows: that loop.
    """
    block, values, h = sch.get(pad), get_sblockrealize(sch, pad).iter_values, sch.get(rows).loop_var
    if (
        len(block.iter_vars) != _RANK
    ):  # such as a transpose that was inlined into the copy: its rows are not the image's
        return False
    analyzer = Analyzer()
    for loop in map(sch.get, sch.get_loops(pad)):
        if not loop.loop_var.same_as(h):
            analyzer.bind(loop.loop_var, Range.from_min_extent(loop.min, loop.extent))
    if any(_uses(value, h) for axis, value in enumerate(values) if axis != _ROW_AXIS):
        return False
    (read,) = (r for r in block.reads if r.source.same_as(sch.mod["main"].params[padded_input(sch, pad)]))
    borders = [
        analyzer.const_int_bound(analyzer.simplify(v.var - r.min))
        for v, r in zip(block.iter_vars, read.region, strict=True)
    ]
    window = analyzer.const_int_bound(analyzer.simplify(values[_ROW_AXIS] - h))
    constant = all(0 <= bound.min_value == bound.max_value for bound in borders)
    return constant and window.min_value == 0 < window.max_value and borders[_ROW_AXIS].max_value <= window.max_value


def with_data_parallel_readers(func: PrimFunc, pad: str) -> PrimFunc:
    """Mark all blocks but `pad` as independent of the order of their rows; `pad` fills the rolling buffer.

    `rolling_buffer` marks the blocks that read the buffer as dependent on that order, too. Then TVM would keep what
    these blocks compute inside the loop over rows in tensors as large as the output.
    """

    def data_parallel(v: IterVar) -> IterVar:
        return IterVar(v.dom, v.var, DATA_PARALLEL) if int(v.iter_type) == _OPAQUE else v

    def block(node: SBlock) -> SBlock:
        if node.name_hint == pad:
            return node
        variables = list(map(data_parallel, node.iter_vars))
        rest = (node.reads, node.writes, node.name_hint, node.body, node.init)
        return SBlock(variables, *rest, node.alloc_buffers, node.match_buffers, node.annotations)

    return func.with_body(structural_map(func.body, [(SBlock, block)]))


def _follows_its_output(sch: Schedule, rv: Any) -> bool:
    """Whether a block writes its output in the order of the axes: the loops around it follow the axes one by one."""
    block = sch.get(rv)
    if len(block.writes) != 1:
        return False
    loops = iter(sch.get(loop).loop_var for loop in sch.get_loops(rv))
    bound = {v.var: value for v, value in zip(block.iter_vars, get_sblockrealize(sch, rv).iter_values, strict=True)}
    for axis in block.writes[0].region:
        value = bound.get(axis.min, axis.min)
        if not is_one(axis.extent) or not (isinstance(value, IntImm) or any(value.same_as(var) for var in loops)):
            return False
    return True


def _reads_own_element(block: SBlock, buffer: Buffer) -> bool:
    """Whether a block reads only that element of this buffer that has the indices of the element that it writes."""
    reads = [read for read in block.reads if read.source.same_as(buffer)]
    written = [axis.min for axis in block.writes[0].region]
    return all(structural_equal([axis.min for axis in read.region], written) for read in reads)


def _same_pixel(block: SBlock, read: Any) -> bool:
    """Whether a block reads the pixel that it writes: all indices but the last one are the same."""
    analyzer = Analyzer()
    for v in block.iter_vars:
        analyzer.bind(v.var, v.dom)
    pairs = list(zip(read.region, block.writes[0].region, strict=True))[:-1]
    return all(is_one(a.extent) and analyzer.can_prove_equal(a.min, b.min) for a, b in pairs)


def _uses(value: Any, var: Any) -> bool:
    found: list[Any] = []
    structural_walk(value, (type(var), lambda node: found.append(node) if node.same_as(var) else None))
    return bool(found)


def _pixel_bytes(buffer: Buffer) -> int:
    """Bytes of the elements along the last axis; if these are not known, `STACK_BYTES`: too large for the stack."""
    if not buffer.shape:
        return element_bytes(buffer.dtype)
    size = buffer.shape[-1]
    return int(size) * element_bytes(buffer.dtype) if isinstance(size, IntImm) else STACK_BYTES
