#!/usr/bin/env python3
"""Measure all, or a sample of, the configurations of AutoTVM tasks and keep them as landscapes.

    python -m scripts.papers.collect_landscape resnet18-56-64 resnet18-7-512 dense-64-512-1024 --limit 4000

This needs an AutoTVM (TVM <= 0.19). The names of the tasks are those of `configs/autotvm/tasks.yaml`. Configurations
are drawn in a random order that the seed fixes. So a larger limit later extends the same sample. Each result is
appended to `WORK/NAME.jsonl` as soon as it is known: a second call goes on where the first was stopped. When a task is
done, its results are sorted and written to `OUT/NAME.jsonl.gz`, with a manifest beside it.

The configurations are measured in chunks. A chunk is built on all cores first. Then its kernels run one at a time, on
one thread, with nothing else to do. The time of a kernel is the mean of its repeats without the smallest and the
largest, as AutoTVM takes it. The first kernel of all is timed again in every chunk. Its times are in the manifest, and
tell how steady the machine was.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from chameleon.cli import guarded
from chameleon.cores import usable_cores
from chameleon.errors import UsageError, unknown
from chameleon.manifest import write_manifest
from chameleon.search import KnobSpace, Status, Trial
from chameleon.workers.pool import Outcome, PoolConfig, WorkerPool
from scripts.papers.autotvm_kernels import BuildRequest, RunRequest
from tuners.autotvm_replay import make_task
from tuners.config_space import ConfigKnobs
from tuners.landscape import landscape_header, read_lines, write_lines

CATALOGUE = Path(__file__).resolve().parents[2] / "configs" / "autotvm" / "tasks.yaml"
INSTANTIATION_ERROR, BUILD_TIMEOUT = 1, 6  # AutoTVM's numbers of failures that have no status of their own
MEMORY_LIMIT_BYTES = 3 << 30
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Measuring:
    """How configurations are built and timed."""

    build_timeout_s: float = 10.0  # AutoTVM's default
    run_timeout_s: float = 10.0
    repeats: int = 5  # repeats of a kernel; the smallest and the largest do not count
    min_repeat_s: float = 0.01  # one repeat has as many runs as fill this time
    chunk: int = 64  # configurations built before they are run


@dataclass
class Collector:
    """Appends measured configurations of one task to a file."""

    spec: Mapping[str, Any]
    knobs: ConfigKnobs
    path: Path
    measuring: Measuring
    failures: Counter[str] = field(default_factory=Counter)
    reference_s: list[float] = field(default_factory=list)
    _reference: RunRequest | None = None

    def collect(self, indices: Sequence[int], builders: WorkerPool, runner: WorkerPool) -> Iterator[int]:
        """Measure configurations; yields after each chunk how many are done."""
        with tempfile.TemporaryDirectory() as folder, self.path.open("a") as out:
            for start in range(0, len(indices), self.measuring.chunk):
                for line in self._chunk(indices[start : start + self.measuring.chunk], Path(folder), builders, runner):
                    self.failures.update({line["status"]} - {"ok"})
                    out.write(json.dumps(line) + "\n")
                out.flush()
                yield min(start + self.measuring.chunk, len(indices))

    def _chunk(
        self, indices: Sequence[int], folder: Path, builders: WorkerPool, runner: WorkerPool
    ) -> Iterator[dict[str, Any]]:
        task_json, limits = json.dumps(self.spec), self.measuring
        paths = [str(folder / f"{index}.so") for index in indices]
        requests = [BuildRequest(task_json, index, path) for index, path in zip(indices, paths, strict=True)]
        built = builders.map(requests, limits.build_timeout_s)
        runs = [
            RunRequest(path, outcome.value, limits.repeats, limits.min_repeat_s) if outcome.ok else None
            for path, outcome in zip(paths, built, strict=True)
        ]
        self._time_reference(runs, runner)
        outcomes = iter(runner.map([r for r in runs if r is not None], limits.run_timeout_s))
        for index, build, request in zip(indices, built, runs, strict=True):
            yield recorded(self.knobs.digits(index), build, next(outcomes) if request else None)
        for path in paths:
            if self._reference is None or path != self._reference.path:
                Path(path).unlink(missing_ok=True)

    def _time_reference(self, runs: Sequence[RunRequest | None], runner: WorkerPool) -> None:
        self._reference = self._reference or next((r for r in runs if r is not None), None)
        if self._reference is not None:
            [outcome] = runner.map([self._reference], self.measuring.run_timeout_s)
            if outcome.ok:
                self.reference_s.append(float(np.median(outcome.value)))


def recorded(digits: Any, build: Outcome, run: Outcome | None) -> dict[str, Any]:
    """Make the line of the landscape for one configuration."""
    config, timings = tuple(int(d) for d in digits), {"build": round(build.wall_s, 4)}
    if run is not None:
        timings["run"] = round(run.wall_s, 4)
    if run is not None and run.ok:
        ordered = sorted(run.value)
        costs = [float(f"{s:.5g}") for s in (ordered[1:-1] if len(ordered) > 2 else ordered)]
        seconds = float(f"{np.mean(costs):.5g}")
        return {**Trial(config, Status.OK, seconds, timings=timings).to_json(), "costs": costs}
    failed = run or build
    timeout = failed.reason == "timeout"
    status = Status.TIMEOUT if timeout else Status.RUN_ERROR if run is not None else Status.BUILD_ERROR
    line = Trial(config, status, message=_last_line(failed.message), timings=timings).to_json()
    if run is None and timeout:
        line["error_no"] = BUILD_TIMEOUT
    elif "instantiation error" in failed.message:
        line["error_no"] = INSTANTIATION_ERROR
    return line


def _last_line(message: str) -> str:
    """The reason and what it was, without the traceback between them."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()] or ["no message"]
    return lines[0][:200] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"[:200]


def task_spec(name: str, target: str) -> dict[str, Any]:
    """Template, arguments and target of a task of the catalogue.

    Raises:
        UsageError: if the catalogue has no such task.
    """
    catalogue = yaml.safe_load(CATALOGUE.read_text())
    if name not in catalogue:
        raise unknown("task", name, catalogue)
    entry = catalogue[name]
    spec = _dense(*entry["dense"]) if "dense" in entry else _conv(*entry["conv"])
    return {**spec, "target": target, **({"every": entry["every"]} if "every" in entry else {})}


def _dense(rows: int, inner: int, columns: int) -> dict[str, Any]:
    args = [_tensor(rows, inner), _tensor(columns, inner), None, "float32"]
    return {"template": "dense_pack.x86", "args": args}


def _conv(batch: int, channels: int, size: int, filters: int, kernel: int, stride: int, pad: int) -> dict[str, Any]:
    data, weight = _tensor(batch, channels, size, size), _tensor(filters, channels, kernel, kernel)
    args = [data, weight, [stride] * 2, [pad] * 4, [1, 1], "NCHW", "NCHW", "float32"]
    return {"template": "conv2d_NCHWc.x86", "args": args}


def _tensor(*shape: int) -> list[Any]:
    return ["TENSOR", list(shape), "float32"]


def this_machine() -> str:
    """The LLVM target of this machine."""
    import tvm

    cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
    return f"llvm -mcpu={cpu}"


def opened(path: Path, header: Mapping[str, Any]) -> set[tuple[int, ...]]:
    """Start the file, or check that the existing file was measured in the same way.

    Returns:
        The configurations that are on record.

    Raises:
        UsageError: if the file is of another task, target or way of measuring.
    """
    if not path.exists() or not path.read_text().strip():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines([header], path)
        return set()
    text = path.read_text()
    if not text.endswith("\n"):  # a writer was killed in the middle of a line
        path.write_text(text[: text.rfind("\n") + 1])
    lines = read_lines(path)
    if lines[0] != json.loads(json.dumps(header)):
        different = sorted(k for k in {*lines[0], *header} if lines[0].get(k) != json.loads(json.dumps(header.get(k))))
        raise UsageError(
            f"{path} was recorded with another {', '.join(different)}; move it away or give another --work"
        )
    return {tuple(line["config"]) for line in lines[1:]}


def indices_to_measure(space: KnobSpace, limit: int | None, seed: int) -> list[int]:
    """The indices of the configurations in random order, all or the first `limit`."""
    return np.random.default_rng(seed).permutation(space.size)[:limit].tolist()


def collect_task(
    name: str, target: str, limit: int | None, seed: int, work: Path, out: Path, measuring: Measuring
) -> None:
    """Measure all configurations of one task that are missing, and write its landscape."""
    started = time.perf_counter()
    spec = task_spec(name, target)
    knobs = ConfigKnobs(make_task(spec).config_space)
    how = {
        "build_timeout_s": measuring.build_timeout_s,
        "repeats": measuring.repeats,
        "min_repeat_s": measuring.min_repeat_s,
    }
    header = {
        **landscape_header(name, knobs.space),
        "task": spec,
        "points": knobs.space.size,
        "seed": seed,
        "measuring": how,
    }
    path = work / f"{name}.jsonl"
    known = opened(path, header)
    wanted = indices_to_measure(knobs.space, limit, seed)
    missing = [i for i in wanted if tuple(int(d) for d in knobs.digits(i)) not in known]
    print(
        f"{name}: {knobs.space.size:,} configurations, {len(known):,} on record, {len(missing):,} to measure",
        flush=True,
    )
    collector = Collector(spec, knobs, path, measuring)
    build_config = PoolConfig(
        "scripts.papers.autotvm_kernels:build", usable_cores(), memory_limit_bytes=MEMORY_LIMIT_BYTES
    )
    run_config = PoolConfig("scripts.papers.autotvm_kernels:one_thread", 1, factory=True)
    with WorkerPool(build_config) as builders, WorkerPool(run_config) as runner:
        for done in collector.collect(missing, builders, runner):
            spent_s = time.perf_counter() - started
            left_s = spent_s / done * (len(missing) - done)
            print(f"{name}: {done:,}/{len(missing):,}, {spent_s / done:.2f} s each, {left_s:.0f} s left", flush=True)
    header, *lines = read_lines(path)
    out.mkdir(parents=True, exist_ok=True)
    write_lines([header, *sorted(lines, key=lambda line: line["config"])], out / f"{name}.jsonl.gz")
    arguments = {
        "task": name,
        "target": target,
        "limit": limit,
        "seed": seed,
        "took_s": round(time.perf_counter() - started, 1),
    }
    facts = {"measured": len(missing), "failures": dict(collector.failures), "reference_s": collector.reference_s}
    write_manifest(out / f"{name}.manifest.json", {**arguments, **how, **facts})


@app.command()
def main(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Names in configs/autotvm/tasks.yaml.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Measure a random sample of so many. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order in which configurations are measured.")] = 0,
    target: Annotated[str | None, typer.Option(help="Default: this machine.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of the unfinished files.")] = Path("runs/landscapes"),
    out: Annotated[Path, typer.Option(help="Folder of the finished landscapes.")] = Path("results/landscapes"),
    build_timeout_s: Annotated[
        float, typer.Option(help="A build that takes longer is a failure.")
    ] = Measuring.build_timeout_s,
) -> None:
    """Measure the configurations of AutoTVM tasks, one task after the other."""
    for name in tasks:
        task_spec(name, target or "llvm")  # so a misspelt name is reported before anything is measured
    for name in tasks:
        collect_task(
            name, target or this_machine(), limit, seed, work, out, Measuring(build_timeout_s=build_timeout_s)
        )


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
