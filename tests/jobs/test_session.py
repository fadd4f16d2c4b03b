"""The loop of tuning on made-up machines: lucky times are found out, budgets hold, a zoo's tasks are shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tvm

from chameleon.jobs.config import ConfirmConfig, TuneConfig
from chameleon.jobs.records import Records
from chameleon.jobs.session import Session
from chameleon.search import Status, Trial
from tests.support import made_up
from tests.support.made_up import TARGET, Machine, Traces, config, made_up_task, tune_tasks

pytestmark = pytest.mark.tvm

TRUE_S = {digit: (digit + 3) * 1e-3 for digit in range(12)}  # configuration 0 is the best


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Session, Machine]]:
    """Tune on a machine: `on(seconds, config)` gives the session and the machine after a whole run."""
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()

    def run(
        seconds: Callable[[int, int], float | None],
        config: TuneConfig,
        *,
        model: str = "net",
        keys: tuple[str, ...] = ("k",),
        **costs: float,
    ) -> tuple[Session, Machine]:
        machine = Machine(artifacts, lambda _, digit, time: seconds(digit, time), **costs)
        tasks = [made_up_task(key, name=f"fused_conv2d{i}") for i, key in enumerate(keys)]
        session = tune_tasks(tasks, machine, config, tmp_path / "t.jsonl", monkeypatch, model)
        assert not list(artifacts.iterdir())  # nothing that was built is left
        return session, machine

    return run


def digits(machine: Machine) -> list[int]:
    """What was measured, of whichever task."""
    return [digit for _, digit in machine.measured]


def steady(digit: int, _time: int) -> float:
    return TRUE_S[digit]


def lucky(digit: int, time: int) -> float:
    """Configuration 7 looks like the best when it is measured first."""
    return 1e-3 if (digit, time) == (7, 0) else TRUE_S[digit]


def test_a_task_without_a_design_space_leaves_the_others_to_be_tuned(on, monkeypatch):
    class Failing(Traces):
        def __init__(self, mod: tvm.IRModule, *given: Any, **options: Any) -> None:
            super().__init__(mod, *given, **options)
            spaces.append(self)
            if len(spaces) == 1:
                raise RuntimeError("ScheduleError: in 'reverse-compute-at'\nand a whole program")

    spaces: list[Any] = []
    monkeypatch.setattr(made_up, "Traces", Failing)
    session, _ = on(steady, config(trials=12), keys=("k", "l"))
    assert [t.task.name for t in session.tasks] == ["fused_conv2d1"]
    assert session.tasks[0].best.config == (0,)
    assert session.untunable == {"fused_conv2d0": "ScheduleError: in 'reverse-compute-at'"}


def test_the_best_is_not_the_luckiest(on):
    session, machine = on(lucky, config(trials=12))
    (task,) = session.tasks
    assert task.best.config == (0,)
    assert task.now_s == TRUE_S[0]
    assert digits(machine)[:12].count(7) == 1
    assert sorted(set(digits(machine)[12:])) == [0, 1, 7]
    assert len(task.best_s) == 12  # no further trial


def test_contenders_take_turns_and_the_median_decides(on):
    noise = {0: [1.0, 1.0, 9.0, 1.0], 1: [1.0, 0.9, 1.3, 1.3]}
    session, machine = on(lambda d, n: TRUE_S[d] * noise.get(d, [1.0] * 4)[n], config(trials=12))
    assert digits(machine)[12:] == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert session.tasks[0].best.config == (0,)


def test_a_schedule_that_fails_the_second_time_is_not_the_best(on):
    session, _ = on(lambda d, n: None if d == 0 and n else TRUE_S[d], config(trials=12))
    assert session.tasks[0].best.config == (1,)


def test_times_with_cold_caches_decide(tmp_path, monkeypatch):
    """Alone and hot, configuration 0 is the best; with cold caches it is slow."""
    (tmp_path / "artifacts").mkdir()
    cold = lambda digit: 9e-3 if digit == 0 else TRUE_S[digit] + 1e-3  # noqa: E731
    machine = Machine(tmp_path / "artifacts", lambda _, digit, __: cold(digit) if machine.cold else TRUE_S[digit])
    machine.cold = False
    session = tune_tasks([made_up_task("k")], machine, config(trials=12), tmp_path / "t.jsonl", monkeypatch)
    assert digits(machine)[12:] == [0, 0, 1, 1, 2, 2, 2, 2, 1, 1, 0, 0, 0, 0, 1, 1, 2, 2]
    (task,) = session.tasks
    assert task.best.config == (1,)
    assert (task.now_s, task.cold_s) == (TRUE_S[1], cold(1))
    assert not machine.cold
    given = config(trials=12, confirm=ConfirmConfig(cold=False))
    machine.measured.clear()
    session = tune_tasks([made_up_task("k")], machine, given, tmp_path / "hot.jsonl", monkeypatch)
    assert len(digits(machine)) == 12 + 9
    assert session.tasks[0].best.config == (0,)
    assert session.tasks[0].cold_s is None


def test_resuming_confirms_again_only_if_the_best_changed(on):
    order = digits(on(steady, config(trials=6))[1])[:6]
    best = min(order)
    _, machine = on(steady, config(trials=6))
    assert digits(machine) == []
    session, machine = on(steady, config(trials=12))
    again = digits(machine)[6:]
    assert bool(again) == (best != 0)
    assert session.tasks[0].best.config == (0,)


def test_confirming_can_be_turned_off(on):
    session, machine = on(lucky, config(trials=12, confirm=ConfirmConfig(contenders=1)))
    assert len(digits(machine)) == 12
    assert session.tasks[0].best.config == (7,)


@pytest.mark.parametrize("budget_s", [3.0, 10.0, 11.0, 24.5, 40.0, 53.0, 100.0])
def test_nothing_starts_after_the_deadline(on, budget_s):
    given = config(time_budget_s=budget_s, confirm=ConfirmConfig(cold=False))  # else twice the time is kept for it
    session, machine = on(steady, given, keys=("a", "b", "c"), build_s=0.5, run_s=1.0)
    assert machine.started_s
    assert max(machine.started_s) < budget_s
    assert session.elapsed_s <= budget_s + 1.5
    if 20 < budget_s < 53:
        assert session.elapsed_s > 0.8 * budget_s
    if budget_s > 52.5:  # a fifth of it is enough for one task: 3 * (0.5 + 3 * 1) s
        assert any(not t.unconfirmed for t in session.tasks)
    _, machine = on(steady, given, keys=("a", "b", "c"), build_s=0.5, run_s=1.0)
    assert not machine.started_s  # the budget is used up for good


def test_a_batch_is_cut_when_the_time_is_over_in_its_midst(on):
    """The first batch cannot know that a trial takes 5 s."""
    session, machine = on(steady, config(time_budget_s=12.0), run_s=5.0)
    assert machine.started_s == [0.0, 5.0, 10.0]
    assert session.trials == 3


def test_a_zoo_goes_on_with_a_task_whose_owner_was_interrupted(on, tmp_path):
    with Records(tmp_path / "t.jsonl", TARGET) as records:
        records.add_task("k", "conv", Traces().space)
        for digit in (5, 6):
            records.append("k", Trial((digit,), Status.OK, TRUE_S[digit]), model="first", elapsed_s=1.0)
    session, machine = on(steady, config(trials=6), model="second")
    assert session.trials == 6
    assert not {5, 6} & set(digits(machine)[:6])  # they are history
    assert len(session.tasks[0].best_s) == 8


@pytest.mark.parametrize(
    ("finished", "works", "trials", "made"),
    [
        (False, True, 2, 0),  # the share is spent
        (False, True, 3, 3),
        (True, True, 6, 0),  # a first batch of two, and the model that made it needed no more
        (True, False, 6, 6),  # nothing worked
        (False, False, 2, 2),
    ],
)
def test_a_workload_is_done_by_its_trials_and_success(on, tmp_path, finished, works, trials, made):
    with Records(tmp_path / "t.jsonl", TARGET) as records:
        records.add_task("k", "conv", Traces().space)
        for digit in (5, 6):
            good, bad = Trial((digit,), Status.OK, TRUE_S[digit]), Trial((digit,), Status.RUN_ERROR, message="no")
            records.append("k", good if works else bad, model="first", elapsed_s=1.0)
        if finished:
            records.finish("first", elapsed_s=1.0)
    session, _ = on(steady, config(trials=trials, first_batch=2), model="second")
    assert session.trials == made


def test_it_does_not_matter_whose_trial_came_first(on):
    on(steady, config(trials=1, first_batch=2), model="first")  # too few to be anything but a start
    session, _ = on(steady, config(trials=6, first_batch=2), model="second")
    assert session.trials == 6
    session, _ = on(steady, config(trials=5, first_batch=2), model="first")
    assert session.trials == 1  # the second model has done all that this one would do


def test_a_model_goes_on_with_its_own_task_after_another_has_used_it(on):
    on(steady, config(trials=3, first_batch=3), model="first")
    session, _ = on(steady, config(trials=20, first_batch=3), model="second")
    assert session.trials == 0
    session, _ = on(steady, config(trials=5), model="first")
    assert session.trials == 5


def test_it_ends_early_when_the_rest_is_expected_to_gain_little(on):
    given = {"trials": 36, "batch": 1, "first_batch": 1, "confirm": ConfirmConfig(contenders=1)}
    session, _ = on(steady, config(**given, until=0.5), keys=("a", "b", "c"), run_s=1.0)
    assert session.enough
    assert session.forecast < 0.5
    assert 6 <= session.trials < 36
    session, machine = on(steady, config(**given), keys=("a", "b", "c"), run_s=1.0)
    assert not session.enough
    assert session.trials == 36
    assert machine.started_s  # the budget was not used up
