"""The experiment on warm starts: its refusal, its shuffled teachers, and its small form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chameleon.search import Kin
from scripts.tuning.warm_start import shuffled
from tests.support.scripts import ROOT, run_module
from tuners.landscape import read_lines, write_lines

SMALL = ROOT / "tests/data/small_lines.jsonl.gz"


def test_a_shuffled_teacher_keeps_its_configurations_and_its_times() -> None:
    kin = Kin(tuple({"a": i} for i in range(50)), tuple(1 / (1 + i) for i in range(50)), 2.0)
    other = shuffled(kin, np.random.default_rng(0))
    assert other.throughput == kin.throughput
    assert other.distance == kin.distance
    assert other.configs != kin.configs
    assert sorted(c["a"] for c in other.configs) == list(range(50))


def test_a_landscape_without_kin_is_refused(tmp_path: Path) -> None:
    other = ROOT / "tests/autotvm/data/small-conv.jsonl.gz"
    ran = run_module("scripts.tuning.warm_start", SMALL, other, "--out", tmp_path)
    assert ran.returncode == 2
    assert "has no kin" in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_small_form(tmp_path: Path) -> None:
    header, *lines = read_lines(SMALL)
    other = tmp_path / "other.jsonl"
    write_lines([header, *lines[::2]], other)
    out = tmp_path / "out"
    ran = run_module(
        "scripts.tuning.warm_start", SMALL, other, "--seeds", 1, "--trials", 8, "--taught", 16, "--out", out
    )
    assert ran.returncode == 0, ran.stderr
    rows = {row["strategy"]: row for row in json.loads((out / "results.json").read_text())["results"]}
    assert list(rows) == ["chameleon", "taught", "misled"]
    assert rows["taught"]["fraction_4"]["mean"] > rows["chameleon"]["fraction_4"]["mean"]
