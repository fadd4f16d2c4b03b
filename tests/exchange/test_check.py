"""`records check` finds what is wrong, and nothing in a file that is right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon.cli import main
from chameleon.exchange.check import ERROR, FIELDS, WARNING, check_records
from chameleon.jobs.ledger import Exchange
from chameleon.jobs.records import Records, RecordsError
from tests.support.recorded_run import TARGET, make_run

DOCS = Path(__file__).parents[2] / "docs" / "records.md"


def found(path: Path) -> list[tuple[str, int | None, str]]:
    return [(f.level, f.line, f.what) for f in check_records(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run") / "trials.jsonl"


def change(path: Path, number: int, **fields: object) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **fields})
    path.write_text("\n".join(lines) + "\n")


def test_nothing_is_wrong_with_what_the_writer_wrote(path: Path) -> None:
    with Records(path, TARGET) as records:
        records.mark_wrong("k1", (0, 0))
        records.exchange("k1", Exchange((2, 1), (3, 1), ((1e-3, 1e-3), (2e-3, 2e-3)), "net"), elapsed_s=17.0)
        records.forget_failures()
        path.open("ab").write(b'{"task"')
        assert found(path) == []  # a writer is in the middle of its line


def test_a_torn_line_and_unknown_fields(path: Path) -> None:
    change(path, 4, colour="red")
    change(path, 6, colour="blue")
    with path.open("ab") as file:
        file.write(b'{"task":"k1","con')
    what = "fields of a trial line that this version does not know: colour"
    assert found(path) == [(WARNING, 4, what), (WARNING, 13, "a torn last line (17 bytes)")]
    assert check_records(path)[0].times == 2
    assert main(["records", "check", str(path)]) == 0


@pytest.mark.parametrize(
    ("number", "fields", "what"),
    [
        (1, {"chameleon": 2}, "no header of records"),
        (4, {"kind": "future"}, "a line of the unknown kind 'future'"),
        (4, {"task": "k9"}, "a trial line of the task 'k9', which no line before introduces"),
        (4, {"config": [99, 0]}, "whose digits do not fit the knobs"),
        (4, {"config": [0]}, "whose digits do not fit the knobs"),
        (4, {"seconds": None}, "with a wrong value"),
        (4, {"elapsed_s": "soon"}, "with a wrong value"),
        (11, {"again": [{"config": [0, 0]}]}, "a confirmation line with a wrong value"),
        (2, {"kind": "tuning", "chameleon": 1, "target": "cuda"}, "records of a second target"),
        (4, {"space": "other"}, "that does not tell which of its spaces it is about"),
    ],
)
def test_what_no_command_can_use_is_an_error(path: Path, number: int, fields: dict[str, object], what: str) -> None:
    change(path, number, **fields)
    errors = [f for f in check_records(path) if f.level == ERROR]
    assert what in " ".join(f.what for f in errors)
    assert min(f.line or 0 for f in errors) == number
    assert main(["records", "check", str(path.parent)]) == 1


def test_a_line_that_is_no_object(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], "[1]", *lines[5:]]) + "\n")
    assert found(path) == [(ERROR, 6, "a line that is no JSON object")]
    assert main(["records", "list", str(path)]) == 1
    path.write_text("\n".join(lines) + "\n")  # as the advice says
    assert found(path) == []


def test_what_was_measured_twice_and_elsewhere(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[3]]) + "\n")
    manifest = json.loads((path.parent / "manifest.json").read_text())
    packages = {**manifest["packages"], "apache-tvm": "0.1"}
    (path.parent / "manifest.json").write_text(json.dumps({**manifest, "cpu": "abacus", "packages": packages}))
    double, cpu, tvm = found(path)
    assert double == (WARNING, 13, "a configuration that was measured before")
    assert cpu[2].startswith("measured in another environment: cpu abacus, here")
    assert tvm[2].startswith("measured in another environment: TVM 0.1, here")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_without_an_error_the_reader_takes_it(path: Path, data: st.DataObject) -> None:
    """A line is removed, repeated, or loses a field; where the check finds no error, the reader raises none."""
    lines = path.read_text().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    line = json.loads(lines[number])
    dropped = data.draw(st.sampled_from(sorted(line)))
    less = json.dumps({name: value for name, value in line.items() if name != dropped})
    changed = data.draw(st.sampled_from([[], [lines[number]] * 2, [less], [less[:-3]], ["7"]]))
    other = path.with_name("other.jsonl")
    other.write_text("\n".join([*lines[:number], *changed, *lines[number + 1 :]]) + "\n")
    try:
        with Records(other, TARGET, read_only=True):
            pass
    except RecordsError:
        assert any(f.level == ERROR for f in check_records(other))
    else:
        assert not any(f.level == ERROR for f in check_records(other))


def test_every_field_is_documented() -> None:
    words = set(re.findall(r"`([a-z_]+)`", DOCS.read_text()))
    assert {name for fields in FIELDS.values() for name in fields} <= words


def test_what_another_tool_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "tune.log"
    log.write_text('{"input": [], "config": {}, "result": []}\n' * 3)
    assert found(log) == [(ERROR, 1, "no header of records in format 1")]
    (tmp_path / "database_tuning_record.json").touch()
    assert main(["records", "check", str(tmp_path)]) == 2
    assert "is a database of MetaSchedule" in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["records", "check", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err
