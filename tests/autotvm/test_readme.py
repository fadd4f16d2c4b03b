"""The pages' Python for AutoTVM is executed."""

from __future__ import annotations

from importlib.metadata import distributions
from typing import Any

import pytest

from tests.autotvm.replaying import bowl, formula_option
from tests.autotvm.templates import create
from tests.support.pages import WITH_AUTOTVM, execute, pages_with_python

pytestmark = pytest.mark.autotvm


def run(page: str) -> tuple[dict[str, Any], list[int]]:
    """The page's namespace afterwards, and which configurations were measured."""
    option, runner = formula_option(bowl)
    given = {"task": create("chameleon/matmul", 64, 64), "n_trial": 10, "measure_option": option, "callbacks": []}
    return execute(page, WITH_AUTOTVM, given), runner.asked


def test_the_python_block():
    scope, asked = run("README.md")
    assert len(asked) == 10
    assert "ChameleonTuner" in scope


@pytest.mark.parametrize("page", pages_with_python(WITH_AUTOTVM))
def test_python(page):
    scope, asked = run(page)
    assert len(asked) == 10
    assert not scope["tuner"].failures


def test_this_environment_has_no_newer_tvm():
    assert "apache-tvm" not in {d.name for d in distributions()}
