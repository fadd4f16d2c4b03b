"""Saves the state of an AutoTVM tuner in a JSON file, and reads it. The file is data: nothing in it is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chameleon.errors import UsageError
from chameleon.files import parse_json
from chameleon.search import KnobSpace
from tuners.transfer import frozen

VERSION = 1
KIND = "autotvm-tuner"


def write_state(path: Path, task: Any, searcher: str, state: Mapping[str, Any]) -> None:
    """Writes `state` and the task and searcher that it belongs to. A half-written file is never left at `path`."""
    document = {"chameleon": VERSION, "kind": KIND, "task": _identity(task), "searcher": searcher, "state": state}
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(json.dumps(document, default=lambda array: array.tolist()))
    os.replace(scratch, path)


def read_state(path: Path, task: Any, searcher: str, space: KnobSpace) -> dict[str, Any]:
    """Reads the state in a file and checks that it belongs to this task, searcher and space.

    Raises:
        UsageError: if the file cannot be read or belongs to something else.
    """
    try:
        document = parse_json(path.read_text())
        found = {key: document[key] for key in ("chameleon", "kind", "task", "searcher")}
        state, fingerprint = document["state"], document["state"]["searcher"]["space"]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not the saved state of a tuner ({error!r}); give a file that `save` wrote"
        ) from error
    expected = {"chameleon": VERSION, "kind": KIND, "task": _identity(task), "searcher": searcher}
    for key, value in expected.items():
        if found[key] != value:
            raise UsageError(
                f"{path}: expected {key} {value}, got {found[key]}; load it into the tuner that it was saved from"
            )
    if fingerprint != space.fingerprint():
        raise UsageError(
            f"{path}: the template's knobs have changed since this state was saved (another version of TVM?); "
            "start the tuning again"
        )
    return state


def _identity(task: Any) -> list[Any]:
    """The task's workload, which includes its name, and its target, in the form that JSON gives back."""
    return json.loads(json.dumps([frozen(task.workload), str(task.target)]))
