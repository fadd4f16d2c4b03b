"""The inputs that a kernel is timed with: random numbers, and integers that the kernel can stand.

The builder sees the kernel, and the runner sees only its file. So the builder writes the ranges of the integers beside
the file (`chameleon.kernels.index_ranges`). Where another builder made the file, integers are 0 or 1.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from chameleon.kernels.index_ranges import UNKNOWN, IntegerRange, argument_ranges, is_integer

RANGES_FILE = "integer_ranges.json"
Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""Dtype and shape of each argument."""
Ranges = tuple[IntegerRange | None, ...]


def write_ranges(mod: tvm.IRModule, artifact: Path) -> None:
    """Write the ranges of a kernel's integer arguments beside its artifact; nothing where it has no such argument."""
    functions = [f for _, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)]
    ranges = argument_ranges(functions[0]) if len(functions) == 1 else []
    if any(r is not None for r in ranges):
        artifact.with_name(RANGES_FILE).write_text(json.dumps(ranges))


def read_ranges(artifact: Path, signature: Signature) -> Ranges:
    """The range of each argument; None for an argument that is not of integer type."""
    found: list[Any] = []
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(artifact.with_name(RANGES_FILE).read_text())
    if len(found) != len(signature):
        found = [UNKNOWN] * len(signature)
    return tuple(
        (int(r[0]), int(r[1])) if r is not None and is_integer(dtype) else UNKNOWN if is_integer(dtype) else None
        for r, (dtype, _) in zip(found, signature, strict=True)
    )


def make_inputs(signature: Signature, ranges: Ranges, device: Any, fill: Any) -> list[Any]:
    """Random tensors on a device.

    Args:
        fill: TVM's `tvm.contrib.random.random_fill_for_measure`, of the device's side; it is not used for integers.
    """
    rng = np.random.default_rng(0)
    return [_input(dtype, shape, r, device, fill, rng) for (dtype, shape), r in zip(signature, ranges, strict=True)]


def _input(
    dtype: str, shape: Sequence[int], allowed: IntegerRange | None, device: Any, fill: Any, rng: np.random.Generator
) -> Any:
    tensor = tvm.runtime.empty(tuple(shape), dtype, device)
    plain = _numpy_type(dtype) if allowed is not None else None
    if allowed is None or plain is None:
        fill(tensor)
    else:
        tensor.copyfrom(rng.integers(allowed[0], allowed[1], size=tuple(shape), endpoint=True).astype(plain))
    return tensor


def _numpy_type(dtype: str) -> Any:
    """The type of the same name in numpy; None for types that numpy does not have, such as `int4`."""
    try:
        return np.dtype(dtype)
    except TypeError:
        return None
