"""The README's Python for AutoTVM is executed."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.autotvm.replaying import bowl, formula_option
from tests.autotvm.templates import create

pytestmark = pytest.mark.autotvm
README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_python_block():
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "autotvm" in b]
    option, runner = formula_option(bowl)
    scope = {"task": create("chameleon/matmul", 64, 64), "n_trial": 10, "measure_option": option, "callbacks": []}
    exec(block, scope)  # the project's own README
    assert len(runner.asked) == 10


def test_this_environment_has_no_newer_tvm():
    assert "apache-tvm" not in {d.name for d in distributions()}
