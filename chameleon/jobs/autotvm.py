"""`chameleon autotvm`: tunes a network with AutoTVM (TVM up to 0.19), with one of its own tuners or one of ours.

The steps are those of TVM's tutorial "Auto-tuning a Convolutional Network for x86 CPU": extract the tasks, tune each
of them, build the network with the best configurations in the log, and run it. The networks come from
`tvm.relay.testing`, which needs pytest.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# Types are checked with the newest TVM, which has neither AutoTVM nor relay.

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chameleon.errors import ChameleonError, unknown
from chameleon.manifest import manifest
from tuners.autotvm import AnnealingTuner, ChameleonTuner, ReleaseTuner

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # otherwise TVM downloads configurations tuned elsewhere

try:
    import tvm
    from tvm import autotvm, relay
    from tvm.autotvm.tuner import GATuner, RandomTuner, XGBTuner
    from tvm.contrib import graph_executor
    from tvm.relay import testing
except ImportError as error:
    raise ChameleonError(
        f"AutoTVM is needed; TVM has it only up to version 0.19 ({error}). Install it in an environment of its own: "
        "pip install 'chameleon-tvm[autotvm]' pytest"
    ) from error

OURS = {"chameleon": ChameleonTuner, "release": ReleaseTuner, "annealing": AnnealingTuner}
TUNERS = {
    **OURS,
    "xgb": XGBTuner,
    "ga": GATuner,
    "random": RandomTuner,
}
NETWORKS = (
    "resnet-18",
    "resnet-50",
    "mobilenet",
    "resnet-8",
    "conv2d",
)  # the last two are small, for trying things out


@dataclass(frozen=True)
class AutoTvmSpec:
    """What `chameleon autotvm` was asked for."""

    network: str = "resnet-18"  # one of NETWORKS
    tuner: str = "chameleon"  # one of TUNERS
    trials: int = 128  # at most so many measurements of each task
    early_stopping: int | None = None  # end a task after so many trials without a better one
    size: int = 224  # height and width of the input image
    tasks: int | None = None  # tune only the first so many of the network's tasks; None: all
    target: str | None = None  # TVM's target; None: this machine
    log: Path = Path("tune.log")  # AutoTVM's log; it is appended to


@dataclass(frozen=True)
class AutoTvmReport:
    """The result: one row for each task, and the network's latency before and after, in milliseconds."""

    rows: list[dict[str, Any]]
    untuned_ms: float
    tuned_ms: float
    manifest: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        latency = {"untuned": self.untuned_ms, "tuned": self.tuned_ms}
        result = {"manifest": self.manifest, "tasks": self.rows, "latency_ms": latency}
        path.write_text(json.dumps(result, indent=2) + "\n")


def tune_autotvm(spec: AutoTvmSpec) -> AutoTvmReport:
    """Tune a network with AutoTVM and time it before and after.

    Raises:
        UsageError: if there is no such network or tuner.
    """
    if spec.tuner not in TUNERS:
        raise unknown("tuner", spec.tuner, TUNERS)
    target = tvm.target.Target(spec.target or host_target())
    mod, params, shape = get_network(spec.network, spec.size)
    extracted = autotvm.task.extract_from_program(mod["main"], target=target, params=params)
    before = latency_ms(mod, params, shape, target)
    rows = tune_tasks(list(extracted)[: spec.tasks], spec.tuner, spec.trials, spec.early_stopping, spec.log)
    with autotvm.apply_history_best(str(spec.log)):
        after = latency_ms(mod, params, shape, target)
    names = ("network", "tuner", "trials", "size", "tasks")
    made = manifest({**{name: getattr(spec, name) for name in names}, "target": str(target)})
    return AutoTvmReport(rows, before, after, made)


def get_network(name: str, size: int) -> tuple[tvm.IRModule, dict[str, Any], tuple[int, ...]]:
    """The network in relay, its weights, and the shape of its input."""
    shape = (1, 3, size, size)
    if name == "conv2d":
        shape = (1, 64, 56, 56)
        data, weight = relay.var("data", shape=shape), relay.var("weight", shape=(64, 64, 3, 3))
        conv = relay.nn.conv2d(data, weight, padding=(1, 1), channels=64, kernel_size=(3, 3))
        mod = tvm.IRModule.from_expr(relay.Function([data, weight], conv))
        return mod, {"weight": tvm.nd.array(np.random.default_rng(0).random((64, 64, 3, 3)).astype("float32"))}, shape
    if name == "mobilenet":
        mod, params = testing.mobilenet.get_workload(batch_size=1, image_shape=shape[1:])
    elif name in NETWORKS:
        layers = int(name.partition("-")[2])
        shape = (1, 3, min(size, 28), min(size, 28)) if layers == 8 else shape  # a network for small images
        mod, params = testing.resnet.get_workload(batch_size=1, num_layers=layers, image_shape=shape[1:])
    else:
        raise unknown("network", name, NETWORKS)
    return mod, params, shape


def tune_tasks(
    tasks: list[Any], tuner: str, trials: int, early_stopping: int | None, log: Path
) -> list[dict[str, Any]]:
    """Tune every task with the tuner of that name and return one row of results for each.

    All records go into one log. Ours learn from what it holds: from the other tasks of the same template, and from
    earlier trials of the task itself, which are not made again.
    """
    measure_option = autotvm.measure_option(
        builder=autotvm.LocalBuilder(), runner=autotvm.LocalRunner(number=1, repeat=5, min_repeat_ms=20)
    )
    rows = []
    for i, task in enumerate(tasks):
        start_s = time.perf_counter()
        tuner_obj = TUNERS[tuner](task)  # the only line that differs from the tutorial
        if tuner in OURS and log.exists():
            tuner_obj.load_history(log)
        n_trial = min(trials, len(task.config_space))
        tuner_obj.tune(
            n_trial=n_trial,
            early_stopping=early_stopping,
            measure_option=measure_option,
            callbacks=[
                autotvm.callback.progress_bar(n_trial, prefix=f"[Task {i + 1:2d}/{len(tasks):2d}] "),
                autotvm.callback.log_to_file(str(log)),
            ],
        )
        tuning_s = time.perf_counter() - start_s
        rows.append({"task": task.name, "trials": n_trial, "gflops": tuner_obj.best_flops / 1e9, "tuning_s": tuning_s})
    return rows


def latency_ms(mod: tvm.IRModule, params: dict[str, Any], shape: tuple[int, ...], target: tvm.target.Target) -> float:
    """Median time of one inference, in milliseconds, with the configurations that are in force."""
    with tvm.transform.PassContext(opt_level=3):
        library = relay.build(mod, target=target, params=params)
    module = graph_executor.GraphModule(library["default"](tvm.cpu()))
    module.set_input("data", np.random.default_rng(0).random(shape).astype("float32"))
    return module.benchmark(tvm.cpu(), number=1, repeat=20, min_repeat_ms=20).median * 1e3


def host_target() -> str:
    """LLVM's name for this machine's processor."""
    return f"llvm -mcpu={tvm.get_global_func('target.llvm_get_system_cpu')()}"
