"""A network is tuned for processors that qemu emulates, runs there, and computes what it computes here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from scripts.fleets.emulated import DEVICES
from tests.support.networks import write_network
from tests.support.scripts import run_module

pytestmark = [pytest.mark.tvm, pytest.mark.slow]


@pytest.mark.parametrize("name", DEVICES)
def test_a_tuned_network_runs_on_an_emulated_device_and_its_outputs_are_those_of_this_machine(
    name: str, tmp_path: Path
) -> None:
    if lacking := DEVICES[name].lacking():
        pytest.skip(f"emulating {name} needs {lacking}")
    network = write_network(tmp_path / "tiny.onnx")
    arguments = [network, "--processors", name, "--trials", "6", "--out", tmp_path / "out"]
    ran = run_module("scripts.fleets.emulated", *arguments)
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert row["trials"] == 6
    assert row["failures"] == {}
    assert row["tuned"] > 0
    assert row["fault"] == ""
    assert row["relative"] <= row["tolerance"]
    assert f"| {name} | tiny |" in (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/manifest.json").is_file()
