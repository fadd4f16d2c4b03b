"""Collects what is said on the standard streams, so that a command can be called in this process and judged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import IO

_REDIRECTS = {1: redirect_stdout, 2: redirect_stderr}


@contextmanager
def captured(*numbers: int) -> Iterator[IO[str]]:
    """Collect what is written to these streams (1, 2), also by libraries and by processes that are started."""
    with tempfile.TemporaryFile("w+", errors="replace") as stream, ExitStack() as stack:
        for number in numbers:
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(stream.fileno(), number)
            stack.enter_context(_REDIRECTS[number](stream))
        try:
            yield stream
        finally:
            stream.flush()


def text_of(stream: IO[str]) -> str:
    """All that was collected so far."""
    stream.flush()
    stream.seek(0)
    return stream.read()
