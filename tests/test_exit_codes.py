"""The command line's exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; messages, never a traceback."""

from __future__ import annotations

import pytest
import typer

from chameleon.cli import guarded, main
from chameleon.errors import ChameleonError, UsageError


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


@pytest.mark.parametrize("arguments", [["--nope"], ["--number", "three"], ["extra"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(application(None), arguments) == 2
    assert "Usage:" in capsys.readouterr().err


def test_commands() -> None:
    assert main(["--help"]) == 0
    assert main(["replay", "--help"]) == 0
    assert main(["replay"]) == 2
    assert main(["replay", "missing.json"]) == 1
    assert main(["no-such-command"]) == 2
