"""What people see while a job takes its time."""

import io
import time

from rich.console import Console

from chameleon.jobs.stages import stage
from chameleon.live import Notes


def notes(*, terminal: bool) -> tuple[Notes, io.StringIO]:
    text = io.StringIO()
    return Notes(Console(file=text, force_terminal=terminal, width=80), worth_s=0.3), text


def test_a_stage_is_a_line_when_it_begins_and_one_with_seconds_when_it_took_long():
    say, text = notes(terminal=False)
    with stage(say, "loading [net]"):
        assert text.getvalue() == "loading [net]\n"
    with stage(say, "lowering"):
        time.sleep(0.4)
    assert text.getvalue().splitlines()[1:] == ["lowering", "lowering: 0.4 s"]


def test_on_a_terminal_the_seconds_pass():
    say, text = notes(terminal=True)
    with stage(say, "lowering"):
        time.sleep(1.5)
        assert "lowering: 0 s" in text.getvalue()
        assert "lowering: 1 s" in text.getvalue()


def test_a_plain_function_is_told_of_a_stage():
    said: list[str] = []
    with stage(said.append, "loading"):
        pass
    assert said == ["loading"]
