"""One search for two kernels of a real network that hold the same convolution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chameleon.cli import main
from chameleon.errors import UsageError
from scripts.tuning.compare_network import check_ways, in_common, shuffled
from tests.support.networks import write_residual
from tests.support.scripts import run_module

pytestmark = pytest.mark.tvm


def tune(network: Path, out: Path, *options: str) -> dict[str, Any]:
    assert main(["tune", str(network), "--out", str(out), "--json", str(out.with_suffix(".json")), *options]) == 0
    return json.loads(out.with_suffix(".json").read_text())


def trials_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The trial lines of a run's records, by the name of their task."""
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    names = {x["task"]: x["name"] for x in lines if x.get("kind") == "task"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for x in lines:
        if "config" in x:
            found[names[x["task"]]].append({**x, "origin": names.get(x.get("origin", ""))})
    return found


def test_two_kernels_with_one_convolution_share_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, out = write_residual(tmp_path / "residual.onnx"), tmp_path / "run"
    report = tune(network, out, "--trials", "44")
    assert report["comparison"]["agrees"]
    assert "tasks with the same main block share a search" in capsys.readouterr().err
    tasks = {t["name"]: t for t in report["tasks"]}
    (follower,) = [t for t in tasks.values() if t["origin"]]
    leader = tasks[follower["origin"]]
    assert follower["best_us"] is not None
    assert {x["origin"] for x in trials_of(out)[follower["name"]]} == {leader["name"]}
    assert {x["origin"] for x in trials_of(out)[leader["name"]]} == {None}
    assert 1 <= follower["trials"] <= 8 < leader["trials"]

    before = {name: [x["config"] for x in lines] for name, lines in trials_of(out).items()}
    again = tune(network, out, "--trials", "60")
    after = {name: [x["config"] for x in lines] for name, lines in trials_of(out).items()}
    assert again["trials"] == 60
    for name, configs in after.items():
        assert configs[: len(before[name])] == before[name]
        assert len(set(map(tuple, configs))) == len(configs)
    assert {x["origin"] for x in trials_of(out)[follower["name"]]} == {leader["name"]}

    assert main(["compile", str(network), "--out", str(out), "-o", str(tmp_path / "net.so")]) == 0


def test_without_sharing_and_then_with_it(tmp_path: Path) -> None:
    """Records of kernels that were searched apart are the history of their group."""
    network, out = write_residual(tmp_path / "residual.onnx"), tmp_path / "run"
    report = tune(network, out, "--trials", "24", "--no-share")
    assert not any(t["origin"] for t in report["tasks"])
    assert min(t["trials"] for t in report["tasks"] if "conv2d" in t["name"]) >= 4
    report = tune(network, out, "--trials", "40")
    assert report["trials"] == 40
    assert report["comparison"]["agrees"]
    assert any(x["origin"] for lines in trials_of(out).values() for x in lines)


def test_the_script_compares_the_ways(tmp_path: Path) -> None:
    network, out = write_residual(tmp_path / "residual.onnx"), tmp_path / "out"
    options = ("--ways", "tune,apart,misled", "--teacher", network, "--trials", "16", "--rounds", "1", "--out", out)
    ran = run_module("scripts.tuning.compare_network", network, *options)
    assert ran.returncode == 0, ran.stderr
    rows = {row["way"]: row for row in json.loads((out / "results.json").read_text())}
    assert list(rows) == ["tune", "apart", "misled"]
    assert all(row["trials"] == 16 and row["kernels_ms"] > 0 for row in rows.values())
    assert rows["apart"]["followers"] == 0
    for row in rows.values():
        sums = [ms for _, ms in row["curve"]]
        assert sums == sorted(sums, reverse=True)
    assert (out / "table.md").read_text().count("| misled |") == 1
    assert json.loads((out / "manifest.json").read_text())["arguments"]["teacher"] == str(network)


def test_a_shuffled_teacher_keeps_its_times_and_digits(tmp_path: Path) -> None:
    trials = [{"task": t, "config": [i], "seconds": s} for t in "ab" for i, s in enumerate([1.0, 2.0, 3.0, 4.0, None])]
    lines = [{"kind": "task", "task": "a"}, *trials, {"kind": "confirmation", "task": "a", "again": []}]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = [json.loads(x) for x in shuffled(tmp_path, tmp_path / "other.jsonl", 1).read_text().splitlines()]
    assert [x.get("config") for x in found] == [x.get("config") for x in lines[:-1]]
    for task in "ab":
        seconds = [x["seconds"] for x in found if x["task"] == task and "config" in x]
        assert sorted(seconds[:4]) == [1.0, 2.0, 3.0, 4.0]
        assert seconds[4] is None
    assert found != lines[:-1]


def test_kernels_in_common_are_those_that_every_way_has() -> None:
    def row(**best_us: float | None) -> dict[str, Any]:
        tasks = [{"name": n, "best_us": us, "weight": 2, "trials": 8} for n, us in best_us.items()]
        return {"report": {"tasks": tasks}}

    rows = [row(a=1e3, b=2e3, c=None), row(a=4e3, b=None, c=1e3)]
    assert [in_common(r, rows) for r in rows] == [(2.0, 8), (8.0, 8)]
    assert in_common(rows[0], rows[:1]) == (6.0, 16)


def test_ways_that_do_not_exist_or_lack_a_teacher_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean taught"):
        check_ways("tune,taugt", "net")
    with pytest.raises(UsageError, match="needs --teacher"):
        check_ways("tune,taught", None)
