"""`chameleon zoo`: shared workloads once, finished models skipped, one that fails does not stop the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from chameleon.cli import main
from chameleon.errors import UsageError
from chameleon.jobs.config import read_yaml
from chameleon.jobs.zoo import read_zoo
from chameleon.locks import claimed
from chameleon.models.load import model_names
from chameleon.page.facts import facts_of
from chameleon.page.html import render
from chameleon.store.place import Url
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
    assert "<title>zoo - Chameleon</title>" in (tmp_path / "zoo" / "report.html").read_text()
    assert records.read_bytes() == before


def test_the_zoos_that_are_shipped_are_valid():
    for name, models, targets in (("small", 3, 1), ("large", 30, 4)):
        zoo = read_zoo(read_yaml(ROOT / "configs" / f"zoo-{name}.yaml"), ROOT / "configs")
        named = {e.spec.model for e in zoo.entries}
        assert len(named) == models
        assert len(zoo.entries) == models * targets == len({e.spec.out for e in zoo.entries})
        assert {m for m in named if not Path(m).is_file()} <= set(model_names())
        assert len({e.spec.records for e in zoo.entries}) == targets
    small = read_zoo(read_yaml(ROOT / "configs" / "zoo-small.yaml"), ROOT / "configs")
    assert {Path(e.spec.model).suffix for e in small.entries} == {"", ".onnx", ".pt2"}


def test_entries_give_shapes_and_open_dimensions_by_name():
    first = {"model": "a.onnx", "input_shape": {"ids": [1, 16], "mask": "1,16"}, "dims": {"batch": 1}}
    second = {"model": "b.onnx", "input_shape": ["ids=1,16"], "dims": ["seq=4"]}
    specs = [entry.spec for entry in read_zoo({"models": [first, second]}).entries]
    assert [s.input_shape for s in specs] == [{"ids": (1, 16), "mask": (1, 16)}, {"ids": (1, 16)}]
    assert [s.dims for s in specs] == [{"batch": 1}, {"seq": 4}]


def test_models_times_targets_and_budgets(tmp_path):
    for name in ("b.onnx", "a.onnx", "c.pt2"):
        (tmp_path / name).touch()
    board = {"name": "board", "target": {"kind": "llvm", "num-cores": 4}, "tracker": "pi:9190", "device_key": "pi"}
    content = {
        "defaults": {"trials": 10, "searcher": "random"},
        "targets": ["native", {**board, "cc": "aarch64-linux-gnu-g++", "trials": 20}],
        "models": ["*.onnx", {"model": "c.pt2", "trials": 30}, {"model": "resnet18", "target": "llvm"}],
    }
    entries = read_zoo(content, tmp_path, ray="auto").entries
    assert [(Path(e.spec.model).name, e.spec.out.name, e.config.trials) for e in entries] == [
        ("a.onnx", "a-native", 10),
        ("a.onnx", "a-board", 20),
        ("b.onnx", "b-native", 10),
        ("b.onnx", "b-board", 20),
        ("c.pt2", "c-native", 30),
        ("c.pt2", "c-board", 30),
        ("resnet18", "resnet18-llvm", 10),
    ]
    assert [e.spec.records.name for e in entries[:2]] == ["trials-native.jsonl", "trials-board.jsonl"]
    spec = entries[1].spec
    assert (spec.tracker, spec.device_key, spec.toolchain.compiler) == ("pi:9190", "pi", "aarch64-linux-gnu-g++")
    assert (entries[0].spec.tracker, entries[0].spec.ray, spec.ray) == (None, "auto", None)
    assert entries[0].spec.model == str(tmp_path / "a.onnx")
    same = {"models": [str(tmp_path / "a.onnx"), {"model": "a.onnx", "trials": 5}]}
    with pytest.raises(UsageError, match="another `name`"):
        read_zoo(same, tmp_path)
    same["models"][1]["name"] = "a-short"
    assert len(read_zoo(same, tmp_path).entries) == 2


def test_one_store_for_the_records_of_all_entries(tmp_path):
    url = f"sqlite:///{tmp_path / 'records.db'}"
    zoo = read_zoo({"out": "zoo", "store": url, "targets": ["native", "llvm"], "models": ["resnet18"]})
    assert zoo.store == Url(url)
    assert [e.spec.records for e in zoo.entries] == [Url(url)] * 2


@pytest.mark.needs("sqlalchemy")
def test_a_zoo_whose_records_are_in_a_store(tmp_path, capsys):
    network = write_network(tmp_path / "net.onnx")
    out, file = tmp_path / "zoo", tmp_path / "zoo.yaml"
    zoo = {"out": str(out), "store": f"sqlite:///{tmp_path / 'records.db'}", "models": [str(network)]}
    file.write_text(yaml.safe_dump({**zoo, "defaults": {"searcher": "random", "trials": 4}}))
    assert main(["zoo", str(file)]) == 0
    assert not list(out.glob("*.jsonl"))
    capsys.readouterr()
    for place, trials in ((file, 4), (out, 0)):  # a folder is not trusted to name a database
        assert main(["zoo", str(place), "--watch", "--progress", "json"]) == 0
        (row,) = json.loads(capsys.readouterr().out.splitlines()[0])["runs"]
        assert (row["state"], row["trials"]) == ("finished", trials)
        assert ("--store URL" in row["problem"]) == (trials == 0)
    (run,) = facts_of(out, Url(zoo["store"]))
    assert run.trials == 4
    assert (out / "report.html").read_text() == render([run], out)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "needs `models`"),
        ({"models": []}, "needs `models`"),
        ({"models": [{"target": "llvm"}]}, "needs `models`"),
        ({"model": []}, "did you mean models"),
        ({"models": [{"model": "resnet18", "trial": 3}]}, "did you mean trials"),
        ({"models": [{"model": "resnet18", "input_shape": "1,x"}]}, "input shape"),
        ({"models": ["none/*.onnx"]}, "no file is like"),
        ({"models": ["resnet18"], "targets": "llvm"}, "list of targets"),
        ({"models": ["resnet18"], "targets": [{"goal": "llvm"}]}, "goal"),
        ({"models": [{"model": "resnet18", "dims": {"batch": -1}}]}, "batch=1"),
    ],
)
def test_bad_zoo_files(content, says):
    with pytest.raises(UsageError, match=says):
        read_zoo(content)


def test_a_zoo_is_followed_from_elsewhere_and_only_one_tunes_it(tmp_path, capsys):
    network = write_network(tmp_path / "net.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    out, file = tmp_path / "zoo", tmp_path / "zoo.yaml"
    zoo = {"out": str(out), "defaults": {"searcher": "random", "trials": 4}, "models": [str(network), "broken.onnx"]}
    file.write_text(yaml.safe_dump(zoo))
    assert main(["zoo", str(file), "--watch"]) == 2
    assert "no zoo has begun" in capsys.readouterr().err

    assert main(["zoo", str(file), "--progress", "json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [e["event"] for e in events]
    assert kinds.count("trial") == 4
    assert kinds[-1] == "exit"
    assert "1 of 2 models failed" in events[-1]["error"]
    run = next(e for e in events if e["event"] == "run")
    assert (run["model"], run["trials"], run["searcher"]) == ("net", 4, "random")
    ends = [e for e in events if e["event"] == "end"]
    assert [bool(e["report"]) for e in ends] == [True, False]
    best = {e["task"]: e["seconds"] for e in events if e["event"] == "best"}
    told = {t["name"]: t["best_us"] for t in ends[0]["report"]["tasks"] if t["best_us"]}
    assert {name: pytest.approx(1e6 * seconds) for name, seconds in best.items()} == told

    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for place in (file, out):
        assert main(["zoo", str(place), "--watch"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("net-this-machine: finished, 4 trials in")
        assert lines[1].startswith("broken-this-machine: failed, 0 trials")
    assert main(["zoo", str(out), "--watch", "--progress", "json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[0])["runs"]
    assert [r["state"] for r in rows] == ["finished", "failed"]
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before

    with claimed(out / "zoo.lock"):
        assert main(["zoo", str(file)]) == 2
    assert "another process tunes the zoo" in capsys.readouterr().err


@pytest.mark.slow
def test_a_zoo_that_is_killed_at_any_moment_ends_with_the_same_trials_and_the_rest(tmp_path):
    """Killed again and again, each time a little later."""
    for name, classes in (("first", 10), ("second", 7), ("third", 5)):
        write_network(tmp_path / f"{name}.onnx", classes=classes)
    zoo = {"out": "zoo", "defaults": {"searcher": "random", "trials": 10}, "models": ["*.onnx"]}
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(zoo))
    records = tmp_path / "zoo" / "trials-this-machine.jsonl"
    command = [sys.executable, "-m", "chameleon.cli", "zoo", "zoo.yaml", "--progress", "json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rng, kept, killed = np.random.default_rng(0), [], 0
    while killed < 3:
        wanted = int(rng.integers(1, 8))
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += json.loads(line)["event"] == "trial"
            if seen == wanted:
                break
        process.kill()
        process.wait()
        process.stdout.close()
        killed += 1
        now = finished_trials(records)
        assert now[: len(kept)] == kept
        assert len(now) >= len(kept) + (wanted if seen == wanted else 0)
        kept = now
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    now = finished_trials(records)
    assert now[: len(kept)] == kept
    assert len({(t["task"], tuple(t["config"])) for t in now}) == len(now)
    reports = [json.loads(p.read_text()) for p in (tmp_path / "zoo").glob("*/report.json")]
    assert len(reports) == 3
    assert sum(r["trials"] for r in reports) == len(now)
    assert all(t["best_us"] for r in reports for t in r["tasks"])


def finished_trials(records: Path) -> list[dict]:
    lines = records.read_bytes().splitlines(keepends=True) if records.exists() else []
    return [
        line for line in (json.loads(x) for x in lines if x.endswith(b"\n")) if "config" in line and "kind" not in line
    ]
