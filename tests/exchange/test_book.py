"""Records put together and cut down: nothing is lost, twice is as once, and the best stays the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon.cli import main
from chameleon.exchange.book import Book, measured, write_new
from chameleon.exchange.sources import lines_of
from chameleon.jobs.ledger import SIDES, space_to_json
from chameleon.jobs.records import Records, RecordsError, tuning_header
from chameleon.search import KnobSpace, Status, Trial, option
from tests.support.recorded_run import SPACE, TARGET, TRIALS, make_run

CONFIGS = [(tile, unroll) for tile in range(4) for unroll in range(2)]
TASKS = [{"kind": "task", "task": key, "name": f"name of {key}", **space_to_json(SPACE)} for key in ("k1", "k2")]


def trial_line(task: str, config: tuple[int, int], seconds: float | None, model: str, elapsed_s: float) -> Any:
    trial = Trial(config, Status.OK, seconds) if seconds else Trial(config, Status.TIMEOUT, message="timeout: 1 s")
    return {"task": task, **trial.to_json(), "model": model, "elapsed_s": elapsed_s}


def confirmation_line(task: str, config: tuple[int, int], seconds: float, model: str, elapsed_s: float) -> Any:
    again = [{"config": config, "seconds": [seconds]}]
    return {"kind": "confirmation", "task": task, "again": again, "model": model, "elapsed_s": elapsed_s}


def exchange_line(task: str, winner: Any, loser: Any, seconds: float, model: str, elapsed_s: float) -> Any:
    sides = {
        side: {"config": config, "network_s": [seconds]} for side, config in zip(SIDES, (winner, loser), strict=True)
    }
    return {"kind": "exchange", "task": task, **sides, "model": model, "elapsed_s": elapsed_s}


common = (st.sampled_from(["k1", "k2"]), st.sampled_from(CONFIGS))
when = (st.sampled_from(["a", "b"]), st.floats(0, 100))
seconds = st.floats(1e-6, 1.0)
events = st.one_of(
    st.builds(trial_line, *common, st.none() | seconds, *when),
    st.builds(confirmation_line, *common, seconds, *when),
    st.builds(exchange_line, *common, st.sampled_from(CONFIGS), seconds, *when),
    st.builds(lambda model, s: {"kind": "finished", "model": model, "elapsed_s": s}, *when),
    st.builds(lambda task, config: {"kind": "wrong", "task": task, "config": config}, *common),
    st.just({"kind": "retry"}),
)
files = st.lists(events, max_size=25, unique_by=lambda line: json.dumps(line) if "again" in line else id(line)).map(
    lambda found: json.loads(json.dumps([tuning_header(TARGET), *TASKS, *found]))
)


def trials_of(lines: list[Any]) -> dict[Any, Any]:
    """What the reader of records makes of lines: by task and configuration the time, None for a failure."""
    records = Records.of_lines(Path("x"), lines)
    return {(key, t.config): t.seconds for key, task in records.tasks.items() for t in task.trials}


@given(lines=files)
def test_a_book_holds_what_the_records_hold(lines: list[Any]) -> None:
    book, records = Book(Path("x"), lines), Records.of_lines(Path("x"), lines)
    assert trials_of(book.lines) == trials_of(lines)
    assert book.records().wrong == records.wrong
    assert {k: measured(book.records(), k).now_s for k in records.tasks} == {
        k: measured(records, k).now_s for k in records.tasks
    }


@given(one=files, other=files)
def test_merging_loses_nothing_and_twice_is_as_once(one: list[Any], other: list[Any]) -> None:
    book = Book(Path("x"), one)
    book.merge(Book(Path("y"), other))
    once = book.lines
    first, second = trials_of(one), trials_of(other)
    expected = {key: first.get(key) or second.get(key) for key in first.keys() | second.keys()}
    assert trials_of(once) == expected
    assert book.records().wrong == {
        key: found
        for key in ("k1", "k2")
        if (found := set().union(*(Records.of_lines(Path("z"), ls).wrong.get(key, ()) for ls in (one, other))))
    }
    for again in (one, other, once):
        book.merge(Book(Path("y"), again))
        assert book.lines == once


@given(one=files, other=files)
def test_a_tuning_ended_if_no_file_goes_on_after_its_end(one: list[Any], other: list[Any]) -> None:
    book = Book(Path("x"), one)
    book.merge(Book(Path("y"), other))
    swapped = Book(Path("y"), other)
    swapped.merge(Book(Path("x"), one))
    assert {line["model"] for line in book.lines if line.get("kind") == "finished"} == book.records().finished


@given(lines=files, keep=st.integers(1, 5))
def test_pruning_keeps_the_best(lines: list[Any], keep: int) -> None:
    records, book = Records.of_lines(Path("x"), lines), Book(Path("x"), lines)
    gone = book.prune(keep)
    kept = book.records()
    assert gone == len(trials_of(lines)) - len(trials_of(book.lines))
    for key in records.tasks:
        before, after = measured(records, key), measured(kept, key)
        assert (after.now_s, after.best) == (before.now_s, before.best)
        assert len(after.trials) == min(keep, len(before.slowness()))
        assert set(after.slowness()) == set(before.ranking()[:keep])
    once = book.lines
    assert book.prune(keep) == 0
    assert book.lines == once


def test_two_task_lines_of_one_workload_lose_nothing(tmp_path: Path) -> None:
    lines = [tuning_header(TARGET), *TASKS, trial_line("k1", (0, 0), 1e-3, "a", 1.0)]
    lines += [{**TASKS[0], "anchor": "same", "new": 1}, trial_line("k1", (1, 0), 1e-4, "a", 2.0)]
    book = Book(tmp_path, lines)
    assert book.records().tasks["k1"].anchor == "same"
    assert len(book.records().tasks["k1"].trials) == 2
    assert book.lines[1] == {**TASKS[0], "anchor": "same", "new": 1}


def test_two_spaces_of_one_workload_lose_nothing(tmp_path: Path) -> None:
    book = Book(tmp_path / "a", [tuning_header(TARGET), *TASKS, trial_line("k1", (0, 0), 1e-3, "a", 1.0)])
    other = {**TASKS[0], **space_to_json(KnobSpace([option("x", [1, 2]), option("y", [1, 2])]))}
    two = Book(tmp_path / "b", [tuning_header(TARGET), other, trial_line("k1", (0, 0), 1e-4, "b", 1.0)])
    once: list[Any] = []
    for _ in range(2):
        book.merge(two)
        once = once or book.lines
        assert book.lines == once
    tasks = book.records().ledgers[""].by_space
    assert {space: [t.seconds for t in task.trials] for (_, space), task in tasks.items() if task.trials} == {
        SPACE.fingerprint(): [1e-3],
        other["space"]: [1e-4],
    }


def in_environment(lines: list[Any], name: str) -> list[Any]:
    return [line if line.get("kind") in ("tuning", "task") else {**line, "environment": name} for line in lines]


@given(one=files, other=files, third=files)
def test_every_environment_keeps_its_own(one: list[Any], other: list[Any], third: list[Any]) -> None:
    """Two environments and lines that tell none; in any order, and any number of times."""
    sources = {"e1": in_environment(one, "e1"), "e2": in_environment(other, "e2"), "unknown": third}
    for order in (("e1", "e2", "unknown"), ("unknown", "e2", "e1", "e2")):
        book = Book(Path("x"), sources[order[0]])
        for name in order[1:]:
            book.merge(Book(Path("y"), sources[name]))
        for name, lines in sources.items():
            alone = Records.of_lines(Path("z"), lines, None if name == "unknown" else name)
            here = book.records().within("" if book._assumed == "" and name == "unknown" else name)
            for key in ("k1", "k2"):
                assert {t.config: t.seconds for t in here.tasks[key].trials} == {
                    t.config: t.seconds for t in alone.tasks[key].trials
                }
                assert measured(here, key).now_s == measured(alone, key).now_s
            assert here.wrong == alone.wrong


def test_other_targets_are_refused(tmp_path: Path) -> None:
    book = Book(tmp_path / "a", [tuning_header(TARGET), *TASKS])
    with pytest.raises(RecordsError, match="merge records of one target only"):
        book.merge(Book(tmp_path / "b", [tuning_header("cuda")]))


def test_merge_and_prune_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make_run(tmp_path / "one", model="one"), make_run(tmp_path / "two", model="two", name="other")
    merged, again = tmp_path / "merged.jsonl", tmp_path / "again.jsonl"
    assert main(["records", "merge", str(one), str(two / "trials.jsonl"), "-o", str(merged)]) == 0
    assert main(["records", "merge", str(merged), str(two), str(one), "-o", str(again)]) == 0
    assert merged.read_bytes() == again.read_bytes()
    with Records(merged, TARGET) as records:  # a writer takes it as well
        assert records.finished == {"one", "two"}
        assert records.tasks["k1"].name == "conv"
    capsys.readouterr()
    assert main(["records", "prune", str(merged), "-o", str(tmp_path / "small.jsonl"), "--keep", "2"]) == 0
    assert "wrote 3 trials" in capsys.readouterr().out
    assert main(["records", "prune", str(merged), "-o", str(merged)]) == 2
    assert "exists; give another -o" in capsys.readouterr().err
    assert merged.read_bytes() == again.read_bytes()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def lines() -> Any:
        yield tuning_header(TARGET)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / "new.jsonl", lines())
    assert not list(tmp_path.iterdir())


def test_lists_shows_and_names_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = make_run(tmp_path / "run", name="[red]conv"), tmp_path / "out.json"
    assert main(["records", "list", str(folder), "--json", str(out)]) == 0
    assert "[red]conv" in capsys.readouterr().out
    rows = json.loads(out.read_text())["tasks"]
    assert [(r["key"], r["trials"], r["failed"], r["best_s"]) for r in rows] == [
        ("k1", 5, 2, 1.6e-4),
        ("k2", 2, 1, 1e-4),
    ]
    assert main(["records", "best", str(folder), "--task", "k1", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["tasks"][0]["best"] == {"tile": list(SPACE.knobs[0].values[3]), "unroll": 16}
    assert main(["records", "show", str(folder), "dense", "--limit", "1", "--json", str(out)]) == 0
    assert "1 more (--limit)" in capsys.readouterr().out
    assert json.loads(out.read_text())["all"] == [t.to_json() for key, t in TRIALS if key == "k2"]
    assert main(["records", "show", str(folder), "k"]) == 2
    assert "2 tasks are called 'k'" in " ".join(capsys.readouterr().err.split())


def test_records_without_knobs_can_be_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.jsonl"
    task = {name: value for name, value in TASKS[0].items() if name not in ("knobs", "sketches")}
    write_new(path, [tuning_header(TARGET), task, trial_line("k1", (0, 0), 1e-3, "a", 1.0)])
    for command in (["list", str(path)], ["show", str(path), "k1"], ["best", str(path)], ["check", str(path)]):
        assert main(["records", *command]) == 0
    assert main(["records", "export", str(path), "--to", "t4", "-o", str(tmp_path / "t4")]) == 1
    assert "its knobs are not on record" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled.log").write_bytes(b"llvm\tgANjdHZt\tgAN9cQ==\n")
    (tmp_path / "text").write_text("hello\n")
    for name, word in (
        ("empty", "is not a run's folder and no database"),
        ("none", "cannot be read"),
        ("pickled.log", "AutoTVM's old format, which holds pickles, is not read"),
        ("text", "not a recorded landscape"),
    ):
        assert main(["records", "list", str(tmp_path / name)]) in (1, 2)
        assert word in " ".join(capsys.readouterr().err.split())


def test_the_records_of_a_zoo_are_found(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    shared = tmp_path / "trials-here.jsonl"
    (tmp_path / "one" / "trials.jsonl").rename(shared)
    run = json.loads((tmp_path / "one" / "run.json").read_text())
    (tmp_path / "one" / "run.json").write_text(json.dumps({**run, "records": shared.name}))
    assert lines_of(tmp_path) == lines_of(tmp_path / "one") == lines_of(shared)
