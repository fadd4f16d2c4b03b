"""AutoTVM from the command line: one name apart, its tuner and ours do the same job; what transfer is worth."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tvm import autotvm

from tests.support.scripts import ROOT, run_process
from tuners.landscape import read_lines, write_lines

pytestmark = pytest.mark.autotvm


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_process("chameleon.cli", "autotvm", *arguments, cwd=folder)


@pytest.mark.parametrize("tuner", ["xgb", "chameleon"])
def test_an_operator_is_tuned_by_a_tuner_of_either_kind(tuner, tmp_path):
    done = run(tmp_path, "conv2d", "--tuner", tuner, "--trials", "4", "--json", "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tuned with {tuner}" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(ms > 0 for ms in report["latency_ms"].values())
    records = list(autotvm.record.load_from_file(str(tmp_path / "tune.log")))
    assert len(records) == 4
    assert {inp.task.name for inp, _ in records} == {"conv2d_NCHWc.x86"}
    assert report["tasks"][0]["gflops"] > 0


def test_what_the_log_holds_is_not_measured_again(tmp_path):
    for _ in range(2):
        done = run(tmp_path, "conv2d", "--trials", "3")
        assert done.returncode == 0, done.stdout + done.stderr
    records = list(autotvm.record.load_from_file(str(tmp_path / "tune.log")))
    assert len({inp.config.index for inp, _ in records}) == len(records) == 6


def test_a_network_is_tuned_and_timed(tmp_path):
    done = run(tmp_path, "resnet-8", "--tasks", "1", "--trials", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "latency: untuned" in done.stdout


@pytest.mark.parametrize("wrong", [("resnet-81",), ("conv2d", "--tuner", "chamelon")])
def test_a_misspelt_name_is_answered_with_the_nearest(wrong, tmp_path):
    done = run(tmp_path, *wrong)
    assert done.returncode == 2
    assert "did you mean" in done.stderr


def test_what_transfer_is_worth_is_measured_on_recordings(tmp_path):
    first = ROOT / "tests/autotvm/data/small-conv.jsonl.gz"
    header, *lines = read_lines(first)
    second = tmp_path / "other.jsonl"
    write_lines([header, *lines[::2]], second)
    arguments = (
        str(first),
        str(second),
        "--records",
        "0,4",
        "--trials",
        "8",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "out"),
    )
    done = run_process("scripts.papers.transfer", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["checkpoints"] == [4, 8]
    assert all(0 < f <= 1 for by in result["fraction"].values() for fractions in by.values() for f in fractions)
    assert (tmp_path / "out/manifest.json").exists()
    assert run_process("scripts.papers.transfer", first).returncode == 2
