"""Puts other buffers into the place of those that a kernel uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx
from tvm.ir.expr import TensorLoad, TensorRegion
from tvm_ffi import structural_map


def with_buffers(statement: Any, new: Mapping[Any, Any]) -> Any:
    """A statement with other buffers of the same shape in the place of some of its own."""

    def load(node: TensorLoad) -> Any:
        return tirx.BufferLoad(new[node.source], node.indices) if node.source in new else node

    def store(node: tirx.BufferStore) -> Any:
        return tirx.BufferStore(new[node.buffer], node.value, node.indices) if node.buffer in new else node

    def region(node: TensorRegion) -> Any:
        return tirx.BufferRegion(new[node.source], node.region) if node.source in new else node

    return structural_map(statement, [(TensorLoad, load), (tirx.BufferStore, store), (TensorRegion, region)])
