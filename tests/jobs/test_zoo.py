"""`chameleon zoo`: shared workloads once, finished models skipped, one that fails does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from chameleon.errors import UsageError
from chameleon.jobs.config import read_yaml
from chameleon.jobs.zoo import read_zoo
from chameleon.models.load import model_names
from tests.support.networks import write_network
from tests.support.scripts import ROOT, run_module

pytestmark = pytest.mark.tvm


def run_zoo(file: Path) -> tuple[int, str]:
    done = run_module("chameleon.cli", "zoo", file, cwd=file.parent)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def owners(records: Path) -> dict[str, set[str]]:
    """Which models measured each task."""
    found: dict[str, set[str]] = {}
    for line in map(json.loads, records.read_text().splitlines()):
        if "config" in line:
            found.setdefault(line["task"], set()).add(line["model"])
    return found


def test_a_zoo_shares_workloads_skips_what_is_finished_and_survives_a_broken_model(tmp_path):
    first = write_network(tmp_path / "first.onnx")
    second = write_network(tmp_path / "second.onnx", classes=7)  # another dense layer, the same convolutions
    zoo = {
        "out": "zoo",
        "defaults": {"searcher": "random", "trials": 12},
        "models": [{"model": str(first)}, {"model": "broken.onnx"}, {"model": str(second), "trials": 6}],
    }
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(zoo))

    code, text = run_zoo(tmp_path / "zoo.yaml")
    assert code == 1, text
    assert "1 of 3 models failed" in text
    records = tmp_path / "zoo" / "trials-this-machine.jsonl"
    by_task = owners(records)
    assert all(len(models) == 1 for models in by_task.values())
    assert {"first", "second"} == set.union(*by_task.values())
    reports = {
        name: json.loads((tmp_path / "zoo" / f"{name}-this-machine" / "report.json").read_text())
        for name in ("first", "second")
    }
    assert all(t["best_us"] for r in reports.values() for t in r["tasks"])
    own = [task for task, models in by_task.items() if models == {"second"}]
    assert 0 < len(own) < len(reports["second"]["tasks"])

    before = records.read_bytes()
    del zoo["models"][1]
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(zoo))
    code, text = run_zoo(tmp_path / "zoo.yaml")
    assert code == 0, text
    assert text.count("finished before") == 2
    assert records.read_bytes() == before


def test_the_zoo_that_is_shipped_is_valid():
    entries = read_zoo(read_yaml(ROOT / "configs" / "zoo-small.yaml"))
    assert {e.spec.model for e in entries} <= set(model_names())
    assert len({e.spec.records for e in entries}) == 1


def test_entries_give_shapes_and_open_dimensions_by_name():
    first = {"model": "a.onnx", "input_shape": {"ids": [1, 16], "mask": "1,16"}, "dims": {"batch": 1}}
    second = {"model": "b.onnx", "input_shape": ["ids=1,16"], "dims": ["seq=4"]}
    specs = [entry.spec for entry in read_zoo({"models": [first, second]})]
    assert [s.input_shape for s in specs] == [{"ids": (1, 16), "mask": (1, 16)}, {"ids": (1, 16)}]
    assert [s.dims for s in specs] == [{"batch": 1}, {"seq": 4}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "needs `models`"),
        ({"models": []}, "needs `models`"),
        ({"models": [{"target": "llvm"}]}, "needs `models`"),
        ({"model": []}, "did you mean models"),
        ({"models": [{"model": "resnet18", "trial": 3}]}, "did you mean trials"),
        ({"models": [{"model": "resnet18", "input_shape": "1,x"}]}, "input shape"),
        ({"models": [{"model": "resnet18", "dims": {"batch": -1}}]}, "batch=1"),
    ],
)
def test_bad_zoo_files(content, says):
    with pytest.raises(UsageError, match=says):
        read_zoo(content)
