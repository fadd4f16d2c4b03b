"""The scripts of the peer Kernel Tuner, in a small form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chameleon.search import SEARCHERS
from tests.support.scripts import ROOT, run_module

pytestmark = [pytest.mark.needs("kernel_tuner"), pytest.mark.slow]
SMALL = ROOT / "tests/data/small_cache.json.gz"
TESTS = """
import kernel_tuner
import pytest
from kernel_tuner.interface import strategy_map
from kernel_tuner.strategies.wrapper import OptAlgWrapper


class HybridDELocalRefinement:
    pass


@pytest.mark.parametrize("strategy", strategy_map)
def test_strategies(strategy):
    assert type(strategy_map[strategy]).__name__ == "InPlace"


def test_by_name():
    assert type(strategy_map[dict(strategy="random_sample")["strategy"]]).__name__ == "InPlace"


def test_OptAlgWrapper():
    assert type(HybridDELocalRefinement()).__name__ == "ChameleonStrategy"


def test_random_sample():
    raise AssertionError("this one is left out")


def test_of_something_else():
    raise AssertionError("this one as well")
"""


def test_ours_run_in_the_place_of_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "test" / "strategies"
    folder.mkdir(parents=True)
    (folder / "test_strategies.py").write_text(TESTS)
    ran = run_module("scripts.peers.kernel_tuner_tests", tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert f"{len(SEARCHERS) + 2} passed" in ran.stdout  # each searcher, one by name, the optimiser


def test_the_table(tmp_path: Path) -> None:
    arguments = (SMALL, "--seeds", 2, "--trials", 30, "--out", tmp_path, "--strategies")
    ran = run_module("scripts.peers.kernel_tuner_table", *arguments, "random,genetic_algorithm")
    assert ran.returncode == 0, ran.stderr
    ran = run_module("scripts.peers.kernel_tuner_table", *arguments, "random,genetic_algorithm,mls")
    assert "2/2 runs" in ran.stdout  # the others are on record
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()[1:]]
    assert {(line["strategy"], line["seed"]) for line in lines} == {
        (name, seed) for name in ("random", "genetic_algorithm", "mls") for seed in (0, 1)
    }
    for line in lines:
        assert 0 < len(line["fractions"]) <= 30
        assert (np.diff(line["fractions"]) >= 0).all()
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["ours"] for row in sorted(rows, key=lambda row: row["strategy"])] == [False, False, True]
    assert (tmp_path / "table.md").read_text().count("\n") == 5
    assert json.loads((tmp_path / "manifest.json").read_text())["arguments"]["seeds"] == 2


def test_a_strategy_that_does_not_exist(tmp_path: Path) -> None:
    ran = run_module("scripts.peers.kernel_tuner_table", SMALL, "--out", tmp_path, "--strategies", "hybrid_vnd")
    assert ran.returncode == 2
    assert "did you mean hybrid_vndx" in ran.stderr
