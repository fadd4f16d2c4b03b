"""Compare the outputs of an imported network with those that its file declares."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax
from tvm.ir import IRModule, TupleType

from chameleon.ir import static_shape
from chameleon.models.errors import ModelError


@dataclass(frozen=True)
class Output:
    """What a file says of one output.

    Attributes:
        name: its name in the file.
        shape: its dimensions; `None` for those, or all, that are not known.
        dtype: its type, such as `float32`; empty if it is not known.
        suspects: the operators that it is computed with and that importers get wrong most often.
    """

    name: str
    shape: Sequence[int | None] | None
    dtype: str
    suspects: str = ""


def flat_types(ty: relax.Type) -> list[relax.Type]:
    """The types of the tensors in a type."""
    return [leaf for part in ty.fields for leaf in flat_types(part)] if isinstance(ty, TupleType) else [ty]


def check_outputs(mod: IRModule, name: str, outputs: Sequence[Output]) -> None:
    """Check that a module returns what its file declares: TVM's importers ignore some attributes without a word.

    Raises:
        ModelError: if number, shapes or types of the outputs differ.
    """
    found = flat_types(mod["main"].ret_ty)
    if len(found) != len(outputs):
        names = ", ".join(repr(o.name) for o in outputs)
        raise ModelError(f"{name}: TVM imports {len(found)} outputs, the file has {len(outputs)}: {names}")
    for output, ty in zip(outputs, found, strict=True):
        if (shape := static_shape(ty)) is not None and not _fits(output.shape, shape):
            _refuse(name, output, f"shape {list(shape)}", f"{list(output.shape or ())}")
        if output.dtype and getattr(ty, "dtype", None) is not None and str(ty.dtype) != output.dtype:
            _refuse(name, output, f"type {ty.dtype}", output.dtype)


def _fits(declared: Sequence[int | None] | None, shape: Sequence[int]) -> bool:
    if declared is None:
        return True
    return len(declared) == len(shape) and all(d is None or d == s for d, s in zip(declared, shape, strict=True))


def _refuse(name: str, output: Output, found: str, expected: str) -> None:
    suspects = f"; suspected: {output.suspects}" if output.suspects else ""
    raise ModelError(
        f"{name}: TVM imports the output {output.name!r} with {found}, the file says {expected}: "
        f"its importer does not know all attributes of an operator{suspects}"
    )
