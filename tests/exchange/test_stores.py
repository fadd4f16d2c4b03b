"""`chameleon records` and `chameleon report` on the URL of a database: the same figures as of the files in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from chameleon.cli import main
from chameleon.exchange.book import Book, write_into
from chameleon.exchange.sources import lines_of
from chameleon.jobs.environment import Environment
from chameleon.jobs.records import Records
from chameleon.page.facts import facts_of
from chameleon.store.open import lines_at
from chameleon.store.place import Url
from tests.exchange.test_book import files, trials_of
from tests.support.recorded_run import SPACE, TARGET, TRIALS, fill, make_run

pytestmark = pytest.mark.needs("sqlalchemy")
DATA = Path(__file__).parents[1] / "data"
HERE, THERE = Environment("0.27.0", "abacus", "avx2", 2), Environment("0.26.0", "abacus", "avx2", 2)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'records.db'}"


def data(tmp_path: Path, *command: str) -> Any:
    out = tmp_path / "out.json"
    assert main([*command, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_a_run_in_a_store_is_the_same_run(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["records", "merge", str(folder), "-o", url]) == 0
    assert "wrote 7 trials of 2 tasks" in capsys.readouterr().out
    before = lines_at(Url(url))
    assert main(["records", "merge", str(folder / "trials.jsonl"), str(folder), "-o", url]) == 0
    assert "wrote 0 trials of 2 tasks" in capsys.readouterr().out
    assert lines_at(Url(url)) == before
    for command in (["list"], ["best"]):
        ours, theirs = (data(tmp_path, "records", *command, source)["tasks"] for source in (url, str(folder)))
        assert [{**row, "environment": None} for row in ours] == theirs
    assert data(tmp_path, "records", "show", url, "dense")["all"] == [t.to_json() for k, t in TRIALS if k == "k2"]
    assert main(["records", "check", url]) == 0

    back = tmp_path / "back.jsonl"
    assert main(["records", "merge", url, "-o", str(back)]) == 0
    assert trials_of(lines_of(back)) == trials_of(lines_of(folder))
    assert main(["records", "prune", url, "--keep", "1", "-o", f"sqlite:///{tmp_path / 'small.db'}"]) == 0
    assert len(trials_of(lines_at(Url(f"sqlite:///{tmp_path / 'small.db'}")))) == 2


def test_landscapes_go_in_and_out(tmp_path: Path, url: str) -> None:
    source = DATA / "small_t4.t4.json.gz"
    assert main(["records", "import", str(source), "--target", "cuda", "-o", url]) == 0
    assert main(["records", "import", str(source), "--target", "cuda", "-o", str(tmp_path / "file.jsonl")]) == 0
    assert trials_of(lines_at(Url(url))) == trials_of(lines_of(tmp_path / "file.jsonl"))
    for place, folder in ((url, "one"), (str(tmp_path / "file.jsonl"), "two")):
        assert main(["records", "export", place, "--to", "t4", "-o", str(tmp_path / folder)]) == 0
    one, two = (next((tmp_path / folder).iterdir()).read_bytes() for folder in ("one", "two"))
    assert one == two
    assert main(["records", "export", url, "--to", "metaschedule", "-o", str(tmp_path / "database")]) == 2


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=files, other=files)
def test_merging_into_a_store_loses_nothing_and_twice_is_as_once(
    tmp_path_factory: pytest.TempPathFactory, one: list[Any], other: list[Any]
) -> None:
    store = Url(f"sqlite:///{tmp_path_factory.mktemp('db') / 'records.db'}")
    for lines in (one, other):
        write_into(store, Book(Path("x"), lines))
    once = lines_at(store)
    first, second = trials_of(one), trials_of(other)
    assert trials_of(once) == {key: first.get(key) or second.get(key) for key in first.keys() | second.keys()}
    for lines in (one, other, once):
        assert write_into(store, Book(Path("y"), lines)) == 0
        assert lines_at(store) == once


def test_environments_stand_apart(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for environment, model in ((THERE, "old"), (HERE, "new")):
        with Records(Url(url), TARGET, environment=environment) as records:
            fill(records, {"k1": "conv", "k2": "dense"}, model)
    rows = data(tmp_path, "records", "list", url)["tasks"]
    assert [(r["key"], r["environment"], r["models"], r["trials"]) for r in rows] == [
        (key, e.id, [model], n) for e, model in ((THERE, "old"), (HERE, "new")) for key, n in (("k1", 5), ("k2", 2))
    ]
    assert f"{HERE.id}: abacus, TVM 0.27.0, 2 threads" in capsys.readouterr().out
    rows = data(tmp_path, "records", "best", url, "--environment", THERE.id[:4])["tasks"]
    assert [r["environment"] for r in rows] == [THERE.id] * 2
    assert main(["records", "list", url, "--environment", "x"]) == 2
    found = [f["what"] for f in data(tmp_path, "records", "check", url)["findings"]]
    assert any(what.startswith(f"trials of another environment ({THERE.id}): cpu abacus, here") for what in found)


def test_the_page_of_a_store_and_of_a_folder_whose_records_are_in_one(tmp_path: Path, url: str) -> None:
    folder = make_run(tmp_path / "run")
    (alone,) = facts_of(folder)
    assert main(["records", "merge", str(folder), "-o", url]) == 0
    (folder / "trials.jsonl").unlink()
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "records": url, "environment": "unknown"}))
    (lost,) = facts_of(folder)
    assert lost.problem == f"the records cannot be read: they are in {url}; give it: --store URL"
    assert facts_of(folder, Url(url)) == [alone]
    runs = data(tmp_path, "report", url, "-o", str(tmp_path / "page.html"))["runs"]
    assert [(r["model"], r["state"], r["trials"]) for r in runs] == [("net", "finished", 7)]
    assert url in (tmp_path / "page.html").read_text()
    assert main(["report", str(folder), "--store", url]) == 0


def test_a_space_of_another_version_is_kept_beside(url: str) -> None:
    from chameleon.search import KnobSpace, option

    other = KnobSpace([option("x", range(9)), option("y", range(9))])
    for space, model in ((SPACE, "old"), (other, "new"), (SPACE, "old"), (other, "new")):
        with Records(Url(url), TARGET, environment=HERE) as records:
            task = records.add_task("k1", "conv", space)
            if not task.trials:
                records.append("k1", TRIALS[0][1], model=model, elapsed_s=1.0)
            assert list(task.owners.values()) == [model]
    assert sum(line.get("kind") == "task" for line in lines_at(Url(url))) == 2
