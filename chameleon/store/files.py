"""A file of JSON lines as a store: several processes append to it in turns, a synced line at a time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from chameleon.locks import is_locked, locked, share_lock
from chameleon.store.lines import Line, RecordsError, identity, is_of, parse_lines

TURN, WRITER = 0, 1
"""The locks: held while a line is written; shared by all processes that have the file open to write."""
PIECE_BYTES = 1 << 24
"""A file is read in such pieces."""
LINE_BYTES = 1 << 26
"""No line of records is longer: it would be another kind of file, or one that was made to fill the memory."""
logger = logging.getLogger("chameleon")


class FileStore:
    """A file that is only ever appended to.

    A last line without its end is torn: its writer was killed, or the disk was full. The next writer cuts it off.
    Readers ignore it, since a writer may be in the middle of that line.

    Args:
        workloads: read only lines about these workloads, and those about none.

    Raises:
        OSError: if the file cannot be created or read.
        RecordsError: while it is read, if there is something else in it.
    """

    def __init__(self, path: Path, *, read_only: bool = False, workloads: Collection[str] | None = None) -> None:
        self.place: Path = path
        self._read_only, self._workloads = read_only, workloads
        new = not read_only and not path.exists()
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._file = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self._end = 0  # bytes that were read, or written by this object
        self._number = 0  # lines in front of that
        self._unread: list[tuple[int, Line]] = []
        if not read_only:
            share_lock(self._file, WRITER)
        if new:
            _sync(path.parent)  # without it a power cut may take the whole file

    def read(self) -> list[tuple[int, Line]]:
        if self._read_only:
            self._catch_up(mend=False)
        else:
            with locked(self._file, TURN):  # nobody is in the middle of a line, so a torn one can be cut off
                self._catch_up(mend=True)
        found, self._unread = self._unread, []
        return found

    def append(self, line: Line) -> None:
        with locked(self._file, TURN):
            self._catch_up(mend=True)
            self._write([line])
            self._number += 1

    def extend(self, lines: Sequence[Line]) -> int:
        with locked(self._file, TURN):
            self._catch_up(mend=True)
            known = {identity(x) for whole, _ in self._pieces(0) for x in parse_lines(self.place, whole)}
            missing = [
                line for line in {identity(line): line for line in lines}.values() if identity(line) not in known
            ]
            if missing:
                end = self._end
                self._write(missing)
                self._end = end
        return len(missing)

    def close(self) -> None:
        os.close(self._file)

    def _catch_up(self, *, mend: bool) -> None:
        """Read the whole lines behind the last ones.

        Args:
            mend: cut off a torn last line; only with the lock.
        """
        torn = 0  # bytes
        for whole, left in self._pieces(self._end):
            for line in parse_lines(self.place, whole, self._number + 1):
                self._number += 1
                if is_of(line, self._workloads):
                    self._unread.append((self._number, line))
            self._end += len(whole)
            torn = left
        if mend and torn:
            logger.warning("%s: cut off a torn last line (%d bytes)", self.place, torn)
            os.ftruncate(self._file, self._end)

    def _pieces(self, start: int) -> Iterator[tuple[bytes, int]]:
        """The whole lines from a place on, some megabytes at a time, and how many bytes of a line follow them."""
        end, rest = os.fstat(self._file).st_size, b""
        while start < end and (part := os.pread(self._file, min(PIECE_BYTES, end - start), start)):
            start += len(part)
            content = rest + part
            cut = content.rfind(b"\n") + 1
            rest = content[cut:]
            if len(rest) > LINE_BYTES:
                raise RecordsError(
                    f"{self.place}: not a file of records: it has a line of more than {LINE_BYTES >> 20} MB"
                )
            yield content[:cut], len(rest)

    def _write(self, lines: Sequence[Line]) -> None:
        """Append lines, all or none, and wait until they are on disk."""
        content = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except BaseException:  # the disk is full: no part of a line is left for the next writer
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(content)


def is_written(path: Path) -> bool:
    """Whether a process has a file of records open to write; asked without taking a lock."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_locked(file, WRITER)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
