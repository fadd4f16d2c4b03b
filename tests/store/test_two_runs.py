"""Two runs of `chameleon tune` on one store at the same time, and what may go on beside a writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from chameleon.cli import main
from chameleon.store.lines import Line
from chameleon.store.open import lines_at, open_store
from chameleon.store.place import Place, Url
from tests.store.test_store_contract import in_its_turn
from tests.support.networks import write_network
from tests.support.scripts import ROOT

pytestmark = pytest.mark.tvm
SECRET = "gehe1m"


def secret(place: Place) -> str:
    """The store as a user gives it, where it is a server with a password."""
    if not isinstance(place, Url):
        return str(place)
    return place.secret.replace("postgres:@", f"postgres:{SECRET}@")


def tune(model: Path, out: Path, store: str) -> subprocess.Popen[str]:
    """Start a run with five trials, of which none is timed again."""
    preset = out.with_suffix(".yaml")
    confirm = {"contenders": 1, "exchange_s": 0}
    preset.write_text(json.dumps({"trials": 5, "searcher": "random", "confirm": confirm, "store": store}))
    command = [sys.executable, "-m", "chameleon.cli", "tune", str(model), "--out", str(out), "--config", str(preset)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        command, cwd=out.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def trials_in(lines: list[Line]) -> Counter[tuple[str, str, tuple[int, ...]]]:
    return Counter((line["model"], line["task"], tuple(line["config"])) for line in lines if "status" in line)


def test_two_runs_on_one_store(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, names = secret(place), ("first", "second")
    models = [write_network(tmp_path / f"{name}.onnx", classes=n) for name, n in zip(names, (10, 7), strict=True)]
    runs = [tune(model, tmp_path / name, store) for name, model in zip(names, models, strict=True)]
    said = [run.communicate(timeout=500)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said

    lines = lines_at(place)
    found = trials_in(lines)
    assert set(found.values()) == {1}
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in names]
    assert sum(found.values()) == sum(report["trials"] for report in reports) == 10
    assert {line["model"] for line in lines if line.get("kind") == "finished"} == set(names)
    (environment,) = {line["environment"] for line in lines if "status" in line}
    assert [line["environment"] for line in lines if line.get("kind") == "environment"].count(environment) >= 1

    writer = open_store(place, json.loads((tmp_path / "first" / "run.json").read_text())["target"])
    command = [str(models[0]), "--out", str(tmp_path / "first"), "--store", store]
    try:
        with in_its_turn(writer):  # what only reads waits for no writer
            assert main(["compile", *command, "-o", str(tmp_path / "network.so")]) == 0
            assert main(["report", str(tmp_path / "first"), "--store", store]) == 0
            assert main(["records", "best", store]) == 0
    finally:
        writer.close()
    assert (tmp_path / "network.so").stat().st_size > 1000
    assert SECRET not in "".join(said) + "".join(capsys.readouterr())
    written = [p for name in names for p in (tmp_path / name).rglob("*") if p.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]

    if isinstance(place, Url):  # a folder may not name the database that it is read from
        assert main(["compile", *command[:-2], "-o", str(tmp_path / "again.so")]) == 2
        assert "give it: --store URL" in " ".join(capsys.readouterr().err.split())
    assert main(["tune", *command[:3], "--config", str(tmp_path / "first.yaml")]) == 0
    again = trials_in(lines_at(place))  # what both had measured at the same moment counts for one of them only
    assert found.keys() <= again.keys()
    assert set(again.values()) == {1}
