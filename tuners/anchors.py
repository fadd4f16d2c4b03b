"""Which workloads have the same main block, so that a schedule of one is a schedule of the other.

TVM calls the main block the anchor block: the reduction with the most arithmetic (`find_anchor_sblock`). MetaSchedule
can take workloads with equal anchor blocks for equal (`module_equality="anchor-block"`), and it applies the trace of
one to the other (`schedule_using_anchor_trace`). The first part is used here. In place of the second, the decisions of
one workload are taken in the design space of the other (docs/decisions/0013-one-search-per-anchor.md).
"""

# pyright: reportAttributeAccessIssue=false
# (TVM's attributes come from C++ and have no types)
from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from tvm.ir import IRModule
from tvm.s_tir.analysis import find_anchor_sblock
from tvm_ffi import structural_hash

from tuners.trace_space import TraceSpace

AROUND = ("GetSBlock", "GetConsumers", "ComputeInline", "ReverseComputeInline", "CacheWrite")
"""Instructions that get hold of the blocks around the anchor block, or inline them.

A convolution with nothing behind it gets a cached output. With a ReLU behind it, the ReLU's block has that place. All
instructions that tile, move and annotate are the same.
"""


def anchor_key(mod: IRModule, traces: TraceSpace) -> str | None:
    """A hash that two workloads share if they have equal anchor blocks, and the same digits mean the same for both.

    The anchor blocks are compared by structure: loops, shapes, types, accesses and arithmetic, no names. Of the spaces
    of knobs, the values of the knobs and the order of the instructions must be equal.

    Args:
        traces: the space of the workload.

    Returns:
        16 hexadecimal digits; they are the same in every process. None if the workload has no reduction.
    """
    block = find_anchor_sblock(mod)
    if block is None:
        return None
    knobs = [[knob.kind, [str(v) for v in knob.values]] for knob in traces.space.knobs]
    active = [row.nonzero()[0].tolist() for row in traces.space.active]
    outlines = [_outline(json.loads(signature)) for signature in traces.signatures]
    parts = [structural_hash(block, map_free_vars=True), knobs, active, outlines]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _outline(rows: Sequence[Any]) -> list[Any]:
    """The instructions of a sketch without those of `AROUND`; blocks have no names, loops are counted."""
    numbers: dict[str, str] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]
        if not isinstance(value, str) or value.startswith('"'):  # a text in quotes is an argument, not a name
            return value
        return "block" if value.startswith("b") else numbers.setdefault(value, f"v{len(numbers)}")

    return [
        [kind, plain(inputs), attributes, plain(outputs)]
        for kind, inputs, attributes, outputs in rows
        if kind not in AROUND
    ]
