"""MetaSchedule's features of programs as the searcher's second look sees them."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.target import Target

from chameleon.search import make_searcher
from tests.support.workloads import task_of
from tests.tuners.test_strategy import LLVM, open_task, results, traces_of
from tuners.meta_schedule import ChameleonStrategy
from tuners.proposals import Proposals
from tuners.store_features import StoreFeatures, summary
from tuners.trace_space import TraceSpace

pytestmark = pytest.mark.tvm
SMALL = {"explorer": {"walkers": 12, "steps": 5, "rollouts": 1}, "model": {"trees": 8, "members": 2}}


def test_one_row_is_that_of_the_main_store_and_the_largest_of_all() -> None:
    stores = np.zeros((2, 9))
    stores[0, 8], stores[1, 0] = 5.0, 3.0  # the second computes
    assert summary(stores).tolist() == [3.0, *[0.0] * 8, 3.0, *[0.0] * 7, 5.0, 2.0]
    assert np.isnan(summary(np.zeros((0, 9)))).all()


@pytest.mark.parametrize("target", [LLVM, Target("nvidia/nvidia-a100")], ids=["llvm", "cuda"])
def test_each_configuration_has_one_row_of_a_fixed_width(target: Target) -> None:
    traces = TraceSpace(task_of("conv2d_nchw", target), target)
    programs = StoreFeatures(traces, target)
    rows = traces.space.sample(24, np.random.default_rng(0))
    found = programs(rows)
    assert found.shape == (24, programs.width)
    missing = np.isnan(found).all(axis=1)
    assert (np.isfinite(found).all(axis=1) | missing).all()
    assert not missing.all()
    for row, gone in zip(rows, missing, strict=True):
        taken = programs.take(tuple(int(d) for d in row))
        assert gone == (taken is None)
        if taken is not None:
            assert str(taken[0].trace) == str(traces.schedule(row).trace)
    np.testing.assert_array_equal(found, StoreFeatures(traces, target)(rows))


def test_what_was_made_for_its_features_is_not_made_again(monkeypatch) -> None:
    traces = TraceSpace(task_of("dense", LLVM), LLVM)
    programs, made = StoreFeatures(traces, LLVM), []
    rows = traces.space.sample(4, np.random.default_rng(0))
    programs(rows)
    searcher = make_searcher("random", traces.space, 0)
    searcher.ask_planned = lambda n: rows[:n]  # type: ignore[method-assign]
    replay = traces.replay
    monkeypatch.setattr(traces, "replay", lambda config: made.append(config) or replay(config))
    found = Proposals(traces, searcher, programs=programs).next(4)
    assert found
    assert not made


def test_a_search_with_program_features_runs_and_repeats() -> None:
    def search() -> list[str]:
        context, seen = open_task(ChameleonStrategy(seed=5, program_features=True, **SMALL), trials=48), []
        for _ in range(6):
            proposed = traces_of(context)
            seen += proposed
            context.notify_runner_results([], results(len(proposed)))
        return seen

    first = search()
    assert len(set(first)) == len(first) >= 40
    assert search() == first
