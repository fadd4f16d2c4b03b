"""Run a network of ours and take its outputs as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax


def outputs_of(mod: tvm.IRModule, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a module, compiled without tuning."""
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    return flat(machine["main"](*[tvm.runtime.tensor(x) for x in arrays]))


def flat(value: Any) -> list[np.ndarray]:
    """The arrays in a result, in order."""
    return [value.numpy()] if hasattr(value, "numpy") else [x for part in value for x in flat(part)]


def assert_same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 1e-4) -> None:
    """Number, shapes, types and values agree; the tolerance is relative to the largest value."""
    assert [(x.shape, str(x.dtype)) for x in found] == [(x.shape, str(x.dtype)) for x in expected]
    for x, y in zip(found, expected, strict=True):
        scale = float(np.abs(y.astype("float64")).max(initial=1e-6))
        np.testing.assert_allclose(x.astype("float64"), y.astype("float64"), rtol=0, atol=tolerance * scale)
