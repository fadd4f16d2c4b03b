"""One search for tasks with the same main block, on a made-up machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.jobs import session as session_module
from chameleon.jobs.config import ConfirmConfig, TuneConfig
from chameleon.jobs.records import Records
from chameleon.jobs.session import Session, open_session
from chameleon.kernels.lower import Task
from chameleon.search import Status, Trial
from chameleon.target import detect_target
from tests.support.made_up import TARGET, Machine, Seconds, Traces, config, made_up_task, task_space, tune_tasks

pytestmark = pytest.mark.tvm

ANCHORS = {"a": "conv", "b": "conv", "c": "conv", "x": "other"}
TASKS = [made_up_task("x", flop=1e3), made_up_task("b"), made_up_task("a", weight=3), made_up_task("c")]


def steady(key: str, digit: int, _time: int) -> float:
    """The later tasks are slower; the same configuration is the best of all."""
    return (digit + 3) * 1e-3 * (1 + "abcx".index(key))


@pytest.fixture
def anchors(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Which made-up tasks have the same main block."""

    def choose(of: Mapping[str, str]) -> None:
        monkeypatch.setattr(session_module, "anchor_key", lambda mod, _: of[str(mod.attrs["how"])])

    choose(ANCHORS)
    return choose


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anchors: object) -> Callable[..., tuple[Session, Machine]]:
    """Tune the tasks on a machine: `on(config)` gives the session and the machine after a whole run."""
    del anchors

    def run(
        config: TuneConfig, *, tasks: list[Task] = TASKS, seconds: Seconds = steady, model: str = "net", **costs: float
    ) -> tuple[Session, Machine]:
        artifacts = tmp_path / "artifacts"
        artifacts.mkdir(exist_ok=True)
        machine = Machine(artifacts, seconds, **costs)
        return tune_tasks(tasks, machine, config, tmp_path / "t.jsonl", monkeypatch, model), machine

    return run


def lines(tmp_path: Path) -> list[dict]:
    return [x for x in map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines()) if "config" in x]


def counts(tmp_path: Path) -> Counter[str]:
    """How many trials each task has on record; none is there twice."""
    measured = [(x["task"], tuple(x["config"])) for x in lines(tmp_path)]
    assert len(measured) == len(set(measured))
    return Counter(key for key, _ in measured)


def by_key(session: Session) -> dict:
    return {t.key: t for t in session.tasks}


def test_one_task_is_searched_and_the_others_take_its_best(on, tmp_path):
    session, _ = on(config(trials=40))
    found = counts(tmp_path)
    assert found["a"] == found["x"] == 12  # each space is exhausted by its own search
    assert found["b"] == found["c"]
    assert 3 <= found["b"] <= 5
    assert {t.best.config for t in session.tasks} == {(0,)}
    origins = {key: {x.get("origin") for x in lines(tmp_path) if x["task"] == key} for key in "abcx"}
    assert origins == {"a": {None}, "b": {"a"}, "c": {"a"}, "x": {None}}


def test_without_sharing_each_task_is_searched(on, tmp_path):
    session, _ = on(config(trials=48, share=False))
    assert set(counts(tmp_path).values()) == {12}
    assert not any("origin" in x for x in lines(tmp_path))
    assert len(session.groups) == 4


def test_a_group_is_one_task_with_the_weights_of_all(on):
    session, _ = on(config(trials=4))
    conv = next(g for g in session.groups if g.followers)
    assert conv.leader.key == "a"
    assert conv.progress.weight == 5
    assert list(conv.progress.best_s) == conv.leader.best_s


@pytest.mark.parametrize("stops", [(5, 9, 40), (12, 20), (17, 18, 19, 40)])
def test_a_run_that_goes_on_keeps_its_groups_and_measures_nothing_twice(on, tmp_path, stops):
    for trials in stops:
        session, _ = on(config(trials=trials))
        assert session.trials <= trials
        assert sorted(sorted(t.key for t in g.members) for g in session.groups) == [["a", "b", "c"], ["x"]]
        assert next(g for g in session.groups if g.followers).leader.key == "a"
    assert counts(tmp_path)["b"] <= 8
    assert {x.get("origin") for x in lines(tmp_path) if x["task"] in "bc"} <= {"a"}


@pytest.mark.parametrize("budget_s", [6.0, 14.0, 30.0, 45.0])
def test_nothing_starts_after_the_deadline(on, budget_s):
    session, machine = on(config(time_budget_s=budget_s, trials=None), build_s=0.25, run_s=0.5)
    assert max(machine.started_s) < budget_s
    if budget_s > 10:
        assert all(t.best for t in session.tasks)


def test_a_budget_of_trials_is_kept_to(on, tmp_path):
    for trials in (3, 7, 8, 16):
        on(config(trials=trials))
        assert sum(counts(tmp_path).values()) == trials


def test_records_of_a_version_without_sharing_are_history_of_the_group(on, tmp_path):
    with Records(tmp_path / "t.jsonl", TARGET) as records:
        for key, known in {"a": (5, 6, 7, 8), "b": (1, 2, 9), "c": (6, 10)}.items():
            records.add_task(key, key, Traces().space)
            for digit in known:
                trial = Trial((digit,), Status.OK, steady(key, digit, 0))
                records.append(key, trial, model="net", elapsed_s=1.0)
    assert "anchor" not in (tmp_path / "t.jsonl").read_text()
    session, _ = on(config(trials=9 + 31))
    assert {t.best.config for t in session.tasks} == {(0,)}
    counts(tmp_path)
    # What the others measured is not searched again; the leader tries only the best of it.
    searched = [x["config"][0] for x in lines(tmp_path)[9:] if x["task"] == "a" and "origin" not in x]
    assert not set(searched) & {1, 2, 5, 6, 7, 8, 9, 10}
    assert {0, 3, 4, 11} == set(searched)
    assert any(x.get("origin") == "b" and x["task"] == "a" for x in lines(tmp_path)[9:])


def test_a_task_for_which_the_schedules_fail_is_tuned_alone(on, tmp_path, caplog):
    fails = {(0,), (1,), (2,), (3,), (4,), (5,)}
    seconds = lambda key, digit, _: None if key == "b" and (digit,) in fails else steady(key, digit, 0)  # noqa: E731
    session, _ = on(config(trials=60), seconds=seconds)
    assert by_key(session)["b"].best.config == (6,)
    assert by_key(session)["c"].best.config == (0,)
    assert "fused_conv2d is tuned alone" in caplog.text
    assert counts(tmp_path)["b"] == 12
    again, machine = on(config(trials=60), seconds=seconds)
    assert not machine.measured
    assert by_key(again)["b"].best.config == (6,)


def test_where_the_searched_task_never_works_the_others_are_tuned_without_it(on, tmp_path, caplog):
    seconds = lambda key, digit, _: None if key == "a" else steady(key, digit, 0)  # noqa: E731
    session, _ = on(config(trials=60), seconds=seconds)
    assert by_key(session)["a"].best is None
    assert {by_key(session)[k].best.config for k in "bcx"} == {(0,)}
    assert "has no schedule that works" in caplog.text
    assert min(counts(tmp_path)[k] for k in "bc") < 8  # they are a group again


def test_a_model_takes_over_the_best_of_another_model(on, tmp_path):
    on(config(trials=12), tasks=[made_up_task("a")], model="first")
    session, _ = on(config(trials=12), tasks=[made_up_task("b"), made_up_task("c")], model="second")
    assert {t.best.config for t in session.tasks} == {(0,)}
    assert counts(tmp_path) == {"a": 12, "b": 3, "c": 3}
    assert {x.get("origin") for x in lines(tmp_path) if x["task"] != "a"} == {"a"}


def test_a_model_goes_on_with_the_search_of_another_that_was_interrupted(on, tmp_path):
    with Records(tmp_path / "t.jsonl", TARGET) as records:
        records.add_task("a", "conv", Traces().space, "conv")
        for digit in (5, 6):
            records.append("a", Trial((digit,), Status.OK, 1e-3 * digit), model="first", elapsed_s=1.0)
    session, _ = on(config(trials=12), tasks=[made_up_task("b")], model="second")
    assert session.tasks[0].best.config == (0,)
    assert {(x["config"][0], x["origin"]) for x in lines(tmp_path) if "origin" in x} == {(5, "a"), (6, "a")}


def test_a_follower_confirms_its_own_best(on):
    """On the follower, the leader's second best is the best; timed again, that shows."""
    faster = {0: 5e-3, 1: 4e-3}
    seconds = lambda key, d, n: faster.get(d, steady(key, d, n)) if key == "b" else steady(key, d, n)  # noqa: E731
    session, _ = on(config(trials=40), seconds=seconds)
    assert by_key(session)["a"].best.config == (0,)
    assert by_key(session)["b"].best.config == (1,)


def test_a_wrong_schedule_of_one_task_is_not_wrong_for_the_others(on, tmp_path):
    on(config(trials=40))
    with Records(tmp_path / "t.jsonl", TARGET) as records:
        records.mark_wrong("b", (0,))
        session = open_session(TASKS, detect_target(), records, config(trials=40), "net")
    assert by_key(session)["a"].best.config == by_key(session)["c"].best.config == (0,)
    assert by_key(session)["b"].best.config == (1,)


def test_only_one_schedule_is_shared_where_only_one_is_the_best(on, tmp_path):
    on(config(trials=40, confirm=ConfirmConfig(contenders=1)))
    assert counts(tmp_path)["b"] <= 3


@settings(max_examples=10, derandomize=True, deadline=None)
@given(order=st.permutations(range(4)), names=st.permutations(["p", "q", "r", "s"]))
def test_groups_and_leaders_depend_neither_on_the_order_nor_on_names(order, names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "task_space", task_space)
        patch.setattr(session_module, "anchor_key", lambda mod, _: ANCHORS[str(mod.attrs["how"])])
        tasks = [made_up_task(TASKS[i].key, name=names[i], weight=TASKS[i].weight, flop=TASKS[i].flop) for i in order]
        with Records(Path("/dev/null"), TARGET, read_only=True) as records:
            session = open_session(tasks, detect_target(), records, config(trials=8), "net")
    found = sorted((g.leader.key, sorted(t.key for t in g.followers)) for g in session.groups)
    assert found == [("a", ["b", "c"]), ("x", [])]


def test_the_forecast_counts_on_what_the_others_will_get(on):
    session, _ = on(config(trials=40))
    best_s: dict[tuple[str, ...], float] = {}
    for group in session.groups:
        best_s[tuple(sorted(t.key for t in group.members))] = group.leader.now_s
    weights = {"a": 3, "b": 1, "c": 1, "x": 1}
    expected = sum(sum(weights[k] for k in keys) * seconds for keys, seconds in best_s.items())
    assert session.curve[-1][1] == pytest.approx(expected)
    seconds = [s for _, s in session.curve]
    assert seconds == sorted(seconds, reverse=True)
