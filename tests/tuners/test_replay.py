"""Replaying: the curve, the budget, what is free, and the mean of random search in closed form."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chameleon.search import SEARCHERS, Digits, KnobSpace, Status, Trial, UnknownSearcherError, option
from tuners.replay import Landscape, ReplayRun, best_so_far, drive, load_landscape, replay, replay_all

DATA = Path(__file__).parents[1] / "data"


class Scripted:
    """Proposes the rows given, in order, and remembers what it was told."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = [list(r) for r in rows]
        self.told: list[Trial] = []
        self.asked: list[int] = []

    def ask_planned(self, n: int) -> Digits:
        self.asked.append(n)
        out, self.rows = self.rows[:n], self.rows[n:]
        return np.array(out, dtype=np.int64).reshape(len(out), 2)

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told += trials


@pytest.fixture
def landscape() -> Landscape:
    """Five of six points: times 4, 1, 2, fails, 8 ms; (1, 2) is not listed."""
    listed = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]])
    statuses = (Status.OK, Status.OK, Status.OK, Status.RUN_ERROR, Status.OK)
    space = KnobSpace([option("a", (1, 2)), option("b", (1, 2, 3))], listed=listed)
    return Landscape("l", space, np.array([4e-3, 1e-3, 2e-3, np.nan, 8e-3]), statuses, ("", "", "", "crash", ""))


def test_curve_by_hand(landscape: Landscape) -> None:
    searcher = Scripted([[1, 0], [1, 1], [1, 2], [0, 2], [0, 0], [0, 1]])
    seconds, engine_s, refused = drive(landscape, searcher, trials=220, batch=2)
    np.testing.assert_array_equal(seconds, [np.nan, 8e-3, 2e-3, 4e-3, 1e-3])  # failed: counts; [1, 2]: free
    assert refused == 1
    assert engine_s > 0
    assert [t.status.value for t in searcher.told] == ["run_error", "ok", "invalid", "ok", "ok", "ok"]
    curve = best_so_far(landscape, seconds)
    np.testing.assert_allclose(curve, [0, 1 / 8, 1 / 2, 1 / 2, 1])
    run = ReplayRun("l", "s", 0, seconds, curve, engine_s, refused)
    assert [run.fraction_at(n) for n in (0, 1, 2, 3, 5, 220)] == [0, 0, 1 / 8, 1 / 2, 1, 1]
    assert [run.trials_to(f) for f in (0.1, 0.5, 0.95)] == [2, 3, 5]
    assert run.trials == 5


def test_budget_is_never_exceeded(landscape: Landscape) -> None:
    searcher = Scripted([[0, 2], [1, 2], [0, 0], [1, 1], [0, 1]])
    seconds, _, refused = drive(landscape, searcher, trials=3, batch=2)
    np.testing.assert_array_equal(seconds, [2e-3, 4e-3, 8e-3])
    assert searcher.asked == [2, 2]  # the refused one left room for a second pair
    assert refused == 1


def test_all_failed_is_zero_and_never_reached(landscape: Landscape) -> None:
    seconds, _, _ = drive(landscape, Scripted([[1, 0]]), trials=5, batch=5)
    run = ReplayRun("l", "s", 0, seconds, best_so_far(landscape, seconds), 0.1, 0)
    assert run.fraction.tolist() == [0.0]
    assert run.trials_to(0.95) == math.inf


def test_endless_nonsense_ends(landscape: Landscape) -> None:
    with pytest.raises(RuntimeError, match="Scripted proposed 101 configurations outside of l"):
        drive(landscape, Scripted([[1, 2]] * 1000), trials=1, batch=1)


def test_bad_budget(landscape: Landscape) -> None:
    with pytest.raises(ValueError, match="trials=0"):
        drive(landscape, Scripted([]), trials=0, batch=1)


def test_unknown_searcher(landscape: Landscape) -> None:
    with pytest.raises(UnknownSearcherError, match="random"):
        replay(landscape, "randon", trials=1, seed=0)


@given(times=st.lists(st.one_of(st.just(math.nan), st.floats(1.0, 1e6)), min_size=1, max_size=30))
def test_curve_against_brute_force(times: list[float]) -> None:
    space = KnobSpace([option("a", (1,))], listed=np.zeros((1, 1), dtype=np.int64))
    landscape = Landscape("l", space, np.ones(1), (Status.OK,), ("",))
    valid = [[t for t in times[: n + 1] if not math.isnan(t)] for n in range(len(times))]
    expected = [1.0 / min(v) if v else 0.0 for v in valid]
    np.testing.assert_allclose(best_so_far(landscape, np.array(times)), expected)


def expected_best(fractions: np.ndarray, n: int) -> float:
    """Mean of the largest of `n` values drawn without replacement.

    Value i of m, in falling order, is the largest in C(m-i, n-1) draws.
    """
    falling = np.sort(fractions)[::-1]
    ways = math.comb(len(falling), n)
    return sum(v * math.comb(len(falling) - i, n - 1) / ways for i, v in enumerate(falling, start=1))


def test_closed_form_against_all_draws() -> None:
    values = np.array([0.0, 0.2, 0.2, 0.5, 1.0, 0.9])
    for n in (1, 3, 6):
        assert expected_best(values, n) == pytest.approx(np.mean([max(c) for c in combinations(values, n)]))


def test_random_search_has_the_mean_of_the_closed_form() -> None:
    landscape = load_landscape(DATA / "small_cache.json.gz")
    fractions = np.nan_to_num(landscape.best / landscape.values)
    runs = [replay(landscape, "random", trials=50, seed=seed) for seed in range(300)]
    for n in (1, 10, 50):
        found = np.array([run.fraction_at(n) for run in runs])
        assert abs(found.mean() - expected_best(fractions, n)) < 4 * found.std() / math.sqrt(len(found))


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_every_searcher_replays(name: str) -> None:
    landscape = load_landscape(DATA / "tiny_t4.t4.json.gz")
    first, again = (replay(landscape, name, trials=24, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.trials, first.refused) == (24, 0)


def test_exhausted_space_ends_the_run(landscape: Landscape) -> None:
    run = replay(landscape, "random", trials=100, seed=0)
    assert run.trials == 5
    assert run.fraction_at(100) == 1.0


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_change_nothing(jobs: int) -> None:
    landscapes = [load_landscape(DATA / f"tiny_{f}.gz") for f in ("cache.json", "t4.t4.json")]
    finished: list[int] = []
    threads = torch.get_num_threads()
    runs = replay_all(landscapes, ["grid", "genetic"], trials=30, seeds=2, jobs=jobs, done=lambda: finished.append(1))
    assert torch.get_num_threads() == threads
    expected = [replay(x, s, trials=30, seed=i) for x in landscapes for s in ("grid", "genetic") for i in (0, 1)]
    assert len(finished) == len(runs) == 8
    for run, alone in zip(runs, expected, strict=True):
        assert (run.landscape, run.searcher, run.seed) == (alone.landscape, alone.searcher, alone.seed)
        np.testing.assert_array_equal(run.values, alone.values)


LONG_JOB = """
import sys
from pathlib import Path
from tuners.replay import load_landscape, replay_all
if __name__ == "__main__":
    landscape = load_landscape(Path(sys.argv[1]))
    replay_all([landscape], ["genetic"], trials=1000, seeds=3000, jobs=2, done=lambda: print("done", flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_an_ended_parent_leaves_no_process(tmp_path: Path, kind: signal.Signals) -> None:
    script = tmp_path / "job.py"
    script.write_text(LONG_JOB)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, str(script), str(DATA / "small_cache.json.gz")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root, env={"PYTHONPATH": root}
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "done\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        parent.send_signal(kind)
        for _ in parent.stdout:  # until it is closed: the parent ended
            pass
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failing_run_is_reported(landscape: Landscape, jobs: int) -> None:
    with pytest.raises(UnknownSearcherError, match="nonsense"):
        replay_all([landscape], ["nonsense"], trials=1, seeds=3, jobs=jobs)
