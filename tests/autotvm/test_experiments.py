"""The experiments' scripts in their small form, on the real AutoTVM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm.autotvm.measure import MeasureInput, MeasureResult
from tvm.autotvm.record import encode

from tests.support.scripts import ROOT, run_process
from tuners.autotvm_replay import load_recording, make_task
from tuners.landscape import load_landscape, read_lines

pytestmark = pytest.mark.autotvm

CONV = ROOT / "tests/autotvm/data/small-conv.jsonl.gz"
CUDA_CONV = {
    "template": "conv2d_nchw.cuda",
    "args": [
        ["TENSOR", [1, 16, 14, 14], "float32"],
        ["TENSOR", [32, 16, 3, 3], "float32"],
        [1, 1],
        [1, 1],
        [1, 1],
        "float32",
    ],
    "target": "cuda -arch=sm_70",
}


def ran(script: str, *arguments: Any, code: int = 0) -> str:
    """Output of a script that is expected to end with `code`."""
    done = run_process(script, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_collecting_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    folders = ("--work", tmp_path / "work", "--out", tmp_path / "out")
    assert "200 configurations, 0 on record, 4 to measure" in ran(
        "scripts.papers.collect_landscape", "tiny-conv", "--limit", 4, *folders
    )
    growing = tmp_path / "work" / "tiny-conv.jsonl"
    first = read_lines(growing)
    growing.write_text(growing.read_text()[:-20])  # killed in the middle of a line
    assert "3 on record, 3 to measure" in ran("scripts.papers.collect_landscape", "tiny-conv", "--limit", 6, *folders)
    recording = load_recording(tmp_path / "out" / "tiny-conv.jsonl.gz")
    assert len(recording.answers) == 6
    assert not recording.complete
    assert all(len(answer.costs) == 3 and 0 < min(answer.costs) < 1e-3 for answer in recording.answers.values())
    kept = {tuple(line["config"]): line["seconds"] for line in first[1:-1]}
    landscape = load_landscape(tmp_path / "out" / "tiny-conv.jsonl.gz")
    assert (
        kept.items()
        <= {tuple(c.tolist()): s for c, s in zip(landscape.configs, landscape.values, strict=True)}.items()
    )
    manifest = json.loads((tmp_path / "out" / "tiny-conv.manifest.json").read_text())
    assert manifest["arguments"]["failures"] == {}
    assert len(manifest["arguments"]["reference_s"]) == 1
    assert "was recorded with another seed" in ran(
        "scripts.papers.collect_landscape", "tiny-conv", "--seed", 1, *folders, code=2
    )


def test_collecting_records_builds_that_take_too_long(tmp_path: Path) -> None:
    folders = ("--work", tmp_path / "work", "--out", tmp_path / "out")
    arguments = ("tiny-conv", "--limit", 3, "--build-timeout-s", 0.01, *folders)
    ran("scripts.papers.collect_landscape", *arguments)
    lines = read_lines(tmp_path / "work" / "tiny-conv.jsonl")
    assert [(line["status"], line["error_no"]) for line in lines[1:]] == [("timeout", 6)] * 3


def test_collecting_knows_its_tasks() -> None:
    assert "did you mean tiny-conv" in ran("scripts.papers.collect_landscape", "tini-conv", code=2)


def test_the_papers_table_replayed(tmp_path: Path) -> None:
    arguments = ("replay", CONV, "--seeds", 1, "--trials", 24, "--out", tmp_path)
    names = ["xgb-16", "random", "annealing+adaptive", "chameleon"]
    assert "4/4 runs" in ran("scripts.papers.table", *arguments, "--tuners", ",".join(names))
    assert "runs, last" not in ran("scripts.papers.table", *arguments, "--tuners", ",".join(names))  # all on record
    best_s = load_recording(CONV).best_seconds
    header, *runs = read_lines(tmp_path / "runs.jsonl")
    assert (header["trials"], [run["tuner"] for run in runs]) == (24, names)
    for run in runs:
        assert len(run["seconds"]) == len(run["at_s"]) == 24
        assert min(run["seconds"]) >= best_s * 0.999
        assert (np.diff(run["at_s"]) > 0).all()
        assert run["at_s"][-1] > run["tuner_s"] - 0.2  # measuring comes on top
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["tuner"] for row in results["summary"]] == names
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(names)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_replay_is_repeatable(tmp_path: Path) -> None:
    found = []
    for seeds in (1, 2):
        out = tmp_path / str(seeds)
        ran(
            "scripts.papers.table",
            "replay",
            CONV,
            "--seeds",
            seeds,
            "--trials",
            20,
            "--tuners",
            "ga,release",
            "--out",
            out,
        )
        found.append({(run["tuner"], run["seed"]): run["seconds"] for run in read_lines(out / "runs.jsonl")[1:]})
    few, many = found
    assert few == {key: seconds for key, seconds in many.items() if key[1] == 0}
    assert many["ga", 0] != many["ga", 1]
    assert many["release", 0] != many["release", 1]


def test_the_papers_table_live(tmp_path: Path) -> None:
    ran(
        *(
            "scripts.papers.table",
            "live",
            "--tuners",
            "random,xgb-16,chameleon",
            "--tasks",
            "tiny-conv",
            "--out",
            tmp_path,
        ),
        *("--trials", 8, "--slice-trials", 4, "--rounds", 3, "--budget-s", 600),
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["kernels_us"]["tiny-conv"]) == {"random", "xgb-16", "chameleon"}
    runs = read_lines(tmp_path / "runs.jsonl")[1:]
    assert [len(run["seconds"]) for run in runs] == [8, 8, 8]
    assert all(run["tuner_s"] < run["at_s"][-1] for run in runs)


def test_a_misspelt_tuner() -> None:
    assert "did you mean chameleon" in ran("scripts.papers.table", "replay", CONV, "--tuners", "camelion", code=2)


def test_cost_models_on_a_log(tmp_path: Path) -> None:
    """Seconds follow from the innermost factors: every model learns that, and so ranks what it has not seen."""
    task, rng, log = make_task(CUDA_CONV), np.random.default_rng(0), tmp_path / "made.log"
    with log.open("w") as stream:
        for index in rng.choice(len(task.config_space), 90, replace=False).tolist():
            config = task.config_space.get(index)
            seconds = 1e-3 * (1 + abs(config["tile_f"].size[2] - 4) + abs(config["tile_rc"].size[1] - 4))
            failed = config["tile_x"].size[2] == 7
            result = MeasureResult((1e9,) if failed else (seconds,), 4 if failed else 0, 0.1, 0.0)
            stream.write(encode(MeasureInput(task.target, task, config), result) + "\n")
    out = tmp_path / "out"
    text = ran("scripts.tuning.cost_model_quality", log, "--sizes", 60, "--seeds", 1, "--out", out)
    rows = json.loads((out / "results.json").read_text())["results"]
    assert len(rows) == 2 * 9  # splits x models
    assert min(row["rank"] for row in rows if row["split"] == "first") > 0.3
    assert next(row["rank"] for row in rows if row["model"] == "engine") > 0.6
    assert all(row["recall@64"] == 1 for row in rows)  # fewer than 64 are left
    assert "| engine |" in text


def test_a_log_of_another_space_is_refused(tmp_path: Path) -> None:
    task, log = make_task(CUDA_CONV), tmp_path / "other.log"
    line = json.loads(
        encode(MeasureInput(task.target, task, task.config_space.get(5)), MeasureResult((1e-3,), 0, 0.1, 0.0))
    )
    line["config"]["index"] = 6
    log.write_text(json.dumps(line) + "\n")
    assert "configuration 6 of" in ran("scripts.tuning.cost_model_quality", log, code=1)
    log.write_text("no log\n")
    assert "line 1: a record of AutoTVM's log expected" in ran("scripts.tuning.cost_model_quality", log, code=1)
