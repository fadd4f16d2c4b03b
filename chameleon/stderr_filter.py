"""Keeps notes of TVM's C++ code from the terminal that say nothing to people, and that cannot be switched off.

TVM writes them to the file descriptor of standard error, where no logger of Python sees them. They are:

- `Unknown schedule rule`: some operators (pooling, Winograd) name a rule of their own that exists for other targets
  only. TVM then takes its usual rules.
- `Fast mode segfaults`: said of each `take` when it becomes a kernel. The ids that kernels are timed with, and those
  that networks are compared with, are inside the tables.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

KNOWN = re.compile(rb"Warning: (Unknown schedule rule|Fast mode segfaults)|^ +s_tir\.meta_schedule\.[\w.]+$")
"""A known note; the first one has a second line, the name of the rule that is not there."""
_BEGINS_A_NOTE = re.compile(rb"\[\d| +s_tir")


@contextlib.contextmanager
def without_known_notes() -> Iterator[None]:
    """Inside this context, leave out the known notes of what C++ code writes to standard error.

    What Python writes goes its usual way, past the filter.
    """
    try:
        kept = os.dup(2)
        reads, writes = os.pipe()
    except OSError:  # no standard error, or no descriptors left: nothing to filter
        yield
        return
    with contextlib.ExitStack() as stack:
        direct = _direct_stderr(kept)
        if direct is not None:
            stack.enter_context(contextlib.redirect_stderr(direct))
        os.dup2(writes, 2)
        os.close(writes)
        thread = threading.Thread(target=_pass_on, args=(reads, kept), daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.dup2(kept, 2)  # this closes our end of the pipe: the thread sees its end
            thread.join(timeout=1.0)
            if not thread.is_alive():  # a process that we started and that still runs may hold the other end
                os.close(kept)


def _direct_stderr(fd: int) -> TextIO | None:
    """A stream past the filter; None if Python's own stream goes elsewhere already."""
    try:
        if sys.stderr is None or sys.stderr.fileno() != 2:
            return None
    except (OSError, ValueError):  # a stream in memory
        return None
    return open(fd, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)


def _pass_on(source: int, sink: int) -> None:
    """Copy lines that are not known notes. The beginning of a line waits only if it may become one."""
    rest = b""
    with contextlib.suppress(OSError):
        while data := os.read(source, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            out = b"".join(line + b"\n" for line in lines if not KNOWN.search(line))
            if rest and not _BEGINS_A_NOTE.match(rest):
                out, rest = out + rest, b""
            _write(sink, out)
        _write(sink, rest)
    os.close(source)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
