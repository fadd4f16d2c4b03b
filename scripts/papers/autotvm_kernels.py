"""The code for the worker processes of `collect_landscape.py`: build one configuration, or time one built kernel."""

# Pyright sees today's TVM, which has no AutoTVM and another `tvm.build`:
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

import tvm
from tvm import autotvm

from tuners.autotvm_replay import make_task

_SLOW_S = 0.02
"""Kernels slower than this are repeated fewer times: they are not the ones that matter."""


class BuildRequest(NamedTuple):
    """One configuration of the task that `task_json` holds, to be built into the shared library `path`."""

    task_json: str
    index: int
    path: str


class RunRequest(NamedTuple):
    """One library to time: `repeats` of at least `min_repeat_s`, on arguments of the given shapes and types."""

    path: str
    arguments: tuple[tuple[tuple[int, ...], str], ...]
    repeats: int
    min_repeat_s: float


def build(request: BuildRequest) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Build a configuration and return shapes and types of the kernel's arguments; raises what TVM raises."""
    autotvm.GLOBAL_SCOPE.in_tuning = True  # as `Tuner.tune` does: weights come packed, and packing them is not timed
    task = _task(request.task_json)
    config = task.config_space.get(request.index)
    with task.target:
        schedule, arguments = task.instantiate(config)
        if not config.valid():
            raise ValueError(f"instantiation error: {'; '.join(config.errors)}")
        tvm.build(schedule, arguments, name="kernel").export_library(request.path)
    return tuple((tuple(int(n) for n in a.shape), str(a.dtype)) for a in arguments)


def run(request: RunRequest) -> list[float]:
    """Time a kernel: the seconds of each repeat, as measured, after one run to warm up."""
    kernel, arguments = tvm.runtime.load_module(request.path), _arrays(request.arguments)
    once_s = kernel.time_evaluator("kernel", tvm.cpu(), number=1)(*arguments).mean
    repeats = request.repeats if once_s < _SLOW_S else min(request.repeats, 3)
    number = max(1, round(request.min_repeat_s / once_s))
    return list(kernel.time_evaluator("kernel", tvm.cpu(), number=number, repeat=repeats)(*arguments).results)


def one_thread() -> Any:
    """For a worker pool: returns `run`, and makes kernels use the calling thread only."""
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    return run


@lru_cache(maxsize=2)
def _task(task_json: str) -> Any:
    return make_task(json.loads(task_json))


@lru_cache(maxsize=2)
def _arrays(signature: tuple[tuple[tuple[int, ...], str], ...]) -> list[Any]:
    """The same random arguments for all kernels of the same signature."""
    fill = tvm.get_global_func("tvm.contrib.random.random_fill")
    arrays = [tvm.nd.empty(shape, dtype) for shape, dtype in signature]
    for array in arrays:
        fill(array)
    return arrays
