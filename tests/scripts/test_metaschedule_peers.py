"""The script that runs TVM's own tests of search strategies with ours, on a few small ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.scripts import run_process

pytestmark = pytest.mark.tvm
TESTS = """
import pytest
from tvm.s_tir import meta_schedule as ms


@pytest.mark.parametrize("TestClass", [ms.search_strategy.ReplayFunc, ms.search_strategy.ReplayTrace])
def test_by_class(TestClass):
    assert "ChameleonStrategy" in str(type(TestClass()._inst))


def test_by_name():
    strategy = ms.search_strategy.EvolutionarySearch(population_size=5)
    assert "ChameleonStrategy" in str(type(strategy._inst))
    assert not isinstance(strategy, ms.search_strategy.ReplayTrace)


def test_meta_schedule_task_scheduler_single():
    ms.search_strategy.ReplayTrace()
    assert 1 == 10


def test_of_something_else():
    raise AssertionError("this one is left out")
"""
UNKNOWN = """
def test_of_ours():
    assert ms.search_strategy.ReplayTrace() is None
"""


def test_ours_run_in_the_place_of_theirs(tmp_path: Path) -> None:
    file = tmp_path / "test_meta_schedule_search_strategy.py"
    file.write_text(TESTS)
    ran = run_process("scripts.peers.metaschedule_tests", tmp_path, "--out", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["passed"] for row in rows] == [True, True, True, False]
    assert "cannot" in (tmp_path / "table.md").read_text()

    file.write_text(TESTS + UNKNOWN)
    ran = run_process("scripts.peers.metaschedule_tests", tmp_path, "--out", tmp_path)
    assert ran.returncode != 0
    assert "test_of_ours failed" in ran.stderr
