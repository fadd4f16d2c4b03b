"""Tuning where something that every candidate needs is missing: nothing is recorded, and later it goes on."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from chameleon.cli import main
from chameleon.errors import ChameleonError
from chameleon.jobs.failure_row import FailureRow
from chameleon.jobs.measurer import Measurer
from chameleon.jobs.records import Records
from chameleon.search import KnobSpace, Status, Trial, option
from chameleon.target import parse_target
from chameleon.workers.faults import EnvironmentFault
from tests.support.networks import write_network

pytestmark = pytest.mark.tvm

NO_COMPILER = "build_error: FileNotFoundError: [Errno 2] No such file or directory: 'g++'"


def trial_lines(out: Path) -> list[dict]:
    path = out / "trials.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if "config" in line]


def poison(out: Path, message: str) -> None:
    """Turn all trials on record into failures, as a run without a compiler once left them."""
    path = out / "trials.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "config" in line:
            line.pop("seconds", None)
            line.update(status="build_error", message=message)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_without_a_compiler_nothing_is_recorded_and_with_one_it_tunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, out = write_network(tmp_path / "tiny.onnx"), tmp_path / "run"
    command = ["tune", str(network), "--out", str(out), "--trials", "6", "--searcher", "random"]
    with monkeypatch.context() as without:
        without.setenv("PATH", "")
        assert main(command) == 1
    error = capsys.readouterr().err
    assert "no C++ compiler" in error
    assert "Traceback" not in error
    assert trial_lines(out) == []

    def lost(self: object) -> None:
        raise EnvironmentFault("the disk is full; free some space")

    with monkeypatch.context() as without:  # found by the preflight instead
        without.setattr(Measurer, "check", lost)
        assert main(command) == 1
    error = capsys.readouterr().err
    assert "the disk is full; free some space. Tuning stopped, nothing was recorded" in error
    assert trial_lines(out) == []
    assert not (out / "network.so").exists()

    assert main(command) == 0
    assert len(trial_lines(out)) == 6
    assert any(line["status"] == "ok" for line in trial_lines(out))

    poison(out, NO_COMPILER)  # as an earlier version would have recorded it: healed by itself
    (out / "network.so").unlink()
    assert main(command) == 0
    assert len(trial_lines(out)) == 12
    assert json.loads((out / "report.json").read_text())["trials"] == 6

    poison(out, "build_error: something that nobody knows")
    (out / "network.so").unlink()
    capsys.readouterr()
    assert main(command) == 1
    assert "nothing was tuned, so the network was not compiled" in capsys.readouterr().err
    assert not (out / "network.so").exists()
    assert main([*command, "--retry-failed"]) == 0
    assert json.loads((out / "report.json").read_text())["trials"] == 6
    assert main(command) == 0  # what was forgotten stays forgotten
    assert json.loads((out / "report.json").read_text())["trials"] == 6


def test_forgotten_failures_stay_in_the_file_and_success_is_kept(tmp_path: Path) -> None:
    path, space = tmp_path / "trials.jsonl", KnobSpace([option("x", [1, 2, 3])])
    good, bad = Trial((0,), Status.OK, 1e-3), Trial((1,), Status.RUN_ERROR, message="run_error: no")
    with Records(path, "t") as records:
        records.add_task("k", "task", space)
        for trial in (good, bad):
            records.append("k", trial, model="m", elapsed_s=5.0)
        records.append("k", replace(bad, config=(2,)), model="other", elapsed_s=9.0)
    with Records(path, "t") as records:
        assert records.forget_failures() == 2
        assert records.forget_failures() == 0
        assert records.elapsed_s == {"m": 5.0}
    with Records(path, "t") as records:
        assert records.add_task("k", "task", space).trials == [good]
        records.append("k", bad, model="m", elapsed_s=6.0)
    with Records(path, "t") as records:
        assert records.add_task("k", "task", space).trials == [good, bad]
    assert len(path.read_text().splitlines()) == 7


class _Task:
    """A task of a session, as far as a row of failures looks at it."""

    def __init__(self, name: str) -> None:
        self.best: Trial | None = None
        self.task, self.given_up = type("Named", (), {"name": name}), False

    def give_up(self) -> None:
        self.given_up = True


def test_a_row_of_equal_failures_stops_the_run() -> None:
    ok, crash = Trial((0,), Status.OK, 1e-3), Trial((1,), Status.RUN_ERROR, message="crash: signal 4 (SIGILL)")
    slow = Trial((1,), Status.TIMEOUT, message="timeout: killed after 30 s")
    a, b = _Task("a"), _Task("b")
    row = FailureRow(3)
    for trial in (crash, crash, ok, crash, crash, slow, crash, crash):
        row.note(a, trial, [a, b])
    with pytest.raises(ChameleonError, match=r"3 candidates in a row failed with 'crash'.*SIGILL.*--retry-failed"):
        row.note(b, crash, [a, b])


def test_one_task_that_always_fails_is_given_up_where_others_succeed() -> None:
    crash = Trial((1,), Status.RUN_ERROR, message="crash: signal 11 (SIGSEGV)")
    good, bad = _Task("good"), _Task("bad")
    good.best = Trial((0,), Status.OK, 1e-3)
    row = FailureRow(3)
    for _ in range(3):
        row.note(bad, crash, [good, bad])
    assert bad.given_up
    assert not good.given_up


def write_embedding(path: Path) -> Path:
    """Ids of 40 words, looked up, scaled and added up: the kernel reads its table at int64 ids."""
    rng = np.random.default_rng(0)
    table = numpy_helper.from_array(rng.normal(size=(40, 16)).astype(np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], axis=0),
        helper.make_node("Softmax", ["words"], ["y"], axis=-1),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [4, 12])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 12, 16])]
    graph = helper.make_graph(nodes, "embedding", inputs, outputs, [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    return path


def test_an_embedding_tunes(tmp_path: Path) -> None:
    network, out = write_embedding(tmp_path / "embedding.onnx"), tmp_path / "run"
    assert main(["tune", str(network), "--out", str(out), "--trials", "8", "--searcher", "random"]) == 0
    lines = trial_lines(out)
    everything = list(map(json.loads, (out / "trials.jsonl").read_text().splitlines()))
    names = {line["task"]: line for line in everything if "config" in line or line.get("kind") == "task"}
    assert len(lines) == 8
    assert [line for line in lines if line["status"] != "ok"] == []
    assert all(line["seconds"] > 1e-8 for line in lines)
    assert names


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ('{"kind":"llvm","mtriple":"aarch64-linux-gnu","mcpu":"cortex-a72","num-cores":4}', "--tracker"),
        ("llvm -mcpu=skylakee", "skylake"),
        ("c", "llvm"),
    ],
)
def test_a_target_that_cannot_be_measured_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    missing = str(tmp_path / "no-such-model.onnx")  # if it were loaded, the message would be about that
    assert main(["tune", missing, "--target", target, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "no-such-model" not in error


def test_a_network_for_another_machine_is_exported_as_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, out = write_network(tmp_path / "tiny.onnx"), tmp_path / "run"
    arm = '{"kind":"llvm","mtriple":"aarch64-linux-gnu","mcpu":"cortex-a72","num-cores":4}'
    out.mkdir()
    Records(out / "trials.jsonl", str(parse_target(arm))).close()
    command = ["compile", str(network), "--target", arm, "--out", str(out), "-o"]
    assert main([*command, str(tmp_path / "net.so")]) == 2
    assert "--cc" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "net.so"), "--cc", "no-such-g++"]) == 2
    assert "no-such-g++" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "net.tar")]) == 0
    with tarfile.open(tmp_path / "net.tar") as archive:
        heads = [archive.extractfile(m).read(20) for m in archive.getmembers() if m.name.endswith(".o")]
    assert heads
    assert all(head[:4] == b"\x7fELF" and head[18] == 183 for head in heads)  # AArch64's number
    compiler = tmp_path / "cross-g++"  # stands for a cross compiler: notes how it is called
    compiler.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nshift; shift; shift; touch "$1"\n')
    compiler.chmod(0o755)
    cross = ["--cc", str(compiler), "--sysroot", str(tmp_path)]
    assert main([*command, str(tmp_path / "net.so"), *cross]) == 0
    assert f"--sysroot={tmp_path}" in (tmp_path / "called").read_text()
