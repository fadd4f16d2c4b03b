"""`scripts/tune_autotvm.py`: one name apart, AutoTVM's tuner and ours do the same job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tvm import autotvm

pytestmark = pytest.mark.autotvm
SCRIPT = Path(__file__).parents[2] / "scripts" / "tune_autotvm.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("tuner", ["xgb", "chameleon"])
def test_an_operator_is_tuned_by_a_tuner_of_either_kind(tuner, tmp_path):
    done = run(tmp_path, "conv2d", "--tuner", tuner, "--trials", "4", "--report", "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tuned with {tuner}" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(ms > 0 for ms in report["latency_ms"].values())
    records = list(autotvm.record.load_from_file(str(tmp_path / "tune.log")))
    assert len(records) == 4
    assert {inp.task.name for inp, _ in records} == {"conv2d_NCHWc.x86"}
    assert report["tasks"][0]["gflops"] > 0


def test_a_network_is_tuned_and_timed(tmp_path):
    done = run(tmp_path, "resnet-8", "--tasks", "1", "--trials", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "latency: untuned" in done.stdout


@pytest.mark.parametrize("wrong", [("resnet-81",), ("conv2d", "--tuner", "chamelon")])
def test_a_misspelt_name_is_answered_with_the_nearest(wrong, tmp_path):
    done = run(tmp_path, *wrong)
    assert done.returncode == 2
    assert "did you mean" in done.stderr
