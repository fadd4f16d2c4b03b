"""A database as a store: one table with a row for each line, the same for SQLite and PostgreSQL.

Writers take turns, so that a line with a higher number is never seen before one with a lower number: whoever has read
up to a number has missed nothing. Readers wait for nobody. A line is told by its content (`identity`), so writing it
again, because nobody knows whether the first time succeeded, changes nothing.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    or_,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from chameleon.errors import UsageError, first_line
from chameleon.files import parse_json
from chameleon.store.lines import Line, RecordsError, StoreGone, canonical, identity
from chameleon.store.place import Url

PATIENCE_S = 60.0
"""A database that is gone is asked again for so long."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Between two tries; each pause is twice as long as the one before."""
CONNECT_S = 10
LOCK_NUMBER = 0x6368616D
"""Of the advisory lock in PostgreSQL that whoever writes holds."""
CHUNK = 1000
"""Rows that are sent or fetched together."""

METADATA = MetaData()
RECORDS = Table(
    "chameleon_records",
    METADATA,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("identity", String(32), nullable=False, unique=True),
    Column("target", String(16), nullable=False),  # a hash; the row of kind `tuning` has the text
    Column("kind", String(16), nullable=False),
    Column("workload", Text),
    Column("space", Text),
    Column("environment", Text),
    Column("line", Text, nullable=False),
    Index("chameleon_records_of_target", "target", "number"),
    Index("chameleon_records_of_workload", "target", "workload", "number"),
    sqlite_autoincrement=True,
)
T = TypeVar("T")
logger = logging.getLogger("chameleon")


class SqlStore:
    """The lines of one target in a database.

    Args:
        target: None, for a reader: the only one there.
        workloads: read only lines about these workloads, and those about none.

    Raises:
        RecordsError: if the database cannot be reached; for a reader also if it holds no records of the target.
        UsageError: if it has several targets and none was given, or the URL is none.
    """

    def __init__(
        self, place: Url, target: str | None, *, read_only: bool = False, workloads: Collection[str] | None = None
    ) -> None:
        self.place: Url = place
        self._workloads = None if workloads is None else sorted(workloads)
        self._last = 0  # the highest number that was read
        self._own: set[str] = set()  # identities of lines that were appended and not passed since
        self._engine = _engine(place, read_only=read_only)
        try:
            with _told(place):
                if read_only:
                    self._target = _key(_chosen(self._engine, place, target))
                else:
                    self._target = _key(str(target))
                    with self._turn() as connection:
                        METADATA.create_all(connection)
        except BaseException:
            self.close()
            raise

    def read(self) -> list[tuple[int, Line]]:
        rows = select(RECORDS.c.number, RECORDS.c.identity, RECORDS.c.line).order_by(RECORDS.c.number)
        rows = rows.where(RECORDS.c.target == self._target, RECORDS.c.number > self._last)
        if self._workloads is not None:
            rows = rows.where(or_(RECORDS.c.workload.is_(None), RECORDS.c.workload.in_(self._workloads)))
        with _told(self.place), self._engine.connect() as connection:
            found = [tuple(row) for row in connection.execution_options(yield_per=CHUNK).execute(rows)]
        own = {name for _, name, _ in found if name in self._own}
        self._own -= own
        self._last = max((number for number, *_ in found), default=self._last)
        return [(number, _line(self.place, number, line)) for number, name, line in found if name not in own]

    def append(self, line: Line) -> None:
        row = self._row(line)
        self._patiently(lambda: self._insert([row]))
        self._own.add(row["identity"])

    def extend(self, lines: Sequence[Line]) -> int:
        rows = {row["identity"]: row for row in map(self._row, lines)}
        with _told(self.place):
            return self._insert(list(rows.values()))

    def close(self) -> None:
        self._engine.dispose()

    def _row(self, line: Line) -> dict[str, Any]:
        return {
            "identity": identity({**line, "of": self._target}),
            "target": self._target,
            "kind": str(line.get("kind", "trial")),
            "workload": line.get("task"),
            "space": line.get("space"),
            "environment": line.get("environment"),
            "line": json.dumps(line, separators=(",", ":")),
        }

    def _insert(self, rows: Sequence[dict[str, Any]]) -> int:
        """Insert the rows that are not there; returns how many that were."""
        insert = (sqlite if self._engine.dialect.name == "sqlite" else postgresql).insert(RECORDS)
        insert = insert.on_conflict_do_nothing(index_elements=["identity"])
        new = 0
        with self._turn() as connection:
            for start in range(0, len(rows), CHUNK):
                part = rows[start : start + CHUNK]
                names = select(RECORDS.c.identity).where(RECORDS.c.identity.in_([row["identity"] for row in part]))
                known = set(connection.execute(names).scalars())
                missing = [row for row in part if row["identity"] not in known]
                if missing:
                    connection.execute(insert, missing)
                new += len(missing)
        return new

    @contextmanager
    def _turn(self) -> Iterator[Connection]:
        """A transaction in which nobody else writes; it is on disk when the context ends."""
        with self._engine.execution_options(writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK_NUMBER})"))
            yield connection

    def _patiently(self, step: Callable[[], T]) -> T:
        """Try again while the database is gone.

        Raises:
            StoreGone: after `PATIENCE_S`.
        """
        start_s, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                return step()
            except (OperationalError, InterfaceError, sqlite3.OperationalError) as error:
                left_s = start_s + PATIENCE_S - time.monotonic()
                why = self.place.hide(first_line(_cause(error)))
                if left_s <= 0:
                    raise StoreGone(f"{self.place} has not answered for {PATIENCE_S:.0f} s ({why})") from None
                if pause_s == FIRST_PAUSE_S:
                    logger.warning("%s does not answer (%s); trying again for %.0f s", self.place, why, left_s)
                time.sleep(min(pause_s, max(left_s, 0.01)))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except DBAPIError as error:
                raise RecordsError(f"{self.place}: {self.place.hide(first_line(_cause(error)))}") from None


def targets_of(place: Url) -> list[str]:
    """The targets that a database holds lines of.

    Raises:
        RecordsError: if it cannot be reached, or holds no records.
    """
    engine = _engine(place, read_only=True)
    try:
        with _told(place):
            return _targets(engine, place)
    finally:
        engine.dispose()


def _engine(place: Url, *, read_only: bool) -> Engine:
    try:
        url = make_url(place.secret)
    except (ArgumentError, ValueError):
        raise UsageError(f"{place} is no URL of a database; expected postgresql://user@host/database") from None
    if url.get_backend_name() == "sqlite":
        return _sqlite(place, read_only=read_only)
    options = f"-c idle_in_transaction_session_timeout={CONNECT_S}s -c statement_timeout={CONNECT_S * 60}s"
    arguments = {"connect_timeout": CONNECT_S, "options": options, "keepalives_idle": CONNECT_S}
    arguments |= {"keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 1000 * CONNECT_S}
    url = url.set(drivername="postgresql+psycopg")
    return create_engine(url, connect_args=arguments, pool_size=1, hide_parameters=True)


def _sqlite(place: Url, *, read_only: bool) -> Engine:
    assert place.file is not None
    if read_only and not place.file.is_file():
        raise RecordsError(f"{place}: there is no such file")
    if not read_only:
        place.file.parent.mkdir(parents=True, exist_ok=True)
    arguments = {"timeout": CONNECT_S, "check_same_thread": False}
    engine = create_engine(f"sqlite:///{place.file}", connect_args=arguments, pool_size=1, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver thinks
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")  # readers and a writer do not wait for each other
            connection.execute("PRAGMA synchronous=FULL")  # a line is on disk when its transaction ends

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _chosen(engine: Engine, place: Url, target: str | None) -> str:
    """The target that is asked for, or the only one there."""
    known = _targets(engine, place)
    if target is not None:
        found = next((name for name in known if _key(name) == _key(target)), None)
        if found is None:
            raise RecordsError(f"{place} holds no records of target {target}; it has {'; '.join(known) or 'none'}")
        return found
    if len(known) == 1:
        return known[0]
    raise UsageError(f"{place} holds records of the targets {'; '.join(known) or 'none'}; choose one with --target")


def _targets(engine: Engine, place: Url) -> list[str]:
    with engine.connect() as connection:
        if not inspect(connection).has_table(RECORDS.name):
            raise RecordsError(f"{place} holds no records; `chameleon tune --store` or `records import` writes some")
        rows = select(RECORDS.c.line).where(RECORDS.c.kind == "tuning").order_by(RECORDS.c.number)
        found = [str(parse_json(line).get("target")) for line in connection.execute(rows).scalars()]
    return list({_key(target): target for target in reversed(found)}.values())[::-1]


def _key(target: str) -> str:
    """A hash of a target that does not depend on the order of its options."""
    try:
        return identity({"target": canonical(parse_json(target))})[:16]
    except ValueError:  # the older form, such as `llvm -mcpu=znver4`
        return identity({"target": target})[:16]


def _line(place: Url, number: int, content: str) -> Line:
    try:
        line = parse_json(content)
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise RecordsError(f"{place}:{number}: expected a JSON object, got {content[:80]!r}; remove the row")
    return line


@contextmanager
def _told(place: Url) -> Iterator[None]:
    """Turn an error of the database into one for people, without a password in it."""
    try:
        yield
    except (OperationalError, InterfaceError, sqlite3.OperationalError) as error:
        raise StoreGone(f"{place} does not answer: {place.hide(first_line(_cause(error)))}") from None
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise RecordsError(f"{place} cannot be used: {place.hide(first_line(_cause(error)))}") from None


def _cause(error: Exception) -> BaseException:
    """The driver's error behind one of SQLAlchemy's."""
    return getattr(error, "orig", None) or error
