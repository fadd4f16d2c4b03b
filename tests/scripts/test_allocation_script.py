"""The experiment on rules that spread trials: what the rules choose, a wrong weight, and the small form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from scripts.tuning.allocation import RULES, Task
from tests.support.scripts import ROOT, run_module

SMALL = ROOT / "tests/data/small_lines.jsonl.gz"


def tasks() -> list[Task]:
    """Two tasks, of which the second has been measured twice as often and promises nothing."""
    found = [Task(str(SMALL), 1, [0, i]) for i in range(2)]
    for task, n in zip(found, (8, 16), strict=True):
        task.best = [3.0] * n
    found[0].watched.promise, found[1].watched.promise = 1.5, 1.0
    return found


def test_rules_choose_what_they_say() -> None:
    chosen = {name: rule(tasks()) for name, rule in RULES.items()}
    assert chosen["today"] == chosen["even"] == chosen["predicted"] == 0
    hopeless = tasks()
    hopeless[0].watched.promise, hopeless[1].watched.promise = 0.9, 1.2
    assert RULES["predicted"](hopeless) == 1
    for task in hopeless:
        task.exhausted = True
    assert {rule(hopeless) for rule in RULES.values()} == {None}


def test_times_are_relative_to_the_best_on_record() -> None:
    task = Task(str(SMALL), 1, [0, 0])
    while len(task.best) < 24:
        task.step(8)
    assert task.watched.promise is not None
    assert 1.0 <= task.best[-1] < math.inf
    assert all(b >= a for b, a in zip(task.best, task.best[1:], strict=False) if not math.isinf(b))


def test_weights_have_to_fit(tmp_path: Path) -> None:
    ran = run_module("scripts.tuning.allocation", SMALL, "--weights", "1,2", "--out", tmp_path)
    assert ran.returncode == 2
    assert "expected a weight for each of 1 files, got 2" in " ".join(ran.stderr.split())


@pytest.mark.slow
def test_the_small_form_of_the_allocation(tmp_path: Path) -> None:
    arguments = ("--weights", "2,1", "--seeds", 2, "--trials", 32, "--out", tmp_path)
    ran = run_module("scripts.tuning.allocation", SMALL, SMALL, *arguments)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["rule"] for row in rows] == list(RULES)
    assert all(float(row["@32"].split()[0]) > 0.5 for row in rows)
    again = run_module("scripts.tuning.allocation", SMALL, SMALL, *arguments)
    assert "runs, last took" not in again.stdout
