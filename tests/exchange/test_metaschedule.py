"""A run's schedules as a database of MetaSchedule that TVM opens, and back; and the report of a real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.cli import main
from chameleon.exchange.book import measured
from chameleon.jobs.records import Records
from chameleon.kernels.alternatives import replaced_by
from chameleon.kernels.lower import task_key
from chameleon.page.facts import facts_of
from tests.support.tiny_models import save_onnx

pytestmark = pytest.mark.tvm


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network's file, and the folder of its run."""
    folder = tmp_path_factory.mktemp("tuned")
    model = save_onnx("residual", folder / "residual.onnx")
    arguments = [
        "tune",
        str(model),
        "--trials",
        "24",
        "--searcher",
        "random",
        "--no-learn",
        "--out",
        str(folder / "run"),
    ]
    assert main(arguments) == 0
    return model, folder / "run"


def results(path: Path) -> dict[str, dict[Any, float]]:
    """By task the time of each configuration that works, as the run has come to believe it."""
    with Records(path, read_only=True) as records:
        found = {key: measured(records, key) for key in records.tasks}
        return {key: {c: s * (m.now_s or 0) for c, s in m.slowness().items()} for key, m in found.items()}


def test_tvm_opens_what_was_exported_and_it_comes_back(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    model, run = tuned
    database, back, merged = tmp_path / "database", tmp_path / "back.jsonl", tmp_path / "merged.jsonl"
    export = ["records", "export", str(run), "--to", "metaschedule", "--model", str(model)]
    assert main([*export, "-o", str(database)]) == 0
    mine = results(run / "trials.jsonl")

    opened = ms.database.JSONDatabase(work_dir=str(database), allow_missing=False)
    target = Target(json.loads((run / "run.json").read_text())["target"])
    mods: dict[str, list[IRModule]] = {}  # a workload, and other algorithms for it
    for mod in {task_key(r.workload.mod): r.workload.mod for r in opened.get_all_tuning_records()}.values():
        mods.setdefault(replaced_by(mod) or task_key(mod), []).append(mod)
    assert set(mods) == {key for key, times in mine.items() if times}
    for key, forms in mods.items():
        found = [float(opened.query_tuning_record(mod, target, "main").run_secs[0]) for mod in forms]
        assert min(found) == pytest.approx(min(mine[key].values()))
        for mod in forms:
            assert opened.query_schedule(mod, target, "main") is not None  # its trace applies

    assert main(["records", "import", str(database), "-o", str(back)]) == 0
    for key, times in results(back).items():
        assert times == pytest.approx(mine[key])
    assert main(["records", "merge", str(run), str(back), "-o", str(merged)]) == 0
    for key, times in results(merged).items():
        assert times == pytest.approx(mine[key])
    assert main(["records", "check", str(back)]) == 0


def test_only_the_best_of_one_task(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    model, run = tuned
    export = ["records", "export", str(run), "--to", "metaschedule", "--model", str(model), "--best", "2"]
    key, times = max(results(run / "trials.jsonl").items(), key=lambda item: len(item[1]))
    assert main([*export, "--task", key, "-o", str(tmp_path / "database")]) == 0
    opened = ms.database.JSONDatabase(work_dir=str(tmp_path / "database"), allow_missing=False)
    found = sorted(float(r.run_secs[0]) for r in opened.get_all_tuning_records())
    assert found == pytest.approx(sorted(times.values())[:2])


def test_what_stops_an_export(tuned: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = tuned
    for path, word in (
        (run, "is a run of 'residual', from a file; give that file: --model FILE"),
        (run / "trials.jsonl", "is not the folder of a run"),
    ):
        command = ["records", "export", str(path), "--to", "metaschedule", "-o", str(tmp_path / "database")]
        assert main(command) == 2
        assert word in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "database_tuning_record.json").write_text("no json\n")
    (tmp_path / "broken" / "database_workload.json").write_text("no json\n")
    assert main(["records", "list", str(tmp_path / "broken")]) == 1
    assert "not a database of MetaSchedule" in capsys.readouterr().err


def test_the_report_of_a_real_run(tuned: tuple[Path, Path]) -> None:
    _, run = tuned
    (facts,) = facts_of(run)
    report = json.loads((run / "report.json").read_text())
    assert (facts.trials, facts.state) == (report["trials"], "finished")
    assert [(t.name, t.weight, t.trials) for t in facts.tasks] == [
        (t["name"], t["weight"], t["trials"]) for t in report["tasks"]
    ]
    for mine, theirs in zip(facts.tasks, report["tasks"], strict=True):
        assert mine.best_us == pytest.approx(theirs["best_us"])
        assert mine.curve[-1].us == pytest.approx(theirs["best_us"])
    spent = facts.time
    assert spent.search_s is not None
    parts = (spent.search_s, spent.build_s, spent.run_s, spent.confirm_s, spent.rest_s)
    assert sum(parts) == pytest.approx(facts.tuning_s, abs=0.2)  # they do not overlap
