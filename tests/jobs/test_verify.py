"""Libraries are compared with an independent reference: ONNX Runtime, PyTorch, or else TVM without tuning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm.target import Target

from chameleon.jobs import verify
from chameleon.jobs.compare import QUANTISED_TOLERANCE, TOLERANCES, tolerance_of
from chameleon.jobs.verify import Verdict, Verifier
from chameleon.models.load import ModelError, Source, load_model
from tests.support.networks import write_network
from tests.support.tiny_models import save_pt2

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 2})


def verdict_of(model, target: Target = CPU, executable=None) -> Verdict:
    with Verifier(model, target) as verifier:
        return verifier.check_executable(executable or tvm.compile(model.mod, CPU))


@pytest.mark.parametrize("kind", ["onnx", "pt2", "zoo"])
def test_the_reference_is_independent(kind: str, tmp_path: Path) -> None:
    spec, name = {
        "onnx": (lambda: str(write_network(tmp_path / "net.onnx", batch="N")), "ONNX Runtime"),
        "pt2": (lambda: str(save_pt2("attention", tmp_path / "net.pt2")), "PyTorch"),
        "zoo": (lambda: "swiftnet-hpd-c", "PyTorch"),
    }[kind]
    found = verdict_of(load_model(spec(), input_shape=(2, 3, 16, 16) if kind == "onnx" else None))
    assert (found.reference, found.note, found.agrees, found.draws) == (name, "", True, verify.DRAWS)
    assert 0 < found.difference.relative < 1e-5


def test_another_network_is_wrong(tmp_path: Path) -> None:
    """As an importer would be that reads other weights than the file has."""
    model, other = (load_model(str(write_network(tmp_path / f"{i}.onnx", seed=i))) for i in (0, 1))
    found = verdict_of(dataclasses.replace(model, source=other.source))
    assert not found.agrees
    assert "output 0 is off" in str(found)
    assert found.to_json()["agrees"] is False


def test_untuned_tvm_where_the_reference_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(source: Source) -> None:
        raise ModelError("no such operator here")

    monkeypatch.setattr(verify, "independent_run", cannot)
    found = verdict_of(load_model(str(write_network(tmp_path / "net.onnx"))))
    assert found.reference == "untuned TVM"
    assert "no such operator here" in str(found)
    assert found.agrees


def test_a_library_that_crashes_is_wrong(tmp_path: Path) -> None:
    model = load_model(str(write_network(tmp_path / "net.onnx")))
    found = verdict_of(model, executable=Aborting())
    assert not found.agrees
    assert not found.runs
    assert "does not run" in str(found)


class Aborting:
    """Exports a library that ends the process which loads it."""

    def export_library(self, path: str) -> None:
        import subprocess

        source = Path(path).with_suffix(".c")
        source.write_text("#include <stdlib.h>\n__attribute__((constructor)) void f(void) { abort(); }\n")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, str(source)], check=True)


def test_code_for_another_machine_is_not_compared(tmp_path: Path) -> None:
    model = load_model(str(write_network(tmp_path / "net.onnx")))
    for target in (Target({"kind": "llvm", "mtriple": "riscv64-linux-gnu"}), Target("nvidia/nvidia-a100")):
        if target.kind.name == "cuda" and tvm.cuda().exist:
            continue
        found = verdict_of(model, target)
        assert (found.reference, found.agrees) == ("", True)
        assert "not compared" in str(found)


def half_network(path: Path) -> Path:
    """A float16 network with sums long enough for their order to show."""
    rng = np.random.default_rng(0)
    weights = {"w": (16, 8, 3, 3), "d": (16, 10)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(rng.normal(0, 0.3, s).astype("float16"), n) for n, s in weights.items()]
    return write(path, nodes, ("x", TensorProto.FLOAT16, [1, 8, 16, 16]), ("y", TensorProto.FLOAT16, [1, 10]), tensors)


def dynamically_quantised_network(path: Path) -> Path:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["m"]),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["s"]),
        helper.make_node("Mul", ["s", "ws"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(rng.integers(-127, 127, (32, 64)).astype("int8"), "w"),
        numpy_helper.from_array(np.array(0.01, "float32"), "ws"),
    ]
    return write(path, nodes, ("x", TensorProto.FLOAT, [8, 32]), ("y", TensorProto.FLOAT, [8, 64]), tensors)


def write(path: Path, nodes: list, x: tuple, y: tuple, tensors: list) -> Path:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "net", [info(*x)], [info(*y)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("network", "tolerance", "quantised"),
    [
        (half_network, TOLERANCES["float16"], False),
        (dynamically_quantised_network, QUANTISED_TOLERANCE, True),
        (write_network, TOLERANCES["float32"], False),
    ],
)
def test_the_tolerance_is_that_of_the_coarsest_type(
    network, tolerance: float, quantised: bool, tmp_path: Path
) -> None:
    model = load_model(str(network(tmp_path / "net.onnx")))
    found = tolerance_of(model.mod)
    assert (found.floats, found.quantised) == (tolerance, quantised)
    verdict = verdict_of(model)
    assert verdict.reference == "ONNX Runtime"
    assert verdict.agrees, verdict
