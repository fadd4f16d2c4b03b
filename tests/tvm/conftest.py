"""For all tests that run MetaSchedule."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _forget_logging() -> None:
    """TVM configures its logger in every call, and fails over the nameless handler pytest gives one that is set apart."""
    tvm_logger = logging.getLogger("tvm.s_tir.meta_schedule")
    tvm_logger.handlers.clear()
    tvm_logger.propagate = True
