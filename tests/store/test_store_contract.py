"""What every store promises, on a file, a SQLite database and a real PostgreSQL server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chameleon.errors import UsageError
from chameleon.jobs.records import Records
from chameleon.locks import locked
from chameleon.search import Status, Trial
from chameleon.store.files import TURN, FileStore
from chameleon.store.lines import Line, Store, tuning_header
from chameleon.store.open import lines_at, open_store, targets_of
from chameleon.store.place import Place, Url
from tests.support.recorded_run import SPACE, TARGET
from tests.support.scripts import ROOT

HEADER = tuning_header(TARGET)
LINES: list[Line] = [
    {"task": "k1", "config": [0, 1], "model": "a", "text": 'two\nlines, "quoted" \x00 \ud800'},
    {"task": "k2", "config": [0, 1], "model": "a", "seconds": 1.1e-3},
    {"kind": "finished", "model": "a", "elapsed_s": 0.1},
]


@contextmanager
def opened(place: Place, target: str | None = TARGET, **more: Any) -> Iterator[Store]:
    store = open_store(place, target, **more)
    try:
        yield store
    finally:
        store.close()


def read(store: Store) -> list[Line]:
    return [line for _, line in store.read()]


def test_lines_come_back_in_their_order_to_everybody_but_their_writer(place: Place) -> None:
    with opened(place) as one, opened(place) as two:
        assert one.extend([HEADER]) == 1
        assert read(one) == [HEADER]
        one.append(LINES[0])
        two.append(LINES[1])
        one.append(LINES[2])
        assert read(one) == [LINES[1]]
        assert read(two) == [HEADER, LINES[0], LINES[2]]
        assert read(one) == read(two) == []
        with opened(place, None, read_only=True) as reader:
            assert read(reader) == [HEADER, *LINES]
            two.append({**LINES[0], "model": "b"})
            assert read(reader) == [{**LINES[0], "model": "b"}]
    assert lines_at(place) == [HEADER, *LINES, {**LINES[0], "model": "b"}]


def test_numbers_rise(place: Place) -> None:
    with opened(place) as one, opened(place) as two:
        one.extend([HEADER, *LINES])
        first = [number for number, _ in two.read()]
        one.append({**LINES[0], "again": 1})
        ((number, _),) = two.read()
        assert first == sorted(set(first))
        assert number > first[-1]


def test_extending_twice_changes_nothing(place: Place) -> None:
    with opened(place) as one, opened(place) as two:
        assert one.extend([HEADER, *LINES, LINES[0]]) == 4
        assert two.extend([LINES[1], *LINES, {**LINES[1], "config": [5, 5]}]) == 1
        two.append({**LINES[1], "config": [6, 6]})
        assert one.extend([{"config": [6, 6], "task": "k2", "seconds": 1.1e-3, "model": "a"}]) == 0
        assert len(read(one)) == 6


def test_only_some_workloads_are_read(place: Place) -> None:
    with opened(place) as store:
        store.extend([HEADER, *LINES])
    with opened(place, read_only=True, workloads=["k2"]) as store:
        assert read(store) == [HEADER, LINES[1], LINES[2]]


@contextmanager
def in_its_turn(store: Any) -> Iterator[None]:
    """A writer that has taken its turn and not written yet, as if it had been stopped there."""
    with locked(store._file, TURN) if isinstance(store, FileStore) else store._turn():
        yield


def test_a_reader_does_not_wait_for_a_writer(place: Place) -> None:
    with opened(place) as writer:
        writer.extend([HEADER, *LINES])
        with in_its_turn(writer):
            assert lines_at(place) == [HEADER, *LINES]
            with opened(place, read_only=True) as reader:
                assert read(reader) == [HEADER, *LINES]


def start(place: Place, model: str, first: int, count: int) -> subprocess.Popen[str]:
    url = place.secret if isinstance(place, Url) else str(place)
    command = [sys.executable, "-m", "tests.store.writer", url, model, str(first), str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.slow
def test_two_processes_lose_nothing_and_double_nothing(place: Place) -> None:
    """Half of their configurations are the same; a reader follows them meanwhile and misses nothing."""
    n = 60
    writers = [start(place, "one", 0, n), start(place, "two", n // 2, n)]
    for writer in writers:
        go(writer)
    seen: list[Line] = []
    with opened(place, read_only=True) as reader:
        while any(writer.poll() is None for writer in writers):
            seen += read(reader)
        seen += read(reader)
    assert [writer.wait() for writer in writers] == [0, 0]
    trials = [(line["model"], line["config"][0]) for line in seen if "status" in line]
    assert sorted(trials) == [("one", i) for i in range(n)] + [("two", i) for i in range(n // 2, n // 2 + n)]
    for model in ("one", "two"):
        of_model = [number for name, number in trials if name == model]
        assert of_model == sorted(of_model)
    with Records(place, TARGET, read_only=True) as records:
        assert len(records.tasks["k1"].trials) == n // 2 + n
    for writer in writers:
        writer.communicate()


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_was_finished(place: Place) -> None:
    """Killed at several moments; the next one goes on in the same store."""
    written: list[int] = []
    for round_, kill_after in enumerate((1, 7, 20)):
        writer = start(place, "net", 1000 * round_, 500)
        go(writer)
        assert writer.stdout is not None
        written += [int(writer.stdout.readline()) for _ in range(kill_after)]
        writer.kill()
        written += [int(line) for line in writer.communicate()[0].split()]
    with Records(place, TARGET) as records:
        records.add_task("k1", "conv", SPACE)
        records.append("k1", Trial((5000, 0), Status.OK, 1.0), model="net", elapsed_s=1.0)
    with Records(place, TARGET, read_only=True) as records:
        found = [trial.config[0] for trial in records.tasks["k1"].trials]
        assert len(found) == len(set(found))
        assert set(written) | {5000} <= set(found)
        assert len(found) <= len(written) + 1 + 3  # a kill between writing and telling leaves one more


def test_a_torn_line_of_a_killed_writer_is_cut_off_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with opened(path) as one, opened(path) as two:
        one.extend([HEADER])
        with path.open("ab") as torn:
            torn.write(b'{"task":"k1","conf')
        assert lines_at(path) == [HEADER]
        two.append(LINES[0])
        one.append(LINES[1])
    assert lines_at(path) == [HEADER, LINES[0], LINES[1]]
    assert path.read_bytes().count(b"\n") == 3


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    path, write = tmp_path / "t.jsonl", os.write

    def full(file: int, data: Any) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:10])

    with opened(path) as store:
        store.extend([HEADER])
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            store.append(LINES[0])
        monkeypatch.undo()
        store.append(LINES[1])
    assert lines_at(path) == [HEADER, LINES[1]]


@pytest.mark.needs("sqlalchemy")
def test_a_database_holds_several_targets(tmp_path: Path) -> None:
    place = Url(f"sqlite:///{tmp_path / 'new' / 'records.db'}")
    other = '{"num-cores":2,"kind":"llvm","mcpu":"znver4"}'  # the same as TARGET in another order
    with opened(place, TARGET) as one, opened(place, "cuda") as two, opened(place, other) as three:
        one.extend([HEADER, LINES[0]])
        assert two.extend([tuning_header("cuda"), LINES[0]]) == 2
        assert read(three) == [HEADER, LINES[0]]
        assert read(two) == [tuning_header("cuda"), LINES[0]]
    assert targets_of(place) == [TARGET, "cuda"]
    with pytest.raises(UsageError, match=r"targets .*; cuda; choose one with --target"):
        lines_at(place)
    assert lines_at(place, "cuda") == [tuning_header("cuda"), LINES[0]]
