"""The shapes that people give, as text and as numbers, against those that files declare."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from chameleon.errors import ChameleonError, UsageError
from chameleon.models.errors import ModelError
from chameleon.models.shapes import GivenShapes, parse_dims, parse_shapes, static_shapes

BERT: dict[str, list[int | str]] = {"ids": ["batch", "seq"], "mask": ["batch", "seq"], "k": [8]}


@pytest.mark.parametrize(
    ("given", "shapes"),
    [
        ("1x3x224", (1, 3, 224)),
        ([1, 3], (1, 3)),
        (["1,0,4"], (1, 0, 4)),
        (["a=1,2", "in:0=3"], {"a": (1, 2), "in:0": (3,)}),
        ({"a": "1,2", "b": [3]}, {"a": (1, 2), "b": (3,)}),
        (["5", "b=3"], {"": (5,), "b": (3,)}),
        ((), None),
    ],
)
def test_texts_and_lists_are_shapes(given: Any, shapes: Any) -> None:
    assert parse_shapes(given) == shapes


@pytest.mark.parametrize("given", [["1,x"], ["a=1", "a=2"], ["a="], ["-1,3"], {"a": "?"}])
def test_what_is_no_shape_is_refused(given: Any) -> None:
    with pytest.raises(UsageError):
        parse_shapes(given)


def test_texts_and_mappings_are_sizes() -> None:
    assert parse_dims(["batch=1", "a.0=0"]) == parse_dims({"batch": 1, "a.0": "0"}) == {"batch": 1, "a.0": 0}
    for wrong in (["batch"], ["batch=-1"], ["=1"], ["b=1", "b=2"]):
        with pytest.raises(UsageError):
            parse_dims(wrong)


@pytest.mark.parametrize(
    ("declared", "shapes", "dims", "expected"),
    [
        (BERT, {"ids": (1, 16)}, {}, {"ids": (1, 16), "mask": (1, 16), "k": (8,)}),  # a name is one size everywhere
        (BERT, (1, 16), {}, {"ids": (1, 16), "mask": (1, 16), "k": (8,)}),
        (BERT, None, {"batch": 2, "ids.1": 4}, {"ids": (2, 4), "mask": (2, 4), "k": (8,)}),
        ({"x": ["x.0", 3], "z": [4]}, (5, 3), {}, {"x": (5, 3), "z": (4,)}),  # to the only open one
        ({"x": [1, 0, 4]}, None, {}, {"x": (1, 0, 4)}),  # a size of 0 is not open
        ({"p": ["b", "n"], "t": ["b", "n + s"]}, {"p": (1, 0), "t": (1, 7)}, {}, {"p": (1, 0), "t": (1, 7)}),
        ({"x": ["s0", "2*s1"], "y": ["s1"]}, {"x": (3, 8)}, {}, {"x": (3, 8), "y": (4,)}),
        ({"a/b:0": ["a/b:0.0", 4]}, None, {"a/b:0.0": 2}, {"a/b:0": (2, 4)}),
    ],
)  # fmt: skip
def test_open_dimensions_are_filled(declared: Any, shapes: Any, dims: Any, expected: Any) -> None:
    assert static_shapes("m", declared, GivenShapes(shapes, dims)) == expected


@pytest.mark.parametrize(
    ("declared", "given", "words"),
    [
        (BERT, GivenShapes(), r"--input-shape ids=1,16 --input-shape mask=1,16, or with --dim batch=1 --dim seq=16$"),
        (BERT, GivenShapes(None, {"batch": 1}), r"--input-shape ids=1,16.*, or with --dim seq=16$"),
        (BERT, GivenShapes(None, {"bach": 1}), "did you mean batch"),
        (BERT, GivenShapes({"idss": (1, 2)}), "did you mean ids"),
        (BERT, GivenShapes({"ids": (1, 16), "mask": (2, 16)}), r"mask.0 .*'batch': it cannot be 2 and 1"),
        (BERT, GivenShapes({"k": (9,)}), "does not fit"),
        ({"a": ["n"], "b": ["m"]}, GivenShapes((3,)), "--input-shape a=1 --input-shape b=1"),
        ({"x": ["n", "2*s"]}, GivenShapes((1, 7)), "open"),
        ({"x": [3]}, GivenShapes(None, {"n": 1}), "no open dimension"),
        ({"x": ["my dim", 3]}, GivenShapes(), r"--input-shape 1,3, or with --dim 'my dim'=1"),
    ],
)
def test_messages_give_the_option_to_type(declared: Any, given: GivenShapes, words: str) -> None:
    with pytest.raises(ChameleonError, match=words):
        static_shapes("m", declared, given)


def test_the_option_in_the_message_works() -> None:
    declared: dict[str, list[int | str]] = {"x": ["n", 3, "2*h"], "y": ["h"]}
    with pytest.raises(ModelError) as error:
        static_shapes("m", declared, GivenShapes(), {"x": (2, 3, 12)})
    words = str(error.value).split()
    named = lambda flag: [w.rstrip(",") for before, w in itertools.pairwise(words) if before == flag]  # noqa: E731
    by_shape = static_shapes("m", declared, GivenShapes(parse_shapes(named("--input-shape"))))
    by_name = static_shapes("m", declared, GivenShapes(None, parse_dims(named("--dim"))))
    assert by_shape == by_name == {"x": (2, 3, 12), "y": (6,)}
