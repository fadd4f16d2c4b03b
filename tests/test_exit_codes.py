"""The command line's exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; messages, never a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from chameleon.cli import guarded, main
from chameleon.errors import ChameleonError, UnforeseenError, UsageError, doing
from chameleon.workers.pool import WorkerStartError


class InternalError(RuntimeError):
    """As TVM's: its text has many lines."""


def application(error: BaseException | None) -> typer.Typer:
    """An application whose one command ends in `error`."""
    app = typer.Typer()

    @app.command()
    def command(number: int = 1) -> None:
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (None, 0, ""),
        (ChameleonError("it broke"), 1, "it broke"),
        (UsageError("no such model"), 2, "no such model"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "disk is full"),
    ],
)
def test_exit_codes(error: BaseException | None, code: int, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(application(error), []) == code
    assert shown in capsys.readouterr().err


UNFORESEEN = [
    InternalError("\n  Check failed: (a == b) is false: shapes differ\n  0: tvm::Foo()\n  1: main\n"),
    FileNotFoundError(2, "No such file or directory", "g++"),
    subprocess.CalledProcessError(1, ["ld", "-o", "x"]),
    np.linalg.LinAlgError("singular"),
    WorkerStartError("a worker could not load tvm:\nTraceback (most recent call last):\n  ..."),
    ZeroDivisionError(),
    KeyError("x"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    AssertionError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    NotImplementedError("[not markup] of rich"),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda e: type(e).__name__)
def test_what_no_check_foresaw_is_one_line_and_a_file(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert guarded(application(error), ["--number", "3"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    (log,) = tmp_path.iterdir()
    assert str(log) in said
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert type(error).__name__ in text
    assert "--number 3" in text


@pytest.mark.parametrize("error", UNFORESEEN[:3], ids=lambda e: type(e).__name__)
def test_debug_shows_the_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(application(error), ["--debug"]) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "the traceback is in" not in said


def test_the_line_says_what_was_being_done_and_the_file_lies_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnforeseenError) as caught, doing("compiling net", tmp_path):
        raise InternalError("Check failed: false")
    assert guarded(application(caught.value), []) == 1
    said = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert said == f"error: compiling net failed: InternalError: Check failed: false; the traceback is in {log}\n"
    assert "Check failed: false" in log.read_text()


@pytest.mark.parametrize("error", [ChameleonError("known"), OSError(28, "full"), KeyboardInterrupt()])
def test_what_has_a_message_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, doing("compiling net"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("arguments", [["--nope"], ["--number", "three"], ["extra"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(application(None), arguments) == 2
    assert "Usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", "resnet18", "--seed", "-1"],
        ["tune", "resnet18", "--seed", str(2**31)],
        ["tune", "resnet18", "--trials", "0"],
        ["tune", "resnet18", "--trials", "1.5"],
        ["tune", "resnet18", "--time-budget", "-5"],
        ["tune", "resnet18", "--time-budget", "0"],
        ["memory", "net.json", "--time-limit", "0"],
        ["memory", "net.json", "--time-limit", "nan"],
        ["memory", "net.json", "--alignment", "0"],
        ["autotvm", "conv2d", "--trials", "0"],
        ["autotvm", "conv2d", "--early-stopping", "0"],
        ["autotvm", "conv2d", "--size", "-3"],
        ["replay", "x.json", "--trials", "0"],
        ["replay", "x.json", "--seeds", "-1"],
        ["replay", "x.json", "--jobs", "0"],
    ],
)
def test_numbers_out_of_range(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_commands() -> None:
    assert main(["--help"]) == 0
    assert main(["replay", "--help"]) == 0
    assert main(["replay"]) == 2
    assert main(["replay", "missing.json"]) == 1
    assert main(["no-such-command"]) == 2


NOTES = (
    "[01:38:04] /project/src/transform.h:1261: Warning: Fast mode segfaults when there are out-of-bounds indices.\n"
    '[01:38:04] /project/src/rules.cc:74: Warning: Unknown schedule rule "meta_schedule.pool_max" for target \n'
    "  s_tir.meta_schedule.cpu.meta_schedule.pool_max\n"
    "[01:38:04] /project/src/other.cc:1: Warning: something else\n"
    "no end of line"
)


@pytest.mark.parametrize("arguments", [[], ["--debug"]])
def test_known_notes_of_tvm_are_left_out(arguments: list[str]) -> None:
    """They go to the file descriptor, as those of C++ code do."""
    code = (
        "import os, sys, typer; from chameleon.cli import guarded\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def command():\n"
        f"    os.write(2, {NOTES.encode()!r})\n"
        "    print('from Python', file=sys.stderr)\n"
        "    raise ValueError('the end')\n"
        f"sys.exit(guarded(app, {arguments!r}))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    known = re.findall("Fast mode|Unknown schedule rule|s_tir", ran.stderr)
    assert known == (["Fast mode", "Unknown schedule rule", "s_tir"] if arguments else [])
    for text in ("something else", "no end of line", "from Python", "the end"):
        assert text in ran.stderr
