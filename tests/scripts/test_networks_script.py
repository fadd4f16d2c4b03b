"""The script that tunes networks and times them beside other programs, in its small form; and the encoder it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.models.modules import SMALL_BERT, Encoder
from tests.support.networks import write_residual
from tests.support.scripts import run_module


def test_the_encoder_has_the_parameters_of_bert_small() -> None:
    """28,763,648, as published with the paper."""
    assert sum(p.numel() for p in Encoder(SMALL_BERT).parameters()) == 28_763_648


@pytest.mark.slow
@pytest.mark.tvm
def test_a_network_is_tuned_timed_and_not_measured_twice(tmp_path: Path) -> None:
    model, out = write_residual(tmp_path / "residual.onnx", channels=16), tmp_path / "out"
    arguments = ["--networks", str(model), "--time-budget", "8s", "--against", "onnxruntime", "--out", str(out)]
    for ways in ("exact", "exact,all"):
        ran = run_module("scripts.tuning.networks", *arguments, "--ways", ways)
        assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()][1:]
    assert [(line["way"], line["agrees"]) for line in lines] == [("exact", True), ("all", True)]
    for line in lines:
        assert set(line["latency_ms"]) == {"untuned", "default", "tuned", "onnxruntime"}
    assert set(lines[0]["algorithms"]) <= {"registers"}
    found = json.loads((out / "results.json").read_text())["results"]
    assert found == lines
    assert (out / "table.md").read_text().count("residual.onnx") == 2


@pytest.mark.slow
@pytest.mark.tvm
def test_networks_of_lower_precision_keep_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pytorchcv")
    from chameleon.models.load import load_model
    from scripts.models.lower_precision import write_half, write_int8

    integers = load_model(str(write_int8("resnet20_cifar10", tmp_path))).mod["main"].script()
    assert integers.count('out_dtype="int32"') == 22  # 19 of 3x3, 2 of 1x1, the dense layer
    assert load_model(str(write_half("resnet20_cifar10", tmp_path))).inputs[0].dtype == "float16"
