"""Measures the latency of a network, side by side in one process: untuned, tuned, and in other programs.

All of them get the same inputs and the same number of threads.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.errors import ChameleonError, doing, unknown
from chameleon.jobs.compare import Arrays, Difference, Tolerance, arrays_of, difference, finite, tolerance_of
from chameleon.jobs.compile import Compiled, compile_model
from chameleon.jobs.run_folder import JobSpec, Opened, open_run, recorded_database, resolved_run, target_of
from chameleon.jobs.stages import Say, stage
from chameleon.jobs.verify import Verdict, Verifier
from chameleon.models.load import Model, ModelError, input_arrays
from chameleon.models.onnx_export import write_onnx
from chameleon.models.references import Run as PeerRun
from chameleon.models.references import inductor_run, onnxruntime_run, openvino_run
from chameleon.target import check_runs_here, set_threads, usable_cores

Run = Callable[[], Any]

PEERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "inductor": "torch.compile"}
"""Other programs that run a network, by the names that `--against` takes, and what people call them."""


@dataclass(frozen=True)
class BenchConfig:
    """How long to measure.

    The contenders (untuned, tuned, ONNX Runtime and others) take turns. So a change of the processor's clock affects
    all of them.
    """

    rounds: int = 8
    runs: int = 8  # timed runs of a contender in a round, after one that is not timed
    slow_s: float = 0.25  # a contender whose run takes longer gets one run in each round
    turn_s: float = 0.02  # pause between two contenders: a thread pool still occupies its cores for a while


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference: the median and the quartiles over the timed runs."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int


@dataclass(frozen=True)
class BenchResult:
    """Latencies, and how far the outputs of the tuned network are from those of the others.

    Attributes:
        latency: by contender; `untuned` and `tuned` are always among them.
        difference: of the tuned network's outputs from those of the others that were timed, for one input.
        verdict: of the tuned network beside an independent reference; None if they were not compared.
        tolerance: the largest relative difference of floating-point outputs that is right.
    """

    latency: Mapping[str, Latency]
    difference: Mapping[str, Difference] = field(default_factory=dict)
    verdict: Verdict | None = None
    tolerance: float = Tolerance().floats

    @property
    def agrees(self) -> bool:
        """Whether the outputs are right: those of the independent reference decide where there is one."""
        if self.verdict is not None and self.verdict.reference and not self.verdict.note:
            return self.verdict.agrees
        return all(d.agrees for d in self.difference.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data, for `chameleon bench --json`."""
        return {
            "latency_ms": {
                name: {"median": t.median_ms, "low": t.low_ms, "high": t.high_ms, "runs": t.runs}
                for name, t in self.latency.items()
            },
            "difference": {
                name: {"absolute": finite(d.absolute), "relative": finite(d.relative), "fault": d.fault}
                for name, d in self.difference.items()
            },
            "comparison": self.verdict.to_json() if self.verdict else None,
            "tolerance": self.tolerance,
            "agrees": self.agrees,
        }


def bench_model(
    model: Model,
    target: Target,
    compiled: Compiled,
    *,
    default: Compiled | None = None,
    peers: Mapping[str, PeerRun] = MappingProxyType({}),
    config: BenchConfig | None = None,
    seed: int = 0,
) -> BenchResult:
    """Time a tuned network against the same network without tuning, and against other programs.

    Without tuning means: what a user gets from plain `tvm.compile` of the model as it was written.

    Args:
        default: the network with the project's default schedules, to time it as well.
        peers: by name what runs the network without TVM.
    """
    executables = {"untuned": tvm.compile(model.mod, target)}
    if default is not None:
        executables["default"] = default.executable
    executables["tuned"] = compiled.executable
    # Measure in a new thread. TVM's thread pool belongs to the thread that calls it. If this thread has run a kernel
    # before, its pool may use only half of the cores, and its size cannot be changed any more.
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(_bench, model, target, executables, peers, config or BenchConfig(), seed).result()


def _bench(
    model: Model,
    target: Target,
    executables: Mapping[str, Any],
    peers: Mapping[str, PeerRun],
    config: BenchConfig,
    seed: int,
) -> BenchResult:
    inputs = input_arrays(model, np.random.default_rng(seed))
    runs = _runs(model, target, executables, seed)
    runs |= {name: partial(run, inputs) for name, run in peers.items()}
    latencies = interleaved(runs, config)
    outputs = {name: arrays_of(run()) for name, run in runs.items()}
    tolerance = tolerance_of(model.mod)
    differences = {
        name: difference(outputs["tuned"], other, tolerance) for name, other in outputs.items() if name != "tuned"
    }
    return BenchResult(latencies, differences, tolerance=tolerance.floats)


def time_executables(
    model: Model, target: Target, executables: Mapping[str, Any], *, config: BenchConfig | None = None, seed: int = 0
) -> dict[str, Latency]:
    """Time several compiled forms of a model in turns."""
    with ThreadPoolExecutor(1) as fresh:  # a new thread for the reason given in `bench_model`
        return fresh.submit(
            lambda: interleaved(_runs(model, target, executables, seed), config or BenchConfig())
        ).result()


def rounds_of_executables(
    model: Model, target: Target, executables: Mapping[str, Any], config: BenchConfig, *, seed: int = 0
) -> dict[str, tuple[float, ...]]:
    """Time several compiled forms of a model in turns: the median of each round, in seconds."""
    with ThreadPoolExecutor(1) as fresh:  # a new thread for the reason given in `bench_model`
        found = fresh.submit(lambda: _rounds(_runs(model, target, executables, seed), config)).result()
    return {name: tuple(float(np.median(times)) for times in rounds) for name, rounds in found.items()}


def _runs(model: Model, target: Target, executables: Mapping[str, Any], seed: int) -> dict[str, Run]:
    """For each executable a function that runs it once, with all of the target's threads."""
    if target.kind.name == "llvm":
        set_threads(int(target.attrs.get("num-cores", usable_cores())))
    inputs = input_arrays(model, np.random.default_rng(seed))
    return {name: _virtual_machine(executable, target, inputs) for name, executable in executables.items()}


def interleaved(runs: Mapping[str, Run], config: BenchConfig) -> dict[str, Latency]:
    """Time each contender in turns, several rounds long."""
    rounds = _rounds(runs, config)
    return {name: _latency([s for times in found for s in times]) for name, found in rounds.items()}


def _rounds(runs: Mapping[str, Run], config: BenchConfig) -> dict[str, list[list[float]]]:
    """The seconds of each contender's runs, a list for each round."""
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    slow = {name: _timed(run) > config.slow_s for name, run in runs.items()}
    gc.collect()
    for _ in range(config.rounds):
        for name, run in runs.items():
            time.sleep(config.turn_s)
            if not slow[name]:
                run()
            times[name].append([_timed(run) for _ in range(1 if slow[name] else config.runs)])
    return times


def _virtual_machine(executable: Any, target: Target, inputs: Arrays) -> Run:
    device = tvm.cpu() if target.kind.name == "llvm" else tvm.device(target.kind.name)
    machine = relax.VirtualMachine(executable, device)
    tensors = [tvm.runtime.tensor(x, device=device) for x in inputs]

    def run() -> Any:
        result = machine["main"](*tensors)
        device.sync()
        return result

    return run


def _timed(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _latency(seconds: list[float]) -> Latency:
    low, median, high = (float(q) * 1e3 for q in np.percentile(seconds, [25, 50, 75]))
    return Latency(median, low, high, len(seconds))


def bench_tuned(spec: JobSpec, say: Say, against: Sequence[str] = tuple(PEERS)) -> BenchResult:
    """Time the network untuned, with default schedules, with the best ones in the folder's records, and elsewhere.

    Args:
        against: the names of other programs, of `PEERS`. One that is missing or cannot run the network is left out.

    Raises:
        ChameleonError: if there are no records, or they belong to another model or target; or if this machine cannot
            run code for the target.
    """
    for name in against:
        if name not in PEERS:
            raise unknown("program", name, PEERS)
    spec = resolved_run(spec)
    check_runs_here(target_of(spec))
    job = open_run(spec, say)
    with stage(say, "compiling with the best schedules"), doing(f"compiling {job.model.name}", job.out):
        compiled = compile_model(job.lowered, job.target, recorded_database(job, spec))
        default = compile_model(job.lowered, job.target, ms.database.MemoryDatabase())
    with Verifier(job.model, job.target) as verifier, doing(f"comparing {job.model.name}", job.out):
        verdict = verifier.check_executable(compiled.executable)
    if not verdict.runs:  # it would end this process as well
        raise ChameleonError(f"{job.model.name}: {verdict}; `chameleon tune` finds the schedule that is to blame")
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder, doing(f"timing {job.model.name}", job.out):
        peers = _peers(job, Path(folder), against, say)
        names = ["untuned", "default schedules", "tuned", *(PEERS[name] for name in peers)]
        with stage(say, f"timing {', '.join(names)} in turn"):
            timed = bench_model(job.model, job.target, compiled, default=default, peers=peers)
    return dataclasses.replace(timed, verdict=verdict)


def _peers(job: Opened, folder: Path, against: Sequence[str], say: Say) -> dict[str, PeerRun]:
    """What runs the network without TVM, with as many threads; what cannot is left out, and the reason is said."""
    source, threads = job.model.source, int(job.target.attrs.get("num-cores", usable_cores()))
    make: dict[str, Callable[[], PeerRun]] = {
        "onnxruntime": lambda: onnxruntime_run(write_onnx(source, folder), threads=threads),
        "openvino": lambda: openvino_run(write_onnx(source, folder), threads=threads),
        "inductor": lambda: inductor_run(source, threads=threads),
    }
    found: dict[str, PeerRun] = {}
    for name in against:
        try:
            with stage(say, f"preparing {PEERS[name]}"):
                found[name] = make[name]()
                found[name](input_arrays(job.model, np.random.default_rng(0)))
        except ModelError as error:
            found.pop(name, None)
            say(f"not timed in {PEERS[name]}: {error}")
    return found
