"""The comparison of strategies: its slots, its errors by the closed form, and its small form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon.errors import UsageError
from chameleon.search import Digits, KnobSpace, Searcher, option
from chameleon.search.planners import View
from chameleon.testing.landscapes import bowl, everything, measure
from scripts.tuning.strategies import STRATEGIES, Near, Slots, made, standard_error, summarise, table
from tests.support.scripts import ROOT, run_module

GRID = KnobSpace([option(n, range(6)) for n in "abc"])
COST = bowl(GRID, np.array([5, 2, 4]))
TINY = str(ROOT / "tests/data/tiny_lines.jsonl.gz")


class Listed:
    """Plans the configurations of a list, so many at a time."""

    def __init__(self, rows: Digits, size: int) -> None:
        self._rows, self._size = rows, size

    def plan(self, view: View) -> Digits:
        new = self._rows[[key not in view.known for key in KnobSpace.keys(self._rows)]]
        return new[: self._size]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(("size", "slots"), [(4, 0), (8, 1), (16, 2), (20, 2)])
def test_the_other_has_one_place_of_eight_once_the_random_ones_are_measured(size: int, slots: int) -> None:
    rows = GRID.rows(0, GRID.size)
    searcher = Searcher(GRID, Slots(Listed(rows, size), Listed(rows[::-1], size)), np.random.default_rng(0))
    measured = 0
    for _ in range(5):
        asked = searcher.ask_planned(64)
        others = int((asked[:, 0] >= 3).sum())
        assert len(asked) == size
        assert others == (0 if measured < 16 else slots)
        assert (asked[len(asked) - others :, 0] >= 3).all()
        searcher.tell(measure(asked, COST))
        measured += size


def test_near_plans_the_neighbours_of_the_best_by_brute_force() -> None:
    searcher = Searcher(GRID, Near(GRID), np.random.default_rng(0))
    rows = np.random.default_rng(1).permutation(GRID.rows(0, GRID.size))[:30]
    searcher.tell(measure(rows, COST))
    best, costs = rows[np.argmin(COST(rows))], COST(rows)
    told = {tuple(row) for row in rows.tolist()}
    near = [c for c in everything(GRID) if np.abs(np.subtract(c, best)).sum() == 1 and c not in told]

    def expected(config: tuple[int, ...]) -> float:
        order = sorted(range(30), key=lambda i: (int((rows[i] != config).sum()), i))
        return float(np.mean([costs.min() / costs[i] for i in order[:5]]))

    asked = [tuple(row) for row in searcher.ask_planned(64).tolist()]
    assert sorted(asked) == sorted(near)
    assert [expected(c) for c in asked] == pytest.approx(sorted((expected(c) for c in near), reverse=True))


@pytest.mark.parametrize("name", STRATEGIES.split(","))
def test_every_strategy_can_be_made_and_goes_on_from_its_state(name: str) -> None:
    one, other = (made(name, GRID, np.random.default_rng(seed)) for seed in (0, 1))
    for _ in range(3):
        one.tell(measure(one.ask(8), COST))
    other.restore(one.state())
    np.testing.assert_array_equal(one.ask(8), other.ask(8))


@pytest.mark.parametrize(("name", "message"), [("chameleon+lbfo", "did you mean lfbo"), ("annealing+lfbo", "unknown")])
def test_a_strategy_that_does_not_exist_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(name, GRID, np.random.default_rng(0))


def test_errors_and_differences_by_hand() -> None:
    groups = [np.array([0.0, 1.0]), np.array([2.0, 6.0])]
    assert standard_error(groups) == pytest.approx(np.sqrt(0.5 / 2 + 8 / 2) / 2)
    lines = [
        {"variant": name, "landscape": where, "seed": seed, "fractions": [value + gap * seed], "engine_s": 0.1}
        for name, value, gap in (("chameleon", 0.5, 0.0), ("knn", 0.25, 0.1))
        for where in ("a", "b")
        for seed in (0, 1)
    ]
    row = summarise(lines, [1])[1]
    assert row["fraction_1"]["mean"] == pytest.approx(0.3)
    assert row["difference_1"] == pytest.approx({"mean": -0.2, "error": 0.05 / np.sqrt(2)})
    assert "| **-0.200 ± 0.035** |" in table(summarise(lines, [1]), [1])


@pytest.mark.slow
def test_the_small_form(tmp_path: Path) -> None:
    arguments = (TINY, "--strategies", "knn,chameleon+near", "--seeds", 1, "--trials", 24, "--out", tmp_path)
    for expected in (3, 0):  # a second call finds all runs on record
        ran = run_module("scripts.tuning.strategies", *arguments)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("runs, last took") == expected
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["strategy"] for row in results] == ["chameleon", "knn", "chameleon+near"]
    assert all(0 < row["fraction_24"]["mean"] <= 1 for row in results)
    assert json.loads((tmp_path / "manifest.json").read_text())["arguments"]["seeds"] == 1
    assert "| chameleon |" in (tmp_path / "table.md").read_text()
