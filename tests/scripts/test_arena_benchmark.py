"""The benchmark of arenas in its small form, on problems made here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from chameleon.errors import UsageError
from scripts.memory.arena_benchmark import cp_sat, read_problem
from tests.support.scripts import run_module

SMALL = "id,lower,upper,size\na,4,5,4\nb,3,5,3\nc,1,3,4\nd,3,4,3\ne,2,4,2\n"


@pytest.mark.slow
def test_the_small_form(tmp_path: Path) -> None:
    one, two = tmp_path / "small.8.csv", tmp_path / "wide.9.csv"
    one.write_text(SMALL)
    two.write_text(SMALL)
    ran = run_module("scripts.memory.arena_benchmark", one, two, "--runs", 2, "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    small, wide = json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert (small["buffers"], small["bound_bytes"], small["by_size_bytes"]) == (5, 8, 9)
    assert [small[m]["fits"] for m in ("greedy", "exact", "auto")] == [0, 2, 2]
    assert (small["greedy"]["size_bytes"], small["exact"]["size_bytes"], wide["exact"]["fits"]) == (9, 8, 2)
    table = (tmp_path / "out/table.md").read_text()
    assert "| small.8.csv | 5 | 8 | 1.000 | 1.125 | 1.125 |" in table
    assert json.loads((tmp_path / "out/manifest.json").read_text())["arguments"]["files"] == [one.name, two.name]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.csv", SMALL, "expected the capacity in the name, as in p.1048576.csv"),
        ("p.8.csv", SMALL.replace("size", "bytes", 1), "expected the columns id, lower, upper, size, got"),
        ("p.8.csv", SMALL.replace(",3,4,2", ",3,4.5,2").replace("2,4,2", "2,x,2"), "line 6: expected integers"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=words):
        read_problem(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_problem(tmp_path / "p.8.csv")


def test_without_the_peer_there_is_a_word_on_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.8.csv").write_text(SMALL)
    monkeypatch.setitem(sys.modules, "ortools", None)  # as if it were not installed
    with pytest.raises(UsageError, match="pip install ortools"):
        cp_sat(read_problem(tmp_path / "p.8.csv"), seed=0, time_limit_s=1.0)
