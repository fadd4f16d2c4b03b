"""Tells people what a job is doing while it takes its time: loading, lowering, compiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]


@contextmanager
def stage(say: Say, text: str) -> Iterator[None]:
    """Say what is done inside this context.

    Args:
        say: takes a message for people. If it has a method `stage`, such as `chameleon.live.Notes`, that one shows the
            stage and how many seconds it takes.
    """
    show = getattr(say, "stage", None)
    if show is None:
        say(text)
        yield
    else:
        with show(text):
            yield
