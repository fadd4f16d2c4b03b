"""Bad input: a clear message, the documented exit code, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chameleon.cli import main
from tests.support.networks import write_network

pytestmark = pytest.mark.tvm


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Path, Path]:
    """A network and the folder of a finished run."""
    folder = tmp_path_factory.mktemp("tuned")
    network = write_network(folder / "tiny.onnx")
    assert main(["tune", str(network), "--out", str(folder / "run"), "--trials", "6", "--searcher", "random"]) == 0
    return network, folder / "run"


def fails(capsys, command: list[str], code: int, *says: str) -> None:
    assert main(command) == code
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    assert "Traceback" not in text
    for part in says:
        assert part in text, text


def test_misspelt_names_get_the_nearest(capsys, tmp_path):
    network = str(write_network(tmp_path / "tiny.onnx"))
    out = ["--out", str(tmp_path / "run"), "--trials", "4"]
    fails(capsys, ["tune", "resnt18", *out], 2, "resnt18", "resnet18")
    fails(capsys, ["tune", network, "--searcher", "chamelon", *out], 2, "chamelon", "chameleon")
    fails(capsys, ["tune", network, "--target", "lvm", *out], 2, "lvm", "llvm")
    fails(capsys, ["tune", network, "--sercher", "random"], 2, "--searcher")
    fails(capsys, ["tun", network], 2, "tune")
    fails(capsys, ["tune", network, "--time-budget", "soon", *out], 2, "10m")
    fails(capsys, ["tune", network, "--tracker", "127.0.0.1:9190", *out], 2, "--device-key")


def test_a_wrong_preset(capsys, tmp_path):
    (tmp_path / "preset.yaml").write_text("serch: random\n")
    command = ["tune", "resnet18", "--config", str(tmp_path / "preset.yaml"), "--out", str(tmp_path / "run")]
    fails(capsys, command, 2, "serch", "searcher")
    (tmp_path / "preset.yaml").write_text("options: {explorer: {walker: 3}}\n")
    fails(capsys, command, 2, "walker", "walkers")


def test_models_that_cannot_be_loaded(capsys, tmp_path):
    out = ["--out", str(tmp_path / "run"), "--trials", "4"]
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "broken.pt2").write_bytes(b"not a network")
    fails(capsys, ["tune", str(tmp_path / "broken.onnx"), *out], 1, "broken.onnx")
    fails(capsys, ["tune", str(tmp_path / "empty.onnx"), *out], 1, "empty.onnx")
    fails(capsys, ["tune", str(tmp_path / "broken.pt2"), *out], 1, "broken.pt2")
    fails(capsys, ["tune", str(tmp_path / "none.onnx"), *out], 2, "none.onnx")
    dynamic = write_network(tmp_path / "dynamic.onnx", batch="N")
    fails(capsys, ["tune", str(dynamic), *out], 1, "'x'", "--input-shape")


def test_an_open_shape_can_be_given(tmp_path):
    dynamic = write_network(tmp_path / "dynamic.onnx", batch="N")
    out = ["--out", str(tmp_path / "run"), "--trials", "4", "--searcher", "random"]
    assert main(["tune", str(dynamic), "--input-shape", "1,3,16,16", *out]) == 0


def test_places_that_cannot_be_written(capsys, tmp_path, tuned):
    network, run = tuned
    (tmp_path / "file").write_text("")
    fails(capsys, ["tune", str(network), "--out", str(tmp_path / "file" / "run")], 1, "cannot write", "--out")
    nowhere = str(tmp_path / "file" / "x.json")
    fails(capsys, ["tune", str(network), "--json", nowhere], 2, "cannot write", "x.json")
    fails(capsys, ["compile", str(network), "--out", str(run), "-o", str(tmp_path / "file" / "net.so")], 2, "net.so")


def test_records_of_another_model_or_target(capsys, tmp_path, tuned):
    _, run = tuned
    before = (run / "trials.jsonl").read_bytes()
    other = str(write_network(tmp_path / "other.onnx"))
    fails(capsys, ["tune", other, "--out", str(run), "--trials", "9"], 1, "another model", "tiny", "--out")
    weights = str(write_network(tmp_path / "tiny.onnx", seed=7))
    fails(capsys, ["tune", weights, "--out", str(run), "--trials", "9"], 1, "another", "--out")
    target = json.dumps({"kind": "llvm", "mcpu": "x86-64", "num-cores": 1})
    network, _ = tuned
    fails(capsys, ["tune", str(network), "--out", str(run), "--trials", "9", "--target", target], 1, "another target")
    assert (run / "trials.jsonl").read_bytes() == before


def test_a_torn_last_line_is_cut_off_and_the_run_goes_on(tmp_path, tuned):
    network, run = tuned
    records = run / "trials.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole + b'{"task":"ab","conf')
    assert main(["tune", str(network), "--out", str(run), "--trials", "8", "--searcher", "random"]) == 0
    assert records.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in records.read_text().splitlines())


def test_nothing_to_compile_or_bench(capsys, tmp_path):
    network = str(write_network(tmp_path / "tiny.onnx"))
    none = ["--out", str(tmp_path / "none")]
    fails(capsys, ["compile", network, "-o", str(tmp_path / "net.so"), *none], 1, "no records", "chameleon tune")
    fails(capsys, ["bench", network, *none], 1, "no records", "chameleon tune")


def test_a_target_without_a_device(capsys, tmp_path):
    network = str(write_network(tmp_path / "tiny.onnx"))
    command = ["tune", network, "--target", "nvidia/nvidia-a100", "--out", str(tmp_path / "run"), "--trials", "4"]
    fails(capsys, command, 1, "cuda", "--tracker")
