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
IN_TESTS = (
    "encoder_open.onnx",
    "encoder.pt2",
    "vit.onnx",
    "vit.pt2",
    "lstm.pt2",
    "unet.pt2",
    "convnext.pt2",
    "half_conv.onnx",
    "qdq_conv.onnx",
    "norm_trained.pt2",
    "embedding.onnx",
    "conv_transpose_output_shape.onnx",
)
"""One of each kind, so that the tests end soon; `python -m scripts.models.table` takes all of them."""


@pytest.mark.parametrize("name", IN_TESTS)
def test_every_step_is_right_or_refused_for_its_reason(name: str, tmp_path: Path) -> None:
    outcomes = run_steps(FOLDER / name, CASES[name], tmp_path, trials=2)
    unlike = [f"{step}: {text}" for step, o in outcomes.items() if (text := o.unlike(CASES[name].expect[step]))]
    assert not unlike, "\n".join(unlike)
