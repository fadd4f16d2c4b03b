"""What people see while a job takes its time."""

import io
import json
import time

import pytest
from rich.console import Console

from chameleon.jobs.stages import stage
from chameleon.live import Notes, Progress, ProgressKind


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


def failing_job():
    with Progress(ProgressKind.JSON, Console(), Console()) as told:
        assert told.console is None
        told.say("two [bold] words")
        with stage(told.say, "loading"):
            print("what a library says")
        told.ended("net", None, None, "no such file")
        raise OSError("the disk is full")


def test_programs_get_events_and_nothing_else(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(OSError, match="the disk is full"):
        failing_job()
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["event"] for e in events] == ["message", "stage", "stage", "end", "exit"]
    assert (events[0]["text"], events[-2]["error"], events[-1]["error"]) == (
        "two [bold] words",
        "no such file",
        "the disk is full",
    )
    assert "took_s" in events[2]
    assert err == "what a library says\n"


@pytest.mark.parametrize(("kind", "terminal"), [(ProgressKind.RICH, True), (ProgressKind.PLAIN, False)])
def test_the_way_that_is_asked_for_is_taken(kind: ProgressKind, terminal: bool):
    other = Console(force_terminal=not terminal)
    told = Progress(kind, other, other)
    assert told.console is not None
    assert told.console.is_terminal is terminal
    assert Progress(ProgressKind.AUTO, other, other).console is other
