"""The doctor: tells versions that work from those that do not, and survives a TVM that breaks."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon.doctor.checks import (
    REQUIREMENTS,
    Check,
    Requirement,
    check_distribution,
    read_probe,
    release,
    same_folder,
)

FFI = next(r for r in REQUIREMENTS if r.distribution == "apache-tvm-ffi")


@pytest.mark.parametrize(
    ("version", "ok"),
    [("0.1.13", False), ("0.1.14", True), ("0.1.14.post1", True), ("0.1.15.post2", False), ("0.2", False)],
)
def test_the_pair_that_crashes_is_told_apart(version: str, ok: bool) -> None:
    check = check_distribution(FFI, version)
    assert check.ok == ok
    assert ("0.1.14.post1" in check.advice) == (not ok)
    assert version in check.detail


def test_a_missing_distribution_is_an_error_only_where_it_is_needed() -> None:
    needed = check_distribution(Requirement("no-such-distribution", "1.5"))
    assert not needed.ok
    assert needed.advice == "pip install 'no-such-distribution>=1.5'"
    optional = check_distribution(Requirement("no-such-distribution", optional_for="dreaming"))
    assert optional.ok
    assert "dreaming" in optional.detail


def test_an_installed_distribution_is_found() -> None:
    check = check_distribution(Requirement("pytest", "1.0"))
    assert check == Check("pytest", True, pytest.__version__)


@pytest.mark.parametrize(
    ("text", "numbers"), [("0.27.0.post1", (0, 27, 0)), ("2.13.0+cpu", (2, 13, 0)), ("1.0rc1", (1, 0)), ("odd", ())]
)
def test_the_numbers_of_a_version(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


def test_a_probe_that_breaks_is_reported_with_the_step_it_broke_in() -> None:
    good = json.dumps({"name": "import tvm", "ok": True, "detail": "0.27", "advice": ""})
    found = read_probe(f"next\timport tvm\ncheck\t{good}\nnext\ttuning database\n", "noise\nSegmentation fault", -11)
    assert found[0] == Check("import tvm", True, "0.27")
    assert not found[1].ok
    assert found[1].name == "tuning database"
    assert found[1].detail == "ended by signal 11: Segmentation fault"
    assert "0.1.14.post1" in found[1].advice
    assert read_probe("", "ModuleNotFoundError: No module named 'tvm'", 1)[0].name == "import tvm"


def test_the_doctor_itself_needs_no_tvm() -> None:
    code = "import sys; sys.modules['tvm'] = None; import chameleon.doctor.checks, chameleon.workers.pool"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_distribution_of_that_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would install a folder `chameleon`: whichever came last has overwritten files of the other."""
    assert same_folder().ok
    info = tmp_path / "chameleon-4.6.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Chameleon\nVersion: 4.6.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.metadata.version("chameleon") == "4.6.0"
    found = same_folder()
    assert not found.ok
    assert "4.6.0" in found.detail
    assert "pip uninstall chameleon" in found.advice
