"""A manifest says what a result was made with, and nothing of the folders of the machine it was made on."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy

from chameleon.manifest import write_manifest


def test_manifest(tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.json"
    write_manifest(path, {"seeds": 3, "files": [tmp_path / "a.json"], "names": ("x", "y"), "out": None})
    facts = json.loads(path.read_text())
    assert facts["arguments"] == {"seeds": 3, "files": ["a.json"], "names": ["x", "y"], "out": None}
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["numpy"] == numpy.__version__
    assert facts["commit"] is None or len(facts["commit"]) == 40
    assert (facts["dirty"] is None) == (facts["commit"] is None)
    assert str(tmp_path) not in path.read_text()
