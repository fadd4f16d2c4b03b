"""For all tests."""

import signal


def pytest_configure() -> None:
    """A shell that runs the tests in the background has SIGINT ignored, and processes that tests start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
