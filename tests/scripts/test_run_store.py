"""What is finished is kept, whatever ended the run before."""

from __future__ import annotations

from pathlib import Path

import pytest

from chameleon.errors import ChameleonError
from scripts.common.run_store import RunStore


def store(path: Path, trials: int = 3) -> RunStore:
    return RunStore(path, {"kind": "runs", "trials": trials}, lambda line: line["seed"])


def test_finished_runs_are_found_again_and_a_cut_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    first = store(path)
    first.add({"seed": 0, "best": 1.5})
    first.add({"seed": 1, "best": 2.5})
    path.write_text(path.read_text()[:-4])  # killed in the middle of a line
    again = store(path)
    assert again.lines == {0: {"seed": 0, "best": 1.5}}
    again.add({"seed": 1, "best": 3.0})
    assert store(path).lines[1]["best"] == 3.0


def test_runs_made_otherwise_are_refused(tmp_path: Path) -> None:
    store(tmp_path / "runs.jsonl")
    with pytest.raises(ChameleonError, match="give another --out"):
        store(tmp_path / "runs.jsonl", trials=4)
