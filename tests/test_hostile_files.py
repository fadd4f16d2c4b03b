"""Files made to fill the memory or to overrun the stack: each is refused with a message, whatever reads it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from chameleon.errors import ChameleonError
from chameleon.files import parse_json, read_json
from chameleon.jobs.config import read_yaml
from chameleon.serenity.graph import read_graph
from chameleon.store import files
from chameleon.store.lines import RecordsError, tuning_header
from chameleon.store.open import lines_at
from tuners import landscape
from tuners.landscape import LandscapeError, load_landscape

DEEP = "[" * 200_000


def test_deep_nesting_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text(DEEP + "\n")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    assert read_json(path) == {}
    for read in (lines_at, load_landscape, read_graph, read_yaml):
        with pytest.raises(ChameleonError):
            read(path)


def test_a_line_of_records_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.jsonl"
    header = tuning_header("llvm")
    path.write_text(str(header).replace("'", '"') + "\n" + '{"kind": "' + "x" * 5000)
    assert lines_at(path) == [header]  # torn
    monkeypatch.setattr(files, "LINE_BYTES", 4096)
    with pytest.raises(RecordsError, match="not a file of records: it has a line of more than"):
        lines_at(path)


def test_a_small_file_does_not_unpack_to_a_huge_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b" " * (1 << 24)))
    assert path.stat().st_size < 1 << 15
    monkeypatch.setattr(landscape, "LARGEST_BYTES", 1 << 20)
    with pytest.raises(LandscapeError, match="holds more than 1 MB"):
        load_landscape(path)
