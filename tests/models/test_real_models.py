"""Small models of every kind that people bring, through all steps: right, or refused for a reason that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnxruntime")

from scripts.models.cases import FOLDER, read_cases
from scripts.models.steps import run_steps

pytestmark = pytest.mark.tvm
CASES = read_cases()


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_right_or_refused_for_its_reason(name: str, tmp_path: Path) -> None:
    outcomes = run_steps(FOLDER / name, CASES[name], tmp_path, trials=2)
    unlike = [f"{step}: {text}" for step, o in outcomes.items() if (text := o.unlike(CASES[name].expect[step]))]
    assert not unlike, "\n".join(unlike)
