"""The scaling of the scheduler in its small form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.memory.scaling import summarise, table
from tests.support.scripts import run_module

SCRIPT = "scripts.memory.scaling"


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


@pytest.mark.slow
@pytest.mark.needs("numba")
def test_the_small_form(tmp_path: Path) -> None:
    arguments = ["--nodes", "16", "--seeds", "1", "--sizes", "varied", "--out", str(tmp_path)]
    for searches, runs in (("lazy,plain", 2), ("lazy,plain", 0)):  # a second call finds all runs on record
        ran = run_module(SCRIPT, *arguments, "--searches", searches)
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
    ran = run_module(SCRIPT, "--searches", "lasy", "--out", tmp_path)
    assert ran.returncode == 2
    assert "expected some of lazy, steps, paper, plain" in ran.stderr
