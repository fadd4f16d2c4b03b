"""The figures of a run against what was written, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chameleon.cli import main
from chameleon.jobs.records import LOCK, Records, records_path
from chameleon.locks import claimed
from chameleon.page.facts import Failure, Point, TimeSpent, facts_of
from chameleon.page.folders import RunReader
from chameleon.page.html import render
from chameleon.search import Status, Trial
from tests.support.recorded_run import BROKEN, SPACE, TARGET, TRIALS, make_run


def test_trials_times_and_failures(tmp_path: Path) -> None:
    (run,) = facts_of(make_run(tmp_path / "run"))
    assert (run.model, run.state, run.trials, run.borrowed) == ("net", "finished", 7, 0)
    assert (run.tuning_s, run.finish_s, run.latency_ms) == (16.5, 3.0, {"untuned": 2.0, "tuned": 0.5})
    assert run.failures == [
        Failure("build_error", 2, BROKEN, "conv"),
        Failure("timeout", 1, "timeout: after 10 s", "dense"),
    ]
    assert run.manifest["arguments"] == {"model": "net"}


def test_where_the_time_went_adds_up(tmp_path: Path) -> None:
    (run,) = facts_of(make_run(tmp_path / "run"))
    # 7 builds of 0.5 s, four runs of 0.25 s and one of 10 s; the confirmation came 2 s after the last trial
    assert run.time == TimeSpent(search_s=3.5, build_s=3.5, run_s=11.0, confirm_s=2.0, rest_s=0.0)


def test_records_that_do_not_tell_of_the_search_leave_it_in_the_rest(tmp_path: Path) -> None:
    with Records(tmp_path / "trials.jsonl", TARGET) as records:
        records.add_task("k1", "conv", SPACE)
        records.append("k1", TRIALS[0][1], model="net", elapsed_s=4.0)
    (tmp_path / "run.json").write_text(json.dumps({"model": "net", "target": TARGET}))
    (run,) = facts_of(tmp_path)
    assert run.time == TimeSpent(search_s=None, build_s=0.5, run_s=0.25, confirm_s=0.0, rest_s=3.25)
    assert [(t.name, t.weight) for t in run.tasks] == [("conv", 1)]


def test_curves_of_a_kernel_and_of_all(tmp_path: Path) -> None:
    (run,) = facts_of(make_run(tmp_path / "run"))
    conv, dense = run.tasks
    assert (conv.first_us, conv.trials, conv.failed) == (pytest.approx(800), 5, 2)
    assert conv.best_us == pytest.approx(160)  # the median of the confirmation, not the lucky 100
    assert [(p.trials, p.elapsed_s, round(p.us)) for p in conv.curve] == [
        (1, 2.0, 800),
        (2, 4.0, 800),
        (3, 8.0, 200),
        (4, 10.0, 100),
        (5, 12.0, 100),
        (5, 16.0, 160),
    ]
    # from the third trial on both have a schedule: 2 x 800 + 100
    together = [(p.trials, round(p.us)) for p in run.curve]
    assert together == [(3, 1700), (4, 500), (5, 300), (7, 300), (7, 420)]
    assert conv.share == pytest.approx(320 / 420)
    assert dense.curve[-1] == Point(2, 14.0, pytest.approx(100))


def test_the_values_that_win(tmp_path: Path) -> None:
    (run,) = facts_of(make_run(tmp_path / "run"))
    knobs = {k.name: k for k in run.tasks[0].knobs}
    assert run.tasks[0].top == 1
    assert knobs["tile"].value == list(SPACE.knobs[0].values[3])
    assert knobs["unroll"].value == 16
    assert (knobs["unroll"].top_share, knobs["unroll"].share) == (1.0, pytest.approx(2 / 3))


def test_a_wrong_schedule_is_a_failure(tmp_path: Path) -> None:
    make_run(tmp_path)
    with Records(tmp_path / "trials.jsonl", TARGET) as records:
        records.mark_wrong("k2", (2, 1))
    (run,) = facts_of(tmp_path)
    assert run.tasks[1].best_us is None
    assert {f.reason: f.trials for f in run.failures} == {"build_error": 2, "timeout": 1, "wrong_values": 1}
    assert run.curve[0].us == pytest.approx(1600)  # the kernel without a schedule is left out


def test_a_run_while_it_goes_on_and_after_it_was_killed(tmp_path: Path) -> None:
    make_run(tmp_path, ended=False)
    with claimed(tmp_path / LOCK), Records(tmp_path / "trials.jsonl", TARGET) as records:
        assert facts_of(tmp_path)[0].state == "running"
        records.append("k2", Trial((4, 0), Status.OK, 5e-5), model="net", elapsed_s=20.0)
        assert facts_of(tmp_path)[0].trials == 8
    (run,) = facts_of(tmp_path)
    assert (run.state, run.latency_ms, run.finish_s) == ("interrupted", {}, 0.0)


def test_records_that_cannot_be_read_do_not_stop_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    broken = make_run(tmp_path / "two", model="two") / "trials.jsonl"
    broken.write_text("no records\n")
    one, two = facts_of(tmp_path)
    assert one.trials == 7
    assert (two.trials, two.model, two.latency_ms) == (0, "two", {"untuned": 2.0, "tuned": 0.5})
    assert two.problem.startswith(f"the records cannot be read: {broken}:1: expected a JSON object")
    assert main(["report", str(tmp_path)]) == 0
    assert str(broken) in (tmp_path / "report.html").read_text()


def test_torn_lines_and_torn_files_do_no_harm(tmp_path: Path) -> None:
    make_run(tmp_path)
    with (tmp_path / "trials.jsonl").open("ab") as file:
        file.write(b'{"task":"k1","conf')
    (tmp_path / "report.json").write_text('{"latency_ms": {"unt')
    (run,) = facts_of(tmp_path)
    assert (run.trials, run.latency_ms) == (7, {})
    assert (tmp_path / "trials.jsonl").read_bytes().endswith(b'"conf')  # a reader changes nothing


def test_a_run_before_its_first_record(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"model": "net", "target": TARGET, "tasks": []}))
    for content in (None, b"", b'{"chameleon":1,"kind"'):
        if content is not None:
            (tmp_path / "trials.jsonl").write_bytes(content)
        (run,) = facts_of(tmp_path)
        assert (run.trials, run.tuning_s, run.tasks, run.curve) == (0, 0.0, [], [])


def test_the_runs_of_a_zoo_share_their_records(tmp_path: Path) -> None:
    for folder, model in (("a", "one"), ("b", "two")):
        make_run(tmp_path / folder, model=model)
        (tmp_path / folder / "trials.jsonl").unlink()
        run = json.loads((tmp_path / folder / "run.json").read_text())
        (tmp_path / folder / "run.json").write_text(json.dumps({**run, "records": "trials-here.jsonl"}))
    with Records(tmp_path / "trials-here.jsonl", TARGET) as records:
        records.add_task("k1", "conv", SPACE)
        records.append("k1", TRIALS[0][1], model="one", elapsed_s=5.0)
        records.append("k1", TRIALS[3][1], model="two", elapsed_s=1.0)
    one, two = facts_of(tmp_path)
    assert [(r.model, r.trials, r.borrowed, r.tuning_s) for r in (one, two)] == [
        ("one", 1, 1, 5.0),
        ("two", 1, 1, 1.0),
    ]
    assert [p.elapsed_s for p in two.tasks[0].curve] == [0.0, 1.0]  # what was there before costs no time


def test_records_that_did_not_change_are_read_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    reader = RunReader()
    first, again = reader.find(tmp_path)[0].records, reader.find(tmp_path)[0].records
    assert first is not None
    assert again is first
    with Records(tmp_path / "a" / "trials.jsonl", TARGET) as records:
        records.append("k2", Trial((4, 0), Status.OK, 5e-5), model="net", elapsed_s=20.0)
    changed = reader.find(tmp_path)[0].records
    assert changed is not None
    assert len(changed.tasks["k2"].trials) == len(first.tasks["k2"].trials) + 1


def test_the_algorithms_chosen(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("kind") == "task" and line["task"] == "k1":
            line["algorithms"] = {"winograd2": [1, 2], "winograd4": [3]}
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = facts_of(folder)
    assert [(t.key, t.algorithm) for t in run.tasks] == [("k1", "winograd4"), ("k2", None)]
    text = render([run], folder)
    assert "winograd4 in 1 (" in text
    assert "as written in 1 (" in text


def test_a_name_in_a_file_is_no_path(tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere" / "secret.jsonl"
    secret.parent.mkdir()
    secret.write_text("{}\n")
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for name in (str(secret), "../../elsewhere/secret.jsonl"):
        (folder / "run.json").write_text(json.dumps({"records": name}))
        assert records_path(folder) is None


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not the folder of a run: neither it nor a folder in it has a run.json" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
