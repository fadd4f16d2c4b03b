"""A target whose import leaves traces, or fails in the way that a variable names."""

from __future__ import annotations

import os
import threading

IMPORTED_BY = os.getpid()

if os.environ.get("TVM_TEST_IMPORT") == "abort":
    os.abort()
if os.environ.get("TVM_TEST_IMPORT") == "thread":
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def where(variable: str) -> tuple[int, str | None, str, int]:
    """Which process imported this module; then a variable, the folder and this process's parent's parent."""
    with open(f"/proc/{os.getppid()}/stat") as file:
        owner = int(file.read().rpartition(")")[2].split()[1])
    return IMPORTED_BY, os.environ.get(variable), os.getcwd(), owner
