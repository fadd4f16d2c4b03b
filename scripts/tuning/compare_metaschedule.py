#!/usr/bin/env python3
"""Compare stock MetaSchedule with Chameleon: the same workloads, trials and machine.

    python -m scripts.tuning.compare_metaschedule --trials 64

Three tuners, each in a process of its own with an empty database:
  stock   MetaSchedule as shipped: evolutionary search, XGBoost, local builder and runner;
  cured   the same with a build function that leaves out the slow import of all tensor intrinsics in every worker;
  ours    `ChameleonStrategy` with the warm builder and runner.

The clock of a run starts after the imports that every tuner needs. After tuning, the three best schedules of each
tuner are built in one process and timed there in turns, since one tuning measurement on a shared machine says little.

- The reported latency of a tuner is the least median over these rounds.
- `ratio` is our latency divided by the cured tuner's, round by round (quartiles).
- `reach` is when our search had measured a schedule as fast as the latency reported for the cured tuner.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

TUNERS = ("stock", "cured", "ours")
WORKLOADS = "C2D:0,C2D:1,C2D:2,C2D:3,DEP:0,DIL:0"
FINALISTS = 3
Timeline = list[tuple[float, float | None]]  # seconds since the start, measured seconds of the candidate


def workload_of(name: str) -> Any:
    """`C2D:1` is the second configuration of that operator in `tvm.s_tir.meta_schedule.testing.te_workload`."""
    import tvm
    from tvm.s_tir.meta_schedule.testing.te_workload import create_te_workload

    operator, _, number = name.partition(":")
    return tvm.IRModule({"main": create_te_workload(operator, int(number)).with_attr("global_symbol", "main")})


def register_build() -> None:
    """Register, in every worker of the stock builder, its build function without the slow import."""
    from tvm_ffi import register_global_func

    @register_global_func("compare.build", override=True)
    def build(mod: Any, target: Any, _params: Any) -> Any:
        from tvm.driver import build as tvm_build
        from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

        return tvm_build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(mod), target=target)


def timeline_callback(timeline: Timeline, start_s: float) -> Any:
    """Make a MetaSchedule callback that notes when each candidate's result was known."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.measure_callback import PyMeasureCallback

    @derived_object
    class Note(PyMeasureCallback):
        def apply(self, task_scheduler: Any, task_id: Any, candidates: Any, built: Any, results: Any) -> None:
            del task_scheduler, task_id, candidates, built
            for result in results:
                run_secs = None if result.error_msg is not None else [float(s) for s in result.run_secs]
                timeline.append((time.perf_counter() - start_s, float(np.mean(run_secs)) if run_secs else None))

    return Note()


def tune(
    tuner: str, workload: str, trials: int, per_iter: int, seed: int, searcher: str, folder: Path
) -> dict[str, Any]:
    """Make one run of one tuner in this process; its database stays in `folder`."""
    from tvm.s_tir import meta_schedule as ms

    from chameleon.kernels.intrinsics import import_intrinsics
    from chameleon.measure import WarmBuilder, WarmRunner
    from chameleon.target import detect_target
    from tuners.meta_schedule import ChameleonStrategy

    import_intrinsics()  # every TuneContext does: left out of everyone's time
    mod, target, timeline = workload_of(workload), detect_target(), []
    start_s = time.perf_counter()
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if tuner == "cured":
            register_build()
            options = {"builder": ms.builder.LocalBuilder(f_build="compare.build", initializer=register_build)}
        elif tuner == "ours":
            builder, runner = stack.enter_context(WarmBuilder()), stack.enter_context(WarmRunner())
            strategy = ChameleonStrategy(searcher, seed=seed)
            options = {"builder": builder, "runner": runner, "strategy": strategy, "cost_model": "random"}
        ms.tune_tir(
            mod,
            target,
            str(folder),
            trials,
            num_trials_per_iter=per_iter,
            measure_callbacks=[
                timeline_callback(timeline, start_s),
                *ms.measure_callback.MeasureCallback.create("default"),
            ],
            seed=seed + 1,
            **options,
        )
        tuning_s = time.perf_counter() - start_s
    return {"tuner": tuner, "tuning_s": tuning_s, "timeline": timeline}


def best_modules(folders: Mapping[str, Path], workload: str) -> dict[tuple[str, int], Any]:
    """Load the best schedules of each tuner's database as modules, by tuner and rank."""
    from tvm.s_tir import Schedule
    from tvm.s_tir import meta_schedule as ms

    mod, found = workload_of(workload), {}
    for tuner, folder in folders.items():
        database = ms.database.JSONDatabase(
            str(folder / "database_workload.json"), str(folder / "database_tuning_record.json")
        )
        top = database.get_top_k(database.commit_workload(mod), FINALISTS) if database.has_workload(mod) else []
        for rank, record in enumerate(top):
            schedule = Schedule(mod)
            record.trace.apply_to_schedule(schedule, remove_postproc=False)
            found[tuner, rank] = schedule.mod
    return found


def remeasure(folders: Mapping[str, Path], workload: str, rounds: int) -> dict[str, list[float]]:
    """Time all finalists in turns in this process: seconds of each tuner's best schedule, one for each round."""
    import tvm
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo

    from chameleon.kernels.intrinsics import import_intrinsics
    from chameleon.target import detect_target

    import_intrinsics()  # a schedule may use one
    rng, target = np.random.default_rng(0), detect_target()
    infos = [info.as_json() for info in ArgInfo.from_entry_func(workload_of(workload))]  # kind, type, shape
    args = [
        tvm.runtime.tensor(rng.standard_normal([int(n) for n in shape]).astype(str(dtype)))
        for _, dtype, shape in infos
    ]
    kernels = {key: tvm.compile(mod, target) for key, mod in best_modules(folders, workload).items()}
    timers = {key: k.mod.time_evaluator("main", tvm.cpu(), number=1, min_repeat_ms=50) for key, k in kernels.items()}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in timers}
    for i in range(rounds + 1):
        for key, timer in timers.items():
            taken = timer(*args).mean
            if i:  # the first round warms up
                seconds[key].append(float(taken))
    ranked = sorted(seconds, key=lambda key: -float(np.median(seconds[key])))
    return {
        tuner: seconds[tuner, rank] for tuner, rank in ranked
    }  # a tuner's fastest schedule comes last and replaces the others


def in_child(arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run this script again for one part, with its output in `log`; the part's result is a JSON file beside it."""
    out = log.with_suffix(".json")
    threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.tuning.compare_metaschedule", *arguments, "--part-out", str(out)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TVM_NUM_THREADS": threads},  # for all tuners: by itself TVM takes half the cores
            check=False,
        )
    if done.returncode != 0 or not out.exists():
        raise RuntimeError(f"{' '.join(arguments)} ended with code {done.returncode}:\n{log.read_text()[-3000:]}")
    return json.loads(out.read_text())


def compare(workload: str, seed: int, a: argparse.Namespace) -> dict[str, Any]:
    """Run all tuners on one workload, then time their best schedules in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {tuner: Path(scratch) / tuner for tuner in a.tuners}
        runs = {}
        for tuner, folder in folders.items():
            folder.mkdir()
            common = ["--workloads", workload, "--trials", str(a.trials), "--per-iter", str(a.per_iter)]
            common += ["--seeds", str(seed), "--searcher", a.searcher, "--folder", str(folder)]
            runs[tuner] = in_child(["--part", tuner, *common], folder / "log.txt")
        common = [
            "--workloads",
            workload,
            "--rounds",
            str(a.rounds),
            "--folder",
            scratch,
            "--tuners",
            ",".join(folders),
        ]
        seconds = in_child(["--part", "remeasure", *common], Path(scratch) / "remeasure.txt")
    return summary(workload, seed, runs, seconds)


def summary(
    workload: str, seed: int, runs: Mapping[str, Any], seconds: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"workload": workload, "seed": seed, "tuners": {}}
    for tuner, run in runs.items():
        timeline = run["timeline"]
        row["tuners"][tuner] = {
            "trials": len(timeline),
            "failed": sum(s is None for _, s in timeline),
            "tuning_s": round(run["tuning_s"], 2),
            "s_per_trial": round(run["tuning_s"] / max(1, len(timeline)), 4),
            "best_us": round(float(np.median(seconds[tuner])) * 1e6, 3) if seconds.get(tuner) else None,
            "spread_us": [round(float(q) * 1e6, 3) for q in np.quantile(seconds[tuner], (0.1, 0.9))]
            if seconds.get(tuner)
            else None,
            "timeline": [[round(t, 2), None if s is None else round(s * 1e6, 3)] for t, s in timeline],
        }
    if {"ours", "cured"} <= set(runs) and row["tuners"]["cured"]["best_us"] is not None:
        goal = row["tuners"]["cured"]["best_us"]
        timeline = row["tuners"]["ours"]["timeline"]
        reached = next(((i + 1, t) for i, (t, us) in enumerate(timeline) if us is not None and us <= goal), None)
        quotients = np.array(seconds["ours"]) / np.array(seconds["cured"])
        row["ratio"] = [round(float(q), 3) for q in np.quantile(quotients, (0.25, 0.5, 0.75))]
        row["reach"] = None if reached is None else {"trials": reached[0], "seconds": reached[1]}
    return row


def table(rows: Sequence[Mapping[str, Any]], tuners: Sequence[str]) -> str:
    """Make a table in Markdown.

    It has the seconds per trial and the best latency of each tuner, and when ours reached the cured tuner's best.
    """
    head = [
        "workload",
        "seed",
        *(f"{t} s/trial" for t in tuners),
        *(f"{t} best us" for t in tuners),
        "ours / cured",
        "ours reaches cured's best",
    ]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        cells = [row["workload"], str(row["seed"])]
        cells += [f"{row['tuners'][t]['s_per_trial']:.2f}" for t in tuners]
        cells += [f"{us:.1f}" if (us := row["tuners"][t]["best_us"]) is not None else "-" for t in tuners]
        cells.append("{1:.3f} ({0:.3f} - {2:.3f})".format(*row["ratio"]) if "ratio" in row else "-")
        reach = row.get("reach")
        if reach:
            cells.append(
                f"{reach['trials']} trials, {reach['seconds']:.1f} of {row['tuners']['cured']['tuning_s']:.0f} s"
            )
        else:
            cells.append("not reached" if "reach" in row else "-")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--workloads", default=WORKLOADS, help="comma-separated OPERATOR:NUMBER of te_workload")
    p.add_argument("--trials", type=int, default=64)
    p.add_argument("--per-iter", type=int, default=32, help="at most so many candidates a batch, for every tuner")
    p.add_argument("--seeds", default="0", help="comma-separated")
    p.add_argument("--searcher", default="chameleon")
    p.add_argument(
        "--tuners", default=",".join(TUNERS), type=lambda text: text.split(","), help="of stock, cured, ours"
    )
    p.add_argument("--rounds", type=int, default=21, help="timings of each best schedule")
    p.add_argument("--out", type=Path, default=Path("results/compare_metaschedule"))
    for hidden in ("--part", "--part-out", "--folder"):
        p.add_argument(hidden, help=argparse.SUPPRESS)
    a = p.parse_args()
    wrong = sorted(set(a.tuners) - set(TUNERS))
    if wrong or a.trials < 1 or a.rounds < 1:
        p.error(
            f"unknown tuners {', '.join(wrong)}; there are: {', '.join(TUNERS)}"
            if wrong
            else "counts must be at least 1"
        )
    return a


def part(a: argparse.Namespace) -> None:
    """Do the part of a child process."""
    logging.disable(logging.INFO)
    folder = Path(a.folder)
    if a.part == "remeasure":
        result: Any = remeasure({t: folder / t for t in a.tuners}, a.workloads, a.rounds)
    else:
        result = tune(a.part, a.workloads, a.trials, a.per_iter, int(a.seeds), a.searcher, folder)
    Path(a.part_out).write_text(json.dumps(result))


def main() -> None:
    a = arguments()
    if a.part:
        part(a)
        return
    from chameleon.manifest import write_manifest

    rows = []
    write_manifest(
        a.out / "manifest.json", {k: v for k, v in vars(a).items() if not k.startswith("part") and k != "folder"}
    )
    for workload in a.workloads.split(","):
        for seed in map(int, a.seeds.split(",")):
            rows.append(compare(workload, seed, a))
            (a.out / "results.json").write_text(json.dumps({"results": rows}, indent=1) + "\n")
            print(table(rows[-1:], a.tuners).splitlines()[-1], flush=True)
    print(table(rows, a.tuners))


if __name__ == "__main__":  # TVM's workers import this module again
    main()
