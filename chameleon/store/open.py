"""Opens the store at a place; SQLAlchemy is loaded only for a database."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from chameleon.errors import ChameleonError
from chameleon.store.files import FileStore
from chameleon.store.lines import Line, Store
from chameleon.store.place import Place, Url


def open_store(
    place: Place, target: str | None = None, *, read_only: bool = False, workloads: Collection[str] | None = None
) -> Store:
    """A store to read and to append to.

    Args:
        target: whose lines; None, for a reader: the only one that a database has lines of. A file has one anyway.
        read_only: it must be there, and is not written to.
        workloads: read only lines about these, and those about none.

    Raises:
        RecordsError: if the database cannot be reached, or holds no records to read.
        UsageError: if it has several targets and none was given.
        ChameleonError: if what it needs is not installed.
        OSError: if a file cannot be created or read.
    """
    if isinstance(place, Path):
        return FileStore(place, read_only=read_only, workloads=workloads)
    return _databases(place).SqlStore(place, target, read_only=read_only, workloads=workloads)


def exists(place: Place) -> bool:
    """Whether there is a file; a database elsewhere is taken to be there until it is asked."""
    path = place.file if isinstance(place, Url) else place
    return path is None or path.exists()


def targets_of(place: Url) -> list[str]:
    """The targets that a database holds lines of.

    Raises:
        RecordsError: if it cannot be reached, or holds no records.
    """
    return _databases(place).targets_of(place)


def lines_at(place: Place, target: str | None = None) -> list[Line]:
    """All lines at a place, header first.

    Raises:
        RecordsError, UsageError, ChameleonError, OSError: as `open_store`.
    """
    store = open_store(place, target, read_only=True)
    try:
        return [line for _, line in store.read()]
    finally:
        store.close()


def _databases(place: Url):
    extra = "store" if place.file else "postgres"
    try:
        if extra == "postgres":
            import psycopg  # noqa: F401
        from chameleon.store import sql
    except ModuleNotFoundError as error:
        raise ChameleonError(f"{place} needs {error.name} (pip install 'chameleon-tvm[{extra}]')") from error
    return sql
