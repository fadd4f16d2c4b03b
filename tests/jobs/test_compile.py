"""Tasks, schedules that are really applied, defaults for the rest, and the benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import relax
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.jobs.bench import BenchConfig, bench_model, interleaved
from chameleon.jobs.compare import Difference
from chameleon.jobs.compile import compile_model
from chameleon.kernels.lower import Task, extract_tasks, lower
from chameleon.models.load import Model, ModelError, input_arrays, load_model
from chameleon.models.references import inductor_run, onnxruntime_run, openvino_run
from tests.support.tiny_models import NETWORKS, reference, save_onnx, save_pt2
from tuners.trace_space import Refused, TraceSpace

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 2})
SHORT = BenchConfig(rounds=2, runs=2, turn_s=0.0)


def load(name: str, folder: Path) -> Model:
    return load_model(str(save_pt2(name, folder / f"{name}.pt2")))


def run(machine: relax.VirtualMachine, x: np.ndarray) -> np.ndarray:
    result = machine["main"](tvm.runtime.tensor(x))
    return (result if isinstance(result, tvm.runtime.Tensor) else result[0]).numpy()


def record_random_schedules(tasks: list[Task]) -> ms.database.MemoryDatabase:
    """One random schedule for each task, as if it had been measured."""
    database = ms.database.MemoryDatabase()
    rng = np.random.default_rng(0)
    for task in tasks:
        space = TraceSpace(task.mod, CPU)
        for config in space.space.sample(50, rng):
            try:
                schedule = space.schedule(config)
            except Refused:
                continue
            arguments = ms.arg_info.ArgInfo.from_entry_func(schedule.mod, remove_preproc=True)
            workload = database.commit_workload(task.mod)
            database.commit_tuning_record(ms.database.TuningRecord(schedule.trace, workload, [1e-3], CPU, arguments))
            break
    return database


def test_equal_kernels_are_one_task_and_have_one_key(tmp_path: Path) -> None:
    model = load("residual", tmp_path)
    tasks = extract_tasks(lower(model, CPU), CPU)
    assert len({t.key for t in tasks}) == len(tasks)
    costs = [t.weight * t.flop for t in tasks]
    assert costs == sorted(costs, reverse=True)
    convolutions = [t for t in tasks if "conv2d" in t.name]
    assert sum(t.weight for t in convolutions) == 3
    assert max(t.flop for t in convolutions) >= 2 * 16 * 16 * 16 * 16 * 9  # multiplications and additions
    assert [t.key for t in extract_tasks(lower(model, CPU), CPU)] == [t.key for t in tasks]


def test_two_blocks_alike_weigh_two() -> None:
    tasks = extract_tasks(lower(load_model("resnet20_cifar10"), CPU), CPU)
    assert sum(t.weight for t in tasks if "conv2d" in t.name) == 21
    assert max(t.weight for t in tasks) >= 3


@pytest.mark.parametrize("name", NETWORKS)
def test_defaults_compute_what_pytorch_does(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    lowered = lower(model, CPU)
    compiled = compile_model(lowered, CPU, ms.database.MemoryDatabase())
    assert {t.name for t in extract_tasks(lowered, CPU)} <= set(compiled.untuned)
    (x,) = input_arrays(model, np.random.default_rng(1))
    ours = run(relax.VirtualMachine(compiled.executable, tvm.cpu()), x)
    np.testing.assert_allclose(ours, reference(name, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "mobile"])
def test_recorded_schedules_are_applied_and_the_library_runs_alone(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    lowered = lower(model, CPU)
    tasks = extract_tasks(lowered, CPU)
    left_out = tasks[0]
    database = record_random_schedules(tasks[1:])
    compiled = compile_model(lowered, CPU, database)
    assert compiled.untuned == (left_out.name,)
    (x,) = input_arrays(model, np.random.default_rng(1))
    library = tmp_path / "network.so"
    compiled.export(library)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, tvm\nfrom tvm import relax\n"
        f"machine = relax.VirtualMachine(tvm.runtime.load_module({str(library)!r}), tvm.cpu())\n"
        f"out = machine['main'](tvm.runtime.tensor(np.load({str(tmp_path / 'x.npy')!r})))\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, (out if isinstance(out, tvm.runtime.Tensor) else out[0]).numpy())\n"
        "assert not any(m.startswith('chameleon') for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), reference(name, x), rtol=1e-4, atol=1e-5)


def test_weights_are_rewritten_at_compile_time(tmp_path: Path) -> None:
    """A tuned order of the weights must not cost a rewriting kernel at every inference."""
    lowered = lower(load("residual", tmp_path), CPU)
    assert any(
        "layout_free_buffers" in f.attrs for f in lowered.functions.values() if isinstance(f, tvm.tirx.PrimFunc)
    )
    database = record_random_schedules(extract_tasks(lowered, CPU))
    compiled = compile_model(lowered, CPU, database)
    assert compiled.untuned == ()
    assert "weight_layout_rewrite" not in compiled.executable.as_text()


def test_bench_compares_three_and_sees_a_difference(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = load("mobile", tmp_path)
    compiled = compile_model(lower(model, CPU), CPU, ms.database.MemoryDatabase())
    network = save_onnx("mobile", tmp_path / "mobile.onnx")
    peers = {"onnxruntime": onnxruntime_run(network, threads=2)}
    result = bench_model(model, CPU, compiled, default=compiled, peers=peers, config=SHORT)
    assert set(result.difference) == {"untuned", "default", "onnxruntime"}
    assert result.agrees
    assert list(result.latency) == ["untuned", "default", "tuned", "onnxruntime"]
    for latency in result.latency.values():
        assert 0 < latency.low_ms <= latency.median_ms <= latency.high_ms
        assert latency.runs == SHORT.rounds * SHORT.runs
    other = compile_model(lower(load("shared", tmp_path), CPU), CPU, ms.database.MemoryDatabase())
    assert other.executable is not compiled.executable
    wrong = Difference(0.1, 0.1, "output 0 is off")
    assert not type(result)(result.latency, {"untuned": wrong}).agrees


@pytest.mark.needs("openvino")
@pytest.mark.parametrize("name", ["mobile", "residual"])
def test_openvino_computes_what_pytorch_does(name: str, tmp_path: Path) -> None:
    (x,) = input_arrays(load(name, tmp_path), np.random.default_rng(1))
    run = openvino_run(save_onnx(name, tmp_path / "network.onnx"), threads=2)
    for given in (x, 2 * x, x):
        np.testing.assert_allclose(run([given])[0], reference(name, given), rtol=1e-4, atol=1e-5)


def test_torch_compile_computes_what_pytorch_does(tmp_path: Path) -> None:
    model = load("residual", tmp_path)
    (x,) = input_arrays(model, np.random.default_rng(1))
    run = inductor_run(model.source, threads=2)
    np.testing.assert_allclose(run([x])[0], reference("residual", x), rtol=1e-4, atol=1e-5)


def test_an_onnx_file_is_not_for_torch_compile(tmp_path: Path) -> None:
    model = load_model(str(save_onnx("residual", tmp_path / "network.onnx")))
    with pytest.raises(ModelError, match="no PyTorch network"):
        inductor_run(model.source, threads=2)


def test_contenders_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    latencies = interleaved(runs, BenchConfig(rounds=3, runs=2, turn_s=0.0))
    assert order == ["a", "b", *(["a"] * 3 + ["b"] * 3) * 3]
    assert latencies["a"].runs == 6


def test_a_gpu_target_keeps_the_layout_and_has_tasks(tmp_path: Path) -> None:
    gpu = Target("nvidia/nvidia-a100")
    lowered = lower(load("residual", tmp_path), gpu)
    tasks = extract_tasks(lowered, gpu)
    assert sum(t.weight for t in tasks if "conv2d" in t.name) == 3
    assert any("conv2d_nchw" in t.mod.script(show_meta=False) for t in tasks)
