"""Locks on files. They end with the process that holds them, and others can ask about them without taking them.

A lock belongs to an open file (Linux: open file description locks), so two open files of one process exclude each
other as well. It lies on a byte far behind the content: readers and writers of the content do not meet it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from chameleon.errors import ChameleonError

_FLOCK = "hhqqi"
"""The fields of the system's `struct flock`: type, whence, start, length, process."""
_FAR = 1 << 62


def try_lock(file: int, byte: int) -> bool:
    """Take a lock for as long as the file is open; returns whether that was possible.

    Args:
        file: a descriptor, open for writing.
        byte: which of the locks on this file.
    """
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _request(fcntl.F_WRLCK, byte))
    except BlockingIOError:
        return False
    return True


def share_lock(file: int, byte: int) -> None:
    """Take a lock that others may share, for as long as the file is open: it says that somebody is there."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLKW, _request(fcntl.F_RDLCK, byte))


@contextmanager
def locked(file: int, byte: int) -> Iterator[None]:
    """Inside this context nobody else holds the lock; waits until it is free."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLKW, _request(fcntl.F_WRLCK, byte))
    try:
        yield
    finally:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _request(fcntl.F_UNLCK, byte))


def is_locked(file: int, byte: int) -> bool:
    """Whether somebody else holds the lock, alone or shared; nothing is taken, and a file open to read will do."""
    found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, byte))
    return struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK


def _request(kind: int, byte: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, _FAR + byte, 1, 0)


@contextmanager
def claimed(path: os.PathLike[str]) -> Iterator[None]:
    """Inside this context the file, which is made where there is none, is this process's.

    Raises:
        ChameleonError: if it is another's.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not try_lock(file, 0):
            folder = os.path.dirname(os.fspath(path))
            raise ChameleonError(f"{folder} is being written by another process; wait for it or give another --out")
        yield
    finally:
        os.close(file)


def is_claimed(path: os.PathLike[str]) -> bool:
    """Whether a process is inside `claimed` for this file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_locked(file, 0)
    finally:
        os.close(file)
