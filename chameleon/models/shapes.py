"""Shapes of a model's inputs: join those that its file declares with those that people give. Does not need TVM.

A dimension that a file leaves open has a name: the one in the file (`batch`), or the input's name and the number of
the dimension (`input_ids.0`), which `--dim` takes for every open dimension. A dimension of size 0 is not open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from chameleon.errors import UsageError, unknown
from chameleon.models.errors import ModelError

InputShape = Sequence[int] | Mapping[str, Sequence[int]]
"""The shape of the only input (or of the only one with open dimensions), or shapes by input name."""

Dims = Sequence[int | str]
"""The dimensions of an input: sizes, and names or expressions (`2*seq`) of open dimensions."""

UNNAMED = ""
"""The key of a shape without a name beside shapes with names."""

_USUAL = {4: (1, 3, 224, 224), 3: (1, 16, 16), 2: (1, 16), 1: (1,)}  # for examples in messages, by number of dims


@dataclass(frozen=True)
class GivenShapes:
    """What people say about the inputs of a model.

    Attributes:
        shapes: a shape, or shapes by input name; the key `UNNAMED` is one without a name.
        dims: sizes of open dimensions, by name.
    """

    shapes: InputShape | None = None
    dims: Mapping[str, int] = field(default_factory=dict)


def parse_shapes(given: Any) -> InputShape | None:
    """Read input shapes: `1,3,224,224`, `[1, 3, 224, 224]`, `["input_ids=1,16", "mask=1,16"]` or a mapping.

    Raises:
        UsageError: if these are not whole numbers of at least 0, or an input has two shapes.
    """
    if not given:
        return None
    if isinstance(given, Mapping):
        return {str(name): _parse_shape(shape) for name, shape in given.items()}
    if isinstance(given, str) or all(isinstance(part, int) for part in given):
        given = [given]
    shapes: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, _, shape = text.rpartition("=") if isinstance(text, str) else (UNNAMED, "", text)
        if name in shapes:
            raise UsageError(f"two shapes for {f'the input {name!r}' if name else 'an input without a name'}")
        shapes[name] = _parse_shape(shape)
    return shapes[UNNAMED] if list(shapes) == [UNNAMED] else shapes


def parse_dims(given: Any) -> dict[str, int]:
    """Read sizes of open dimensions: `["batch=1", "seq=16"]` or a mapping.

    Raises:
        UsageError: if these are not names with whole numbers of at least 0, or a dimension has two sizes.
    """
    if isinstance(given, str):
        given = [given]
    pairs = list(given.items()) if isinstance(given, Mapping) else [str(g).rpartition("=")[::2] for g in given or ()]
    dims: dict[str, int] = {}
    for name, size in pairs:
        if not str(name) or not re.fullmatch(r"\s*\d+\s*", str(size)):
            text = f"{name}={size}" if name else str(size)
            raise UsageError(f"expected a dimension's name and size such as batch=1, got {text!r}")
        if dims.setdefault(str(name), int(size)) != int(size):
            raise UsageError(f"two sizes for the dimension {name!r}: {dims[name]} and {int(size)}")
    return dims


def _parse_shape(text: str | Sequence[int]) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",") if isinstance(text, str) else text
    try:
        shape = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 0:
        raise UsageError(f"expected an input shape such as 1,3,224,224 or input_ids=1,16, got {text!r}")
    return shape


def shapes_by_name(model: str, given: InputShape | None, declared: Mapping[str, Dims]) -> dict[str, tuple[int, ...]]:
    """Bring the shapes that people gave into the form `{input name: shape}`.

    A shape without a name belongs to the only input that is left open, or to the only input.

    Raises:
        UsageError: if there is no input of that name.
        ModelError: if it is not clear whose a shape without a name is, or if it is not a shape.
    """
    if given is None:
        return {}
    shapes = dict(given) if isinstance(given, Mapping) else {UNNAMED: given}
    for name in shapes:
        if name not in (UNNAMED, *declared):
            raise unknown(f"input of {model}", str(name), declared)
    if UNNAMED in shapes:
        left = [name for name in declared if name not in shapes]
        candidates = [n for n in left if _open(declared[n])] if len(left) > 1 else left
        if len({tuple(declared[n]) for n in candidates}) == 1:  # they have the same names, so that one fixes all
            candidates = candidates[:1]
        if len(candidates) != 1:
            every = " ".join(f"--input-shape {_option(n, declared[n], {})}" for n in candidates or declared)
            raise ModelError(
                f"{model} has {len(declared)} inputs ({', '.join(declared)}): give each its shape by name: {every}"
            )
        shapes[candidates[0]] = shapes.pop(UNNAMED)
    for name, shape in shapes.items():
        if not all(isinstance(d, int) and d >= 0 for d in shape):
            raise ModelError(f"{model}: the shape of {name!r} must be whole numbers, got {list(shape)}")
    return {name: tuple(shape) for name, shape in shapes.items()}


def static_shapes(
    model: str, declared: Mapping[str, Dims], given: GivenShapes, examples: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes with every open dimension filled from what people gave.

    A name stands for the same size in all inputs, so that one shape may fix several inputs.

    Args:
        declared: the dimensions of each input.
        examples: shapes that are known to work, for the message.

    Raises:
        UsageError: if there is no such input or open dimension.
        ModelError: if a dimension stays open or a given shape does not fit.
    """
    shapes = shapes_by_name(model, given.shapes, declared)
    sizes = _named_sizes(model, declared, given.dims)
    for name, shape in shapes.items():
        _check_fit(model, name, declared[name], shape)
        for i, (dim, size) in enumerate(zip(declared[name], shape, strict=True)):
            if isinstance(dim, str):
                _bind(model, f"{name}.{i}", dim, size, sizes)
    filled = {name: [_size(name, i, d, sizes) for i, d in enumerate(dims)] for name, dims in declared.items()}
    if any(_open(dims) for dims in filled.values()):
        raise ModelError(_open_message(model, declared, filled, examples or {}))
    for name, shape in shapes.items():
        if tuple(filled[name]) != shape:
            raise ModelError(
                f"{model}: input {name!r} has shape {_text(declared[name])}; "
                f"the given shape {_text(shape)} does not fit {_text(filled[name])}, which follows from the others"
            )
    return {name: tuple(int(d) for d in dims) for name, dims in filled.items()}


def _open(dims: Dims) -> list[str]:
    return [d for d in dims if isinstance(d, str)]


def _check_fit(model: str, name: str, dims: Dims, shape: Sequence[int]) -> None:
    if len(shape) != len(dims) or any(isinstance(d, int) and d != s for d, s in zip(dims, shape, strict=True)):
        raise ModelError(
            f"{model}: input {name!r} has shape {_text(dims)}; the given shape {_text(shape)} does not fit"
        )


def _named_sizes(model: str, declared: Mapping[str, Dims], dims: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the file's names; `input.0` is the name of an input's dimension 0 whatever the file calls it."""
    places = {f"{n}.{i}": d for n, ds in declared.items() for i, d in enumerate(ds) if isinstance(d, str)}
    names = {symbol for dim in places.values() for symbol in _symbols(dim)}
    sizes: dict[str, int] = {}
    for name, size in dims.items():
        if name not in names and name not in places:
            if not places:
                raise UsageError(f"--dim {name}={size}: {model} has no open dimension")
            raise unknown(f"open dimension of {model}", name, names | set(places))
        _bind(model, name, name if name in names else places[name], size, sizes)
    return sizes


def _bind(model: str, place: str, dim: str, size: int, sizes: dict[str, int]) -> None:
    """Note what a dimension's size says about its name; an expression such as `2*seq` is solved for its name.

    Raises:
        ModelError: if the name has another size already, or no size of it fits.
    """
    for name, value in _solved(dim, size, sizes).items():
        if sizes.setdefault(name, value) != value:
            raise ModelError(
                f"{model}: {place} is the open dimension {name!r}: it cannot be {value} and {sizes[name]}"
            )


def _symbols(dim: str) -> list[str]:
    """The names in a dimension: itself, unless it is an expression of numbers and names."""
    if not re.fullmatch(r"[\w\s*+/(),-]+", dim) or not re.search(r"[*+/(]|\s-\s", dim):
        return [dim]
    names = re.findall(r"[A-Za-z_]\w*", dim)
    return sorted({n for n in names if n not in ("floor", "Max", "Min", "Mod", "FloorDiv", "ceiling")})


def _expression(dim: str) -> sympy.Expr | None:
    try:
        return sympy.parse_expr(dim, local_dict={n: sympy.Symbol(n, integer=True) for n in _symbols(dim)})
    except (sympy.SympifyError, SyntaxError, TypeError, AttributeError):
        return None


def _solved(dim: str, size: int, sizes: Mapping[str, int]) -> dict[str, int]:
    names = _symbols(dim)
    if names == [dim]:
        return {dim: size}
    unknown_names = [n for n in names if n not in sizes]
    expression = _expression(dim)
    if expression is None or len(unknown_names) != 1:
        return {}
    symbol = sympy.Symbol(unknown_names[0], integer=True)
    equation = expression.subs({sympy.Symbol(n, integer=True): s for n, s in sizes.items()}) - size
    found = [v for v in sympy.solve(equation, symbol) if v.is_Integer and v >= 0]
    return {unknown_names[0]: int(found[0])} if len(found) == 1 else {}


def _size(name: str, i: int, dim: int | str, sizes: Mapping[str, int]) -> int | str:
    """The size of a dimension if the names in it have sizes, otherwise the dimension."""
    if isinstance(dim, int):
        return dim
    names = _symbols(dim)
    if names == [dim]:
        return sizes.get(dim, sizes.get(f"{name}.{i}", dim))
    expression = _expression(dim)
    if expression is None or not all(n in sizes for n in names):
        return dim
    value = expression.subs({sympy.Symbol(n, integer=True): sizes[n] for n in names})
    return int(value) if value.is_Integer else dim


def _open_message(
    model: str, declared: Mapping[str, Dims], filled: Mapping[str, Dims], examples: Mapping[str, Sequence[int]]
) -> str:
    """The message that names the inputs with their open dimensions, and the options to type."""
    left = {name: declared[name] for name, dims in filled.items() if _open(dims)}
    said = []
    for name, dims in left.items():
        places = ", ".join(f"{i} ({d!r})" for i, d in enumerate(dims) if isinstance(filled[name][i], str))
        said.append(f"input {name!r} has a dynamic shape {_text(dims)}: dimension {places} is open")
    guesses = _guesses(declared, filled, examples)
    shapes = " ".join(f"--input-shape {_option(n, filled[n], guesses, len(declared) > 1)}" for n in left)
    open_names = {s for n in left for d in _open(filled[n]) for s in _symbols(d)}
    names = [name for name in guesses if name in open_names]
    dims_text = " ".join(f"--dim {_quoted(name)}={guesses[name]}" for name in names)
    return f"{model}: {'; '.join(said)}; fix it, for instance with {shapes}, or with {dims_text}"


def _guesses(
    declared: Mapping[str, Dims], filled: Mapping[str, Dims], examples: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """A size for every open name, in the order of the inputs: from an example, or one that is usual for its place."""
    guesses: dict[str, int] = {}
    for name, dims in filled.items():
        usual = examples.get(name) or _usual(dims)
        for dim, size in zip(dims, usual, strict=True):
            if isinstance(dim, str) and _symbols(dim) == [dim]:
                guesses.setdefault(dim, 1 if "batch" in dim.lower() and name not in examples else size)
        for dim, size in zip(dims, usual, strict=True):
            if isinstance(dim, str):
                for symbol in _symbols(dim):
                    guesses.setdefault(symbol, _solved(dim, size, guesses).get(symbol, size))
    return guesses


def _usual(dims: Dims) -> tuple[int, ...]:
    return _USUAL.get(len(dims), (1, *[16] * (len(dims) - 1)))


def _option(name: str, dims: Dims, guesses: Mapping[str, int], named: bool = True) -> str:
    sizes = [_size(name, i, d, guesses) for i, d in enumerate(dims)]
    text = ",".join(str(s if isinstance(s, int) else usual) for s, usual in zip(sizes, _usual(dims), strict=True))
    return f"{_quoted(name)}={text}" if named else text


def _quoted(name: str) -> str:
    """A name as the shell takes it."""
    return name if re.fullmatch(r"[\w.:/-]+", name) else "'" + name + "'"


def _text(dims: Sequence[Any]) -> str:
    return "[" + ", ".join(str(d) for d in dims) + "]"
