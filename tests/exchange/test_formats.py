"""AutoTVM's logs and landscapes as records, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon.cli import main
from chameleon.exchange.sources import lines_of
from chameleon.jobs.records import Records
from tests.support.recorded_run import SPACE, TARGET, TRIALS, make_run
from tuners.landscape import load_landscape

INPUT = ["llvm -keys=cpu", "conv2d_nchw.x86", [["TENSOR", [1, 3, 8, 8], "float32"], [1, 1]], {}]
ROOT = Path(__file__).parents[2]


def log_line(index: int, tile: list[int], unroll: int, cost: float, error: int = 0, **changed: Any) -> Any:
    entity = [["tile_x", "sp", tile], ["unroll", "ot", unroll], ["ann", "an", ["none", "vec"]]]
    config = {"index": index, "code_hash": "abc", "entity": entity}
    line = {"input": INPUT, "config": config, "result": [[cost], error, 0.5, 1700000000.25]}
    return {**line, "version": 0.2, "tvm_version": "0.19.0", **changed}


LOG = [log_line(3, [-1, 4], 0, 2e-3), log_line(9, [-1, 2], 16, 1e-3), log_line(4, [-1, 8], 0, 1e9, 4)]


def write_log(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def best_of(path: Path, folder: Path, *options: str) -> Any:
    assert main(["records", "best", str(path), "--json", str(folder / "best.json"), *options]) == 0
    return json.loads((folder / "best.json").read_text())


def test_a_log_becomes_records_and_a_log_again(tmp_path: Path) -> None:
    log, records, again = write_log(tmp_path / "tune.log", LOG), tmp_path / "r.jsonl", tmp_path / "again.log"
    assert main(["records", "import", str(log), "-o", str(records)]) == 0
    assert main(["records", "export", str(records), "--to", "autotvm", "-o", str(again)]) == 0
    back = [json.loads(line) for line in again.read_text().splitlines()]
    assert [{**line, "tvm_version": "0.19.0"} for line in back] == LOG
    assert best_of(log, tmp_path)["tasks"][0]["best"] == {"tile_x": [-1, 2], "unroll": 16, "ann": ["none", "vec"]}
    assert best_of(records, tmp_path) == best_of(log, tmp_path)
    assert main(["records", "check", str(records)]) == 0


def test_of_repeats_the_best_counts_as_for_autotvm(tmp_path: Path) -> None:
    repeats = [log_line(3, [-1, 4], 0, 1e9, 7), log_line(3, [-1, 4], 0, 3e-3), log_line(3, [-1, 4], 0, 2e-3)]
    records = Records.of_lines(tmp_path, lines_of(write_log(tmp_path / "tune.log", repeats)))
    (task,) = records.tasks.values()
    assert [t.seconds for t in task.trials] == [2e-3]


def test_targets_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = log_line(1, [-1, 4], 0, 1e-3, input=["cuda", *INPUT[1:]])
    log = write_log(tmp_path / "tune.log", [*LOG, other])
    assert main(["records", "list", str(log)]) == 2
    assert "of the targets llvm -keys=cpu; cuda; choose one with --target" in " ".join(capsys.readouterr().err.split())
    assert best_of(log, tmp_path, "--target", "cuda")["tasks"][0]["trials"] == 1


def test_a_template_without_knobs(tmp_path: Path) -> None:
    line = log_line(0, [], 0, 1e-3, config={"index": 0, "code_hash": None, "entity": []})
    log, again = write_log(tmp_path / "tune.log", [line]), tmp_path / "again.log"
    assert main(["records", "export", str(log), "--to", "autotvm", "-o", str(again)]) == 0
    assert json.loads(again.read_text())["config"] == line["config"]


def test_a_broken_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for broken in ({"result": [[1e-3], 0]}, {"config": {"index": 1}}, {"input": []}):
        log = write_log(tmp_path / "tune.log", [LOG[0], {**LOG[1], **broken}])
        assert main(["records", "list", str(log)]) == 1
        assert "not a log of AutoTVM" in capsys.readouterr().err


def test_what_metaschedule_tuned_is_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["records", "export", str(folder), "--to", "autotvm", "-o", str(tmp_path / "x.log")]) == 2
    assert "was not tuned by AutoTVM" in capsys.readouterr().err
    assert not (tmp_path / "x.log").exists()


def test_a_run_becomes_landscapes_that_replay_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", name="../evil/conv")
    assert main(["records", "export", str(folder), "--to", "t4", "-o", str(tmp_path / "t4")]) == 0
    files = sorted(p.name for p in (tmp_path / "t4").iterdir())
    assert files == ["..-evil-conv-k1.t4.json", "dense-k2.t4.json"]
    landscape = load_landscape(tmp_path / "t4" / files[0])
    mine = [t for key, t in TRIALS if key == "k1"]
    assert landscape.space.names == SPACE.names
    assert len(landscape) == len(mine)
    found = {
        tuple(k.values[d] for k, d in zip(landscape.space.knobs, t.config, strict=True)): (t.status, t.seconds)
        for t in landscape.measure(landscape.configs)
    }
    assert found == {
        tuple(k.values[d] for k, d in zip(SPACE.knobs, t.config, strict=True)): (t.status, t.seconds) for t in mine
    }
    replay = ["replay", str(tmp_path / "t4" / files[0]), "--searcher", "random", "--trials", "5", "--seeds", "1"]
    assert main([*replay, "--jobs", "1"]) == 0
    assert "1.000" in capsys.readouterr().out


def test_a_task_without_a_success_makes_no_landscape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    with Records(folder / "trials.jsonl", TARGET) as records:
        records.mark_wrong("k2", (2, 1))
    assert main(["records", "export", str(folder), "--to", "t4", "-o", str(tmp_path / "t4")]) == 0
    assert "no schedule of it worked" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "t4").iterdir()] == ["conv-k1.t4.json"]
    assert main(["records", "export", str(folder), "--to", "t4", "-o", str(tmp_path / "x"), "--task", "dense"]) == 1


def test_a_landscape_becomes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = ROOT / "tests/data/small_t4.t4.json.gz", tmp_path / "r.jsonl"
    assert main(["records", "import", str(file), "-o", str(out)]) == 2
    assert "names no target" in " ".join(capsys.readouterr().err.split())
    assert main(["records", "import", str(file), "-o", str(out), "--target", "cuda"]) == 0
    landscape = load_landscape(file)
    with Records(out, "cuda") as records:
        (task,) = records.tasks.values()
        assert task.knob_space().fingerprint() == task.space
        assert len(task.trials) == len(landscape)
        assert min(t.seconds for t in task.trials if t.seconds) == np.nanmin(landscape.values)
    assert main(["records", "export", str(out), "--to", "t4", "-o", str(tmp_path / "t4")]) == 0
    (back,) = (tmp_path / "t4").iterdir()
    assert load_landscape(back).best == landscape.best
