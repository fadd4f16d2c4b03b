"""The memory table in its small form: one cell, no peers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.scripts import run_module

pytestmark = pytest.mark.tvm


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_module("scripts.memory.table", *arguments)


def test_the_small_form(tmp_path: Path) -> None:
    ran = run("--cells", "swiftnet-hpd-c", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    row = found["cells"]["swiftnet-hpd-c"]
    assert row["paper_kb"] == {"tflite": 70, "ordered": 33, "rewritten": 20}
    assert row["graph"]["proven"]
    peaks = row["graph"]["peak_bytes"]
    assert peaks["rewritten"] < peaks["best"] <= min(peaks["as_is"], peaks["kahn"])
    for key in ("ordered", "rewritten"):
        compiled = row[key]
        assert compiled["last_proven"]
        assert compiled["arena_bytes"] == compiled["arena_bound_bytes"]
        assert abs(compiled["measured_peak_bytes"] / compiled["arena_bytes"] - 1) <= 0.02
        assert compiled["max_error"] < 1e-5
    assert (
        row["rewritten"]["measured_peak_bytes"]
        < row["ordered"]["measured_peak_bytes"]
        < row["stock"]["measured_bytes"]
    )
    assert found["geomeans"]["stock TVM, measured"]["order and rewriting"] > 1
    assert (tmp_path / "manifest.json").is_file()
    assert "| swiftnet-hpd-c | 70 | 33 | 20 |" in (tmp_path / "table.md").read_text()


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    for arguments, words in (
        (("--cells", "swiftnet-hpd-d"), "swiftnet-hpd-c"),
        (("--peer", "tflite=nowhere"), "NAME=PYTHON"),
    ):
        ran = run(*arguments, "--out", str(tmp_path))
        assert ran.returncode == 2
        assert words in ran.stderr
