"""Run a script of the checkout, or the command line, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_module(module: str, *arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
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
