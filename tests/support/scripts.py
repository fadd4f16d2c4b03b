"""Run a script of the checkout, or the command line: in this process, or in one of its own."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any

from chameleon.cli import guarded
from scripts.common.capture import captured, text_of

ROOT = Path(__file__).parents[2]


def run_module(module: str, *arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `python -m MODULE ARGUMENTS` does in the folder `cwd` (by default the checkout), but in this process.

    That saves the import of TVM, which takes longer than most scripts in their small forms.
    """
    command = [module, *map(str, arguments)]
    app = importlib.import_module(module).app
    with ExitStack() as stack:
        stack.enter_context(chdir(cwd or ROOT))
        out, err = (stack.enter_context(captured(number)) for number in (1, 2))
        code = guarded(app, command[1:])
        said = [text_of(stream) for stream in (out, err)]
    return subprocess.CompletedProcess(command, code, *said)


def run_process(module: str, *arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS`, with the checkout on the path, in the folder `cwd` (by default the checkout)."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
