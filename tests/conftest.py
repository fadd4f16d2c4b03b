"""For all tests."""

import signal

import pytest


def pytest_configure() -> None:
    """A shell that runs the tests in the background has SIGINT ignored, and processes that tests start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`needs`: skip what a package of an extra is missing for."""
    for marker in item.iter_markers("needs"):
        pytest.importorskip(*marker.args)
