"""The scaling of the scheduler in its small form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serenity_scaling import summarise, table

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts/serenity_scaling.py")


def test_rows_by_hand() -> None:
    line = {
        "search": "lazy",
        "sizes": "unit",
        "n": 8,
        "gap": 0.0,
        "proven": True,
        "states": 10,
        "seconds": 1.0,
        "grown_mib": 2.0,
    }
    other = line | {"gap": 0.5, "proven": False, "states": 30, "seconds": 2.0}
    (row,) = summarise([line, other])
    assert (row["proven"], row["seeds"], row["worst_gap"]) == (1, 2, 0.5)
    assert (row["median_states"], row["worst_states"], row["median_seconds"]) == (20, 30, 1.5)
    assert "| lazy | unit | 8 | 1/2 | 50.0% | 20, 30 | 1.500, 2.000 | 2 |" in table([row])


@pytest.mark.needs("numba")
def test_the_small_form(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--nodes", "16", "--seeds", "1", "--sizes", "varied", "--out", str(tmp_path)]
    for searches, runs in (("lazy,plain", 2), ("lazy,plain", 0)):  # a second call finds all runs on record
        ran = subprocess.run([*command, "--searches", searches], capture_output=True, text=True, timeout=300, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count(" states, ") == runs
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()[1:]]
    assert all(line["proven"] for line in lines)
    by_search = [{(x["n"], x["peak_bytes"]) for x in lines if x["search"] == s} for s in ("lazy", "plain")]
    assert by_search[0] == by_search[1]
    assert [row["n"] for row in json.loads((tmp_path / "results.json").read_text())] == [16, 16]
    assert json.loads((tmp_path / "manifest.json").read_text())["arguments"]["searches"] == ["lazy", "plain"]
    assert (tmp_path / "table.md").read_text().count("\n") == 4


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, SCRIPT, "--searches", "lasy", "--out", str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "expected some of lazy, steps, paper, plain" in ran.stderr
