"""Times, ratios and names as people read them: never `0.00 ms`, never `0.0 times faster`, never an endless line."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon.wording import names_text, range_text, ratio_text, speed_text, task_text, time_text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0.00004, "0.04 us"),
        (0.0042, "4.2 us"),
        (0.0999, "99.9 us"),
        (0.1, "0.10 ms"),
        (8.784, "8.78 ms"),
        (1579.17, "1579.17 ms"),
        (65432.1, "65.4 s"),
    ],
)
def test_times_have_the_unit_that_shows_them(milliseconds, text):
    assert time_text(milliseconds) == text


def test_a_range_may_cross_units():
    assert range_text(0.09, 0.2) == "90.0 us - 0.20 ms"


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (10.0, 2.0, "5.0 times faster"),
        (1579.17, 8.78, "179.9 times faster"),
        (2.0, 10.0, "5.0 times slower"),
        (0.01, 1.0, "100.0 times slower"),
        (1.0, 1.02, "about as fast"),
        (1.02, 1.0, "about as fast"),
        (1.08, 1.0, "1.08 times faster"),
        (1.0, 1.2, "1.2 times slower"),
    ],
)
def test_slower_is_called_slower(before, after, text):
    assert speed_text(before, after) == text


sizes = st.floats(min_value=1e-7, max_value=1e7)


@given(sizes, sizes)
def test_nothing_that_was_measured_is_written_as_zero(a, b):
    for text in (time_text(a), ratio_text(a / b), speed_text(a, b)):
        numbers = re.findall(r"\d[\d.e+-]*", text)
        assert all(float(n) > 0 for n in numbers)


def test_long_lists_are_cut():
    names = [f"task{i}" for i in range(27)]
    assert names_text(names) == "task0, task1, task2 and 24 more"
    assert names_text(names[:4]) == "task0, task1, task2, task3"
    assert names_text([]) == ""


@given(st.text(max_size=200), st.integers(8, 80))
def test_long_names_of_kernels_lose_their_middle_only(name: str, most: int) -> None:
    shown = task_text(name, most)
    assert len(shown) == min(len(name), most)
    if len(name) <= most:
        assert shown == name
    else:
        head, tail = shown[: most - most // 4 - 1], shown[most - most // 4 :]
        assert name.startswith(head)
        assert name.endswith(tail)
        assert shown == f"{head}…{tail}"
