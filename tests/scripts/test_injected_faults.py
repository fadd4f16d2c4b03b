"""The harness of faults: a few real injections break nothing, and it would see it if they did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.faults.case import Case, Found
from scripts.faults.faults import FAULTS
from scripts.faults.inject import COLUMNS
from tests.support.scripts import run_process

pytestmark = [pytest.mark.tvm, pytest.mark.slow]

QUICK = ("worker killed", "build segfault", "run hang", "compiler missing", "parent killed", "record torn")


def test_faults_break_nothing(tmp_path: Path) -> None:
    done = run_process(
        "scripts.faults.inject", "--injections", len(QUICK), "--only", ",".join(QUICK), "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()]
    assert rows[0] == ["fault", *COLUMNS]
    assert [row[0] for row in rows[2:]] == [*QUICK, "all"]
    assert rows[-1][1:] == [str(len(QUICK)), "0", "0", "0", "0", "0"], done.stdout
    assert json.loads((tmp_path / "manifest.json").read_text())["arguments"]["injections"] == len(QUICK)


def test_an_unknown_fault_is_named(tmp_path: Path) -> None:
    done = run_process("scripts.faults.inject", "--only", "worker kiled", "--out", tmp_path)
    assert done.returncode == 2
    assert "did you mean worker killed" in " ".join(done.stderr.split())
    assert len(FAULTS) >= 14


def test_what_is_lost_left_or_a_lie_is_seen(tmp_path: Path) -> None:
    case = Case(tmp_path, 4)
    good = {"task": "k", "config": [0], "status": "ok", "seconds": 1e-3, "model": "m", "elapsed_s": 1.0}
    bad = {"task": "k", "config": [1], "status": "run_error", "message": "crash: signal 9 (SIGKILL)", "model": "m"}
    case.records.write_text("".join(json.dumps(line) + "\n" for line in (good, bad)) + '{"torn')
    case.told += [good, {**good, "config": [2]}]
    (case.tmp / "something").mkdir()
    found = Found()
    case.check(found)
    assert (found.lost, found.left, found.lies) == (1, 1, 1)
    case.reasons["crash"] += 1  # a candidate was told to crash
    found = Found()
    case.check(found)
    assert (found.lost, found.left, found.lies) == (1, 1, 0)
