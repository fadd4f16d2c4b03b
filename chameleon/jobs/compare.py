"""Compares the outputs of two networks."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Difference:
    """The largest difference between two networks' outputs: absolute, and relative to the largest output."""

    absolute: float
    relative: float


def difference(ours: Arrays, theirs: Arrays) -> Difference:
    """The largest difference between two lists of arrays, absolute and relative to the largest number in `theirs`."""
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        raise ValueError(f"outputs differ in shape: {[a.shape for a in ours]} against {[b.shape for b in theirs]}")
    pairs = [(a.astype("float64"), b.astype("float64")) for a, b in zip(ours, theirs, strict=True) if b.size]
    absolute = max((float(np.abs(a - b).max()) for a, b in pairs), default=0.0)
    size = max((float(np.abs(b).max()) for _, b in pairs), default=0.0)
    return Difference(absolute, absolute / size if size else absolute)


def arrays_of(result: Any) -> list[NDArray[Any]]:
    """The arrays in what a network returned, nested tuples flattened."""
    if isinstance(result, np.ndarray):
        return [result]
    if hasattr(result, "numpy"):
        return [result.numpy()]
    return [array for part in result for array in arrays_of(part)]
