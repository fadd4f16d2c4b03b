"""Tune a network with AutoTVM (TVM up to 0.19), with its own tuner or with one of ours: only the tuner's name differs.

python scripts/tune_autotvm.py resnet-18 --tuner chameleon --trials 128
python scripts/tune_autotvm.py conv2d --tuner xgb --trials 32

The steps are those of TVM's tutorial "Auto-tuning a Convolutional Network for x86 CPU": extract the tasks, tune each, build
with the best of the log, run. `tvm.relay.testing`, where the networks come from, needs pytest.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# Types are checked where the newest TVM is installed, which has neither AutoTVM nor relay.

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # or TVM asks the network for configurations tuned elsewhere

import numpy as np
import tvm
import typer
from rich.console import Console
from rich.table import Table
from tvm import autotvm, relay
from tvm.autotvm.tuner import GATuner, RandomTuner, XGBTuner
from tvm.contrib import graph_executor
from tvm.relay import testing

from chameleon.cli import guarded
from chameleon.errors import unknown
from chameleon.manifest import manifest
from tuners.autotvm import AnnealingTuner, ChameleonTuner, ReleaseTuner

TUNERS = {
    "chameleon": ChameleonTuner,
    "release": ReleaseTuner,
    "annealing": AnnealingTuner,
    "xgb": XGBTuner,
    "ga": GATuner,
    "random": RandomTuner,
}
NETWORKS = ("resnet-18", "resnet-50", "mobilenet", "resnet-8", "conv2d")  # the last two are small, for trying things out
console = Console()


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


def tune_tasks(tasks: list[Any], tuner: str, trials: int, early_stopping: int | None, log: Path) -> list[dict[str, Any]]:
    """Every task by the tuner of that name, all records in one log; what each came to."""
    if tuner not in TUNERS:
        raise unknown("tuner", tuner, TUNERS)
    measure_option = autotvm.measure_option(
        builder=autotvm.LocalBuilder(), runner=autotvm.LocalRunner(number=1, repeat=5, min_repeat_ms=20)
    )
    rows = []
    for i, task in enumerate(tasks):
        start_s = time.perf_counter()
        tuner_obj = TUNERS[tuner](task)  # the line that differs
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
    """Median time of one inference, of the configurations that are in force."""
    with tvm.transform.PassContext(opt_level=3):
        library = relay.build(mod, target=target, params=params)
    module = graph_executor.GraphModule(library["default"](tvm.cpu()))
    module.set_input("data", np.random.default_rng(0).random(shape).astype("float32"))
    return module.benchmark(tvm.cpu(), number=1, repeat=20, min_repeat_ms=20).median * 1e3


def host_target() -> str:
    """LLVM's name for this machine's processor."""
    return f"llvm -mcpu={tvm.get_global_func('target.llvm_get_system_cpu')()}"


def tune_autotvm(
    network: Annotated[str, typer.Argument(help=f"One of {', '.join(NETWORKS)}.")] = "resnet-18",
    tuner: Annotated[str, typer.Option(help=f"One of {', '.join(TUNERS)}.")] = "chameleon",
    trials: Annotated[int, typer.Option(help="Measurements a task at most.")] = 128,
    early_stopping: Annotated[int | None, typer.Option(help="End a task after so many without a better one.")] = None,
    size: Annotated[int, typer.Option(help="Height and width of the input image.")] = 224,
    tasks: Annotated[int | None, typer.Option(help="Only so many of the network's tasks.")] = None,
    target: Annotated[str | None, typer.Option(help="TVM's target; by default this machine.")] = None,
    log: Annotated[Path, typer.Option(help="AutoTVM's log; it is appended to.")] = Path("tune.log"),
    report: Annotated[Path | None, typer.Option(help="Write what came of it as JSON.")] = None,
) -> None:
    """Tune a network with AutoTVM and time it before and after."""
    on = tvm.target.Target(target or host_target())
    mod, params, shape = get_network(network, size)
    extracted = autotvm.task.extract_from_program(mod["main"], target=on, params=params)
    before = latency_ms(mod, params, shape, on)
    rows = tune_tasks(list(extracted)[:tasks], tuner, trials, early_stopping, log)
    with autotvm.apply_history_best(str(log)):
        after = latency_ms(mod, params, shape, on)
    table = Table("task", "trials", "GFLOP/s", "tuning s")
    for row in rows:
        table.add_row(row["task"], str(row["trials"]), f"{row['gflops']:.1f}", f"{row['tuning_s']:.0f}")
    console.print(table)
    console.print(f"latency: untuned {before:.2f} ms, tuned with {tuner} {after:.2f} ms ({before / after:.2f} times faster)")
    if report:
        made = manifest({"network": network, "tuner": tuner, "trials": trials, "size": size, "tasks": tasks, "target": str(on)})
        result = {"manifest": made, "tasks": rows, "latency_ms": {"untuned": before, "tuned": after}}
        report.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(tune_autotvm)
    sys.exit(guarded(app, sys.argv[1:]))
