"""For all tests."""

import logging
import signal

import pytest


def pytest_configure() -> None:
    """Take SIGINT: a shell that runs the tests in the background has it ignored, and processes would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`needs`: skip what a package of an extra is missing for."""
    for marker in item.iter_markers("needs"):
        pytest.importorskip(*marker.args)


@pytest.fixture(autouse=True)
def _forget_logging() -> None:
    """TVM configures its logger in every call.

    It fails over the nameless handler that pytest gives a logger that is set apart.
    """
    tvm_logger = logging.getLogger("tvm.s_tir.meta_schedule")
    tvm_logger.handlers.clear()
    tvm_logger.propagate = True
