"""The job on a real TVM: tune, resume, survive, compile, run - each through the command line."""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from chameleon.cli import main
from tests.support.networks import write_network

pytestmark = pytest.mark.tvm
WAIT_S = 240


@pytest.fixture
def network(tmp_path) -> Path:
    return write_network(tmp_path / "tiny.onnx")


def trial_lines(out: Path) -> list[dict]:
    """The whole trial lines of a run's records, also while it is being written."""
    path = out / "trials.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in lines if "config" in line]


def best_us(out: Path) -> dict[str, float]:
    """The best time of each task: the best trial's, or the median of the confirmed one that is best when it is cold.

    What won in the network comes before both.
    """
    names, best, confirmed, won = {}, {}, {}, {}
    for line in map(json.loads, (out / "trials.jsonl").read_text().splitlines()):
        kind = line.get("kind")
        if kind == "task":
            names[line["task"]] = line["name"]
        elif kind == "confirmation":
            again = [a for a in line["again"] if a["seconds"]]
            medians = {tuple(a["config"]): statistics.median(a["seconds"]) for a in again}
            first = min(again, key=lambda a: statistics.median(a["cold"]))
            confirmed[line["task"]] = medians[tuple(first["config"])]
            won[line["task"]] = medians
        elif kind == "exchange":
            confirmed[line["task"]] = won[line["task"]][tuple(line["winner"]["config"])]
        elif line.get("status") == "ok":
            best[line["task"]] = min(line["seconds"], best.get(line["task"], float("inf")))
    return {name: confirmed.get(task, best[task]) * 1e6 for task, name in names.items()}


def start_tuning(network: Path, out: Path, trials: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chameleon.cli", "tune", str(network), "--out", str(out), "--trials", str(trials)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_trials(process: subprocess.Popen[str], out: Path, n: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while len(trial_lines(out)) < n:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"fewer than {n} trials"
        time.sleep(0.02)


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, left


def assert_nothing_twice(out: Path) -> None:
    measured = [(line["task"], tuple(line["config"])) for line in trial_lines(out)]
    assert len(measured) == len(set(measured))


def test_tune_then_resume_then_compile_and_bench(network, tmp_path, capsys):
    out, json_file = tmp_path / "run", tmp_path / "report.json"
    command = ["tune", str(network), "--out", str(out), "--trials", "24", "--json", str(json_file)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    report = json.loads(json_file.read_text())
    assert report["comparison"]["reference"] == "ONNX Runtime"
    assert report["comparison"]["agrees"]
    assert report["comparison"]["summary"] in " ".join(printed.split())
    assert report["model"] == "tiny"
    assert report["trials"] == 24 == len(trial_lines(out)) == sum(t["trials"] for t in report["tasks"])
    assert set(report["tasks"][0]) == {
        "name",
        "weight",
        "flop",
        "best_us",
        "trials",
        "origin",
        "algorithm",
        "chosen_by",
        "cold_us",
    }
    assert {t["chosen_by"] for t in report["tasks"]} <= {"trial", "confirmation", "network"}
    found = report["breakdown"]
    parts = ("alone_ms", "cold_ms", "slower_ms", "untimed_ms", "allocation_ms", "calls_ms")
    assert sum(found[part] for part in parts) == pytest.approx(found["network_ms"])
    # A kernel that only changes the shape becomes a view, which is not called.
    called = {k["task"] for k in found["kernels"]}
    assert called <= {t["name"] for t in report["tasks"]}
    assert {t["name"] for t in report["tasks"] if t["flop"] and t["best_us"]} <= called
    assert "of kernels as timed alone" in printed
    assert report["latency_ms"]["untuned"] > 0
    assert report["latency_ms"]["tuned"] > 0
    low, high = report["quartiles_ms"]["tuned"]
    assert low <= report["latency_ms"]["tuned"] <= high
    assert "quartiles" in printed
    assert {t["name"]: t["best_us"] for t in report["tasks"]} == pytest.approx(best_us(out))
    assert str(out.name) in printed.replace("\n", "")

    before = (out / "trials.jsonl").read_bytes()
    assert json.loads(before.splitlines()[-1])["kind"] == "finished"
    artifact = (out / "network.so").stat().st_mtime_ns
    assert main(command) == 0
    assert f"measured before, on {report['measured_on']}" in capsys.readouterr().out.replace("\n", " ")
    assert (out / "trials.jsonl").read_bytes() == before
    assert (out / "network.so").stat().st_mtime_ns == artifact
    again = json.loads(json_file.read_text())
    assert again.pop("measured_before")
    assert not report.pop("measured_before")
    assert report.pop("finish_s") > again.pop("finish_s") == 0
    assert again == report

    assert main(["compile", str(network), "--out", str(out), "-o", str(tmp_path / "net.so")]) == 0
    capsys.readouterr()
    for library in (tmp_path / "net.so", out / "network.so"):
        np.testing.assert_allclose(
            run_with_plain_tvm(library, tmp_path), run_with_onnxruntime(network), rtol=1e-4, atol=1e-5
        )

    assert main(["bench", str(network), "--out", str(out), "--json", str(tmp_path / "bench.json")]) == 0
    bench = json.loads((tmp_path / "bench.json").read_text())
    assert "ONNX Runtime" in capsys.readouterr().out
    assert all(bench["latency_ms"][name]["median"] > 0 for name in ("untuned", "tuned", "onnxruntime"))


def test_fewer_trials_than_tasks_are_warned_of(network, tmp_path, capsys):
    assert main(["tune", str(network), "--out", str(tmp_path / "run"), "--trials", "3", "--searcher", "random"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "warning: 3 trials for 6 tasks: at least 3 tasks stay untuned" in told
    assert "no schedule for 3 tasks" in told


def example() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(1, 3, 16, 16)).astype(np.float32)


def run_with_onnxruntime(network: Path) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"]).run(None, {"x": example()})[0]


def run_with_plain_tvm(library: Path, tmp_path: Path) -> np.ndarray:
    """In a process of its own that imports nothing but TVM and numpy."""
    np.save(tmp_path / "x.npy", example())
    code = (
        "import sys, numpy, tvm; from tvm import relax\n"
        "vm = relax.VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())\n"
        "out = vm['main'](tvm.runtime.tensor(numpy.load(sys.argv[2])))\n"
        "out = out if hasattr(out, 'numpy') else out[0]\n"
        "numpy.save(sys.argv[3], out.numpy())\n"
        "assert not any(m.split('.')[0] in ('chameleon', 'tuners') for m in sys.modules)\n"
    )
    files = [str(library), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([sys.executable, "-c", code, *files], check=True, timeout=WAIT_S)
    return np.load(tmp_path / "y.npy")


def test_a_killed_run_loses_no_trial_leaves_no_process_and_resumes(network, tmp_path):
    out = tmp_path / "run"
    process = start_tuning(network, out, trials=400)
    wait_for_trials(process, out, 12)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    before = trial_lines(out)
    process.send_signal(signal.SIGKILL)
    process.wait(WAIT_S)
    assert_gone(family)
    kept = trial_lines(out)
    assert kept[: len(before)] == before

    assert main(["tune", str(network), "--out", str(out), "--trials", str(len(kept) + 6)]) == 0
    assert trial_lines(out)[: len(kept)] == kept
    assert len(trial_lines(out)) == len(kept) + 6
    assert_nothing_twice(out)


def test_killed_workers_are_replaced(network, tmp_path):
    out = tmp_path / "run"
    process = start_tuning(network, out, trials=20)
    wait_for_trials(process, out, 6)
    family = psutil.Process(process.pid).children(recursive=True)
    for child in family:
        child.kill()
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, output
    assert len(trial_lines(out)) == 20
    assert_nothing_twice(out)
    assert sum(line["status"] == "ok" for line in trial_lines(out)) >= 10
    assert_gone(family)


def test_ctrl_c_keeps_what_was_measured(network, tmp_path):
    out = tmp_path / "run"
    process = start_tuning(network, out, trials=400)
    wait_for_trials(process, out, 6)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "goes on from there" in output
    assert_gone(family)
    assert len(trial_lines(out)) >= 6


def test_a_full_disk_ends_the_run_and_a_later_one_goes_on(network, tmp_path):
    """The records may not grow any more, as on a full disk; the workers are not bounded, they run already."""
    out = tmp_path / "run"
    process = start_tuning(network, out, trials=400)
    wait_for_trials(process, out, 6)
    limit = (out / "trials.jsonl").stat().st_size + 100
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert "records" in output
    kept = trial_lines(out)
    assert len(kept) >= 6
    assert main(["tune", str(network), "--out", str(out), "--trials", str(len(kept) + 4)]) == 0
    assert trial_lines(out)[: len(kept)] == kept
    assert_nothing_twice(out)


@pytest.mark.skipif(os.name != "posix", reason="file locks")
def test_two_runs_do_not_share_a_folder(network, tmp_path, capsys):
    out = tmp_path / "run"
    process = start_tuning(network, out, trials=400)
    try:
        wait_for_trials(process, out, 1)
        assert main(["tune", str(network), "--out", str(out), "--trials", "4"]) == 1
        assert "another process" in capsys.readouterr().err
        assert main(["compile", str(network), "--out", str(out), "-o", str(tmp_path / "now.so")]) == 0
        assert process.poll() is None  # compiled from what there was at that time
    finally:
        process.kill()
        process.communicate()
