"""Compares the outputs of two networks, with a tolerance by type."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import IRModule

from chameleon.ir import is_call

Arrays = Sequence[NDArray[Any]]

TOLERANCES = {
    # A schedule sums in another order. The zoo's networks differ from PyTorch by 2e-7 to 4e-6; a wrong tile by 1e-2.
    "float32": 1e-4,
    # One rounding is 5e-4. ONNX Runtime and PyTorch add up in float32 what TVM adds up in float16.
    "float16": 1e-2,
    # One rounding is 4e-3, for the same reason.
    "bfloat16": 3e-2,
    # Rounding would allow 1e-12, but TVM computes erf and the like by polynomials that were made for float32.
    "float64": 1e-6,
}
"""The largest difference that rounding explains, relative to the largest number of an output, by type."""

QUANTISED_TOLERANCE = 2e-2
"""The same for floats that 8-bit numbers came before: a value between two steps goes either way.

One step is 1/255 of the range of a tensor. A few of them add up in the layers that follow.
"""

QUANTISED_SHARE = 0.05
"""The share of the integers of a quantised network that may be one step off."""

LEAST_SCALE = 1e-3
"""Numbers are compared as if the largest were at least this: sums that cancel leave rounding errors, not zeros."""


@dataclass(frozen=True)
class Tolerance:
    """How far the outputs of two right networks may be apart.

    Attributes:
        floats: for floating-point outputs, relative to the largest number of the output.
        quantised: whether the network rounds to integers on its way. Then a few integers may be one step off.
    """

    floats: float = TOLERANCES["float32"]
    quantised: bool = False


@dataclass(frozen=True)
class Difference:
    """How far two networks' outputs are apart.

    Attributes:
        absolute: the largest difference of two numbers.
        relative: the largest difference, relative to the largest number of its output.
        fault: what is not within the tolerance; empty if everything is.
    """

    absolute: float = 0.0
    relative: float = 0.0
    fault: str = ""

    @property
    def agrees(self) -> bool:
        """Whether everything is within the tolerance."""
        return not self.fault


def tolerance_of(mod: IRModule) -> Tolerance:
    """The tolerance for a network: that of the coarsest of its floating-point types."""
    types: set[str] = set()
    rounds = False

    def visit(node: Any) -> None:
        nonlocal rounds
        dtype = getattr(getattr(node, "ty", None), "dtype", None)
        if dtype is not None:
            types.add(str(dtype))
        small = is_call(node, "relax.astype") and str(dtype) in ("int8", "uint8")
        rounds = rounds or is_call(node, "relax.quantize") or (small and _is_float(node.args[0]))

    relax.analysis.post_order_visit(mod["main"], visit)
    floats = [TOLERANCES[t] for t in types if t in TOLERANCES]
    widest = max(floats, default=TOLERANCES["float32"])
    return Tolerance(max(widest, QUANTISED_TOLERANCE) if rounds else widest, rounds)


def _is_float(expr: Any) -> bool:
    return "float" in str(getattr(expr.ty, "dtype", ""))


def difference(ours: Arrays, theirs: Arrays, tolerance: Tolerance = Tolerance()) -> Difference:
    """Compare two lists of outputs; `theirs` are taken for right.

    Number, shapes and types must be equal. NaN and infinities must be in the same places.
    """
    if len(ours) != len(theirs):
        return Difference(np.inf, np.inf, f"{len(ours)} outputs, expected {len(theirs)}")
    pairs = zip(ours, theirs, strict=True)
    return worst([_of_output(f"output {i}", a, b, tolerance) for i, (a, b) in enumerate(pairs)])


def finite(value: float) -> float | None:
    """A number for JSON, which has no infinity: None in its place."""
    return value if np.isfinite(value) else None


def worst(differences: Sequence[Difference]) -> Difference:
    """The largest of several differences, with all their faults."""
    return Difference(
        max((d.absolute for d in differences), default=0.0),
        max((d.relative for d in differences), default=0.0),
        "; ".join(dict.fromkeys(d.fault for d in differences if d.fault)),
    )


def _of_output(name: str, ours: NDArray[Any], theirs: NDArray[Any], tolerance: Tolerance) -> Difference:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        found = f"{ours.dtype}{list(ours.shape)}, expected {theirs.dtype}{list(theirs.shape)}"
        return Difference(np.inf, np.inf, f"{name} is {found}")
    if ours.dtype.kind in "biu":
        return _of_integers(name, ours, theirs, tolerance)
    a, b = ours.astype("float64"), theirs.astype("float64")
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return Difference(np.inf, np.inf, f"{name} has NaN or infinities in other places")
    absolute = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    relative = absolute / max(float(np.abs(b[finite]).max(initial=0.0)), LEAST_SCALE)
    if relative <= tolerance.floats:
        return Difference(absolute, relative)
    return Difference(
        absolute, relative, f"{name} is off by {relative:.1e} of its largest number, allowed {tolerance.floats:g}"
    )


def _of_integers(name: str, ours: NDArray[Any], theirs: NDArray[Any], tolerance: Tolerance) -> Difference:
    """Integers are exact. In a quantised network a few may be one step off."""
    steps = np.maximum(ours, theirs).astype("float64") - np.minimum(ours, theirs).astype("float64")
    absolute, wrong = float(steps.max(initial=0.0)), int((ours != theirs).sum())
    relative = absolute / max(float(np.abs(theirs.astype("float64")).max(initial=0.0)), 1.0)
    few = tolerance.quantised and ours.dtype.kind != "b" and wrong <= max(1, QUANTISED_SHARE * ours.size)
    if wrong == 0 or (few and absolute <= 1):
        return Difference(absolute, relative)
    return Difference(absolute, relative, f"{name} has {wrong} wrong {ours.dtype} out of {ours.size}")


def arrays_of(result: Any) -> list[NDArray[Any]]:
    """The arrays in what a network returned, nested tuples flattened."""
    if isinstance(result, np.ndarray):
        return [result]
    if hasattr(result, "numpy"):
        return [result.numpy()]
    return [array for part in result for array in arrays_of(part)]
