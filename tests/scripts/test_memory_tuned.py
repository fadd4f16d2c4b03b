"""The script that tunes rewritten networks, in its small form: one cell, few trials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.scripts import run_module

pytestmark = pytest.mark.tvm


def test_a_rewritten_cell_is_tuned_and_takes_its_arena(tmp_path: Path) -> None:
    arguments = ["swiftnet-hpd-c", "--trials", "6", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    ran = run_module("scripts.memory.tuned", *arguments)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())["swiftnet-hpd-c"]
    assert found["rewritten"]["untuned_kernels"] > found["tuned"]["untuned_kernels"]
    for what in ("ordered", "rewritten", "tuned"):
        assert found[what]["measured_peak_bytes"] == found[what]["arena_bytes"]
        assert found[what]["scratch_bytes"] == 0
        assert found[what]["max_relative_error"] < 1e-5
    assert (
        found["rewritten"]["measured_peak_bytes"]
        < found["ordered"]["measured_peak_bytes"]
        < found["stock_measured_bytes"]
    )
    assert set(found["latency_ms"]) == {"stock", "tuned, planned by TVM", "ordered", "rewritten", "tuned"}
    assert "| swiftnet-hpd-c | rewritten and tuned |" in (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/manifest.json").is_file()
