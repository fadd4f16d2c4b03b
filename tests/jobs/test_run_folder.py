"""`compile` and `bench` find target and shapes in the run's folder; a contradiction is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chameleon.cli import main
from tests.support.networks import write_network

pytestmark = pytest.mark.tvm
TARGET = json.dumps({"kind": "llvm", "num-cores": 1})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A network with an open batch, and the folder of its run for a target that is not the default."""
    folder = tmp_path_factory.mktemp("run")
    network = str(write_network(folder / "tiny.onnx", channels=4, batch="N"))
    options = ["--target", TARGET, "--input-shape", "2,3,16,16", "--searcher", "random", "--trials", "6"]
    assert main(["tune", network, "--out", str(folder / "run"), *options]) == 0
    return network, folder / "run"


def test_nothing_needs_to_be_said_again(run, tmp_path, capsys):
    network, out = run
    assert main(["compile", network, "--out", str(out), "-o", str(tmp_path / "net.so")]) == 0
    assert "outputs agree with ONNX Runtime's" in " ".join(capsys.readouterr().out.split())
    assert main(["bench", network, "--out", str(out), "--json", str(tmp_path / "bench.json")]) == 0
    bench = json.loads((tmp_path / "bench.json").read_text())
    assert bench["comparison"]["agrees"]
    assert bench["comparison"]["reference"] == "ONNX Runtime"
    report = json.loads((out / "report.json").read_text())
    assert report["comparison"]["agrees"]
    assert json.loads((out / "run.json").read_text())["inputs"] == {"x": [2, 3, 16, 16]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--input-shape", "4,3,16,16"], ("other input shapes", "x=2,3,16,16", "x=4,3,16,16")),
        (["--target", '{"kind": "llvm", "num-cores": 2}'], ("another target",)),
        (["--rewrite"], ("as it is", "--out")),
    ],
)
def test_a_contradiction_is_an_error(run, tmp_path, capsys, options, says):
    network, out = run
    assert main(["compile", network, "--out", str(out), "-o", str(tmp_path / "net.so"), *options]) == 1
    said = " ".join(capsys.readouterr().err.split())
    for part in says:
        assert part in said
    assert not (tmp_path / "net.so").exists()


def test_compiling_what_was_never_tuned_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path / "tiny.onnx")
    assert main(["compile", "tiny.onnx", "-o", "net.so"]) == 1
    assert "chameleon tune tiny.onnx" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_runs_for_other_targets_are_named(run, tmp_path, capsys, monkeypatch):
    network, out = run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "elsewhere").symlink_to(out)
    assert main(["bench", network]) == 1
    assert "runs/elsewhere" in capsys.readouterr().err
