"""Shapes of a model's inputs: join those that its file declares with those that people give. Does not need TVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chameleon.errors import UsageError, unknown
from chameleon.models.errors import ModelError


def shapes_by_name(model: str, input_shape: Any, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Bring the shapes that people gave into the form `{input name: shape}`.

    A shape without a name belongs to the only input.

    Raises:
        UsageError: if there is no input of that name.
        ModelError: if a shape has no name and there are several inputs, or if it is not a shape.
    """
    if isinstance(input_shape, Mapping):
        for name in input_shape:
            if name not in names:
                raise unknown(f"input of {model}", str(name), names)
        shapes = dict(input_shape)
    elif len(names) == 1:
        shapes = {names[0]: input_shape}
    else:
        raise ModelError(f"{model} has {len(names)} inputs ({', '.join(names)}): give each its shape by name")
    for name, shape in shapes.items():
        if not shape or not all(isinstance(d, int) and d > 0 for d in shape):
            raise ModelError(f"{model}: the shape of {name!r} must be positive integers, got {list(shape)}")
    return {name: tuple(shape) for name, shape in shapes.items()}


def static_shapes(
    model: str, declared: Mapping[str, Sequence[int | str]], input_shape: Any
) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes with every open dimension filled from `input_shape`.

    Args:
        declared: the dimensions of each input: an int, or the name of an open dimension.

    Raises:
        ModelError: if a dimension stays open or a given shape does not fit.
    """
    given = {} if input_shape is None else shapes_by_name(model, input_shape, list(declared))
    shapes = {}
    for name, dims in declared.items():
        shape = given.get(name, dims)
        if len(shape) != len(dims) or any(isinstance(d, int) and d != s for d, s in zip(dims, shape, strict=True)):
            raise ModelError(
                f"{model}: input {name!r} has shape {_text(dims)}; the given shape {_text(shape)} does not fit"
            )
        open_dims = [f"{i} ({d!r})" for i, d in enumerate(shape) if not isinstance(d, int)]
        if open_dims:
            filled = ",".join(str(d) if isinstance(d, int) else ("1" if i == 0 else "224") for i, d in enumerate(dims))
            raise ModelError(
                f"{model}: input {name!r} has a dynamic shape {_text(dims)}: "
                f"dimension {', '.join(open_dims)} is open; fix it, for instance with --input-shape {filled}"
            )
        shapes[name] = tuple(int(d) for d in shape)
    return shapes


def _text(dims: Sequence[Any]) -> str:
    return "[" + ", ".join(str(d) for d in dims) + "]"


def parse_shape(text: str | Sequence[int]) -> tuple[int, ...]:
    """Read an input shape from a text such as `1,3,224,224` or from a list.

    Raises:
        UsageError: if these are not positive whole numbers.
    """
    parts = text.replace("x", ",").split(",") if isinstance(text, str) else text
    try:
        shape = tuple(int(part) for part in parts)
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"expected an input shape such as 1,3,224,224, got {text!r}")
    return shape
