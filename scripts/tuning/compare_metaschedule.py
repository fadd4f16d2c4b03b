#!/usr/bin/env python3
"""Compare stock MetaSchedule with Chameleon: the same workloads, trials and machine.

    python -m scripts.tuning.compare_metaschedule --seeds 5

Each tuner runs in a process of its own with an empty database:
  stock     MetaSchedule as shipped: evolutionary search, XGBoost, local builder and runner;
  cured     the same with a build function that leaves out the slow import of all tensor intrinsics in every worker;
  finished  cured's run, and then TVM's own finish by coordinate descent (`post_optimization`: Droplet, 100 trials);
  ours      `ChameleonStrategy` with the warm builder and runner.

The clock of a run starts after the imports that every tuner needs. After tuning, the three best schedules of each
tuner are built in one process and timed there in turns, since one tuning measurement on a shared machine says little.

- The reported latency of a tuner is the least median over these rounds.
- `ratio` is our latency divided by another tuner's, round by round (quartiles).
- `reach` is when our search had measured a schedule as fast as the latency reported for that tuner.

The results are written to `runs.jsonl` (a second call runs what is missing), `results.json`, `table.md` and
`manifest.json`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chameleon.cli import guarded
from scripts.common.run_store import RunStore, write_results
from scripts.common.tables import markdown

WORKLOADS = "C2D:0,C2D:1,C2D:2,C2D:3,C1D:0,C3D:0,GRP:0,DIL:0,DEP:0,T2D:0,GMM:0,CBR:0"
FINALISTS = 3
THEIRS = ("finished", "cured", "stock")  # the first of these that took part is what ours is compared with
app = typer.Typer(add_completion=False)


class Tuner(str, Enum):
    """Who tunes."""

    stock = "stock"
    cured = "cured"
    finished = "finished"
    ours = "ours"


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


def tune(tuner: str, workload: str, trials: int, per_iter: int, seed: int, folder: Path) -> dict[str, Any]:
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
        if tuner == Tuner.cured:
            register_build()
            options = {"builder": ms.builder.LocalBuilder(f_build="compare.build", initializer=register_build)}
        elif tuner == Tuner.ours:
            builder, runner = stack.enter_context(WarmBuilder()), stack.enter_context(WarmRunner())
            strategy = ChameleonStrategy(seed=seed)
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
    return {"tuning_s": tuning_s, "timeline": timeline}


def finish(cured: Mapping[str, Any], folder: Path, to: Path) -> dict[str, Any]:
    """Go on from cured's database with TVM's own finish, in this process; its time is added to cured's."""
    from tvm.s_tir.meta_schedule.post_optimization import PostOpt

    from chameleon.kernels.intrinsics import import_intrinsics
    from chameleon.target import detect_target

    import_intrinsics()
    shutil.copytree(folder, to, dirs_exist_ok=True)
    start_s = time.perf_counter()
    PostOpt(str(to), detect_target()).run()
    return {**cured, "tuning_s": cured["tuning_s"] + time.perf_counter() - start_s}


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


def in_child(log: Path, *arguments: object) -> Any:
    """Run a part of this script in a process of its own, with its output in `log`, and return the part's result."""
    out = log.with_suffix(".json")
    threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.tuning.compare_metaschedule", "--part", str(out), *map(str, arguments)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TVM_NUM_THREADS": threads},  # for all tuners: by itself TVM takes half the cores
            check=False,
        )
    if done.returncode != 0 or not out.exists():
        raise RuntimeError(f"{arguments} ended with code {done.returncode}:\n{log.read_text()[-3000:]}")
    return json.loads(out.read_text())


def compare(
    workload: str, seed: int, tuners: Sequence[str], trials: int, per_iter: int, rounds: int
) -> dict[str, Any]:
    """Run all tuners on one workload, then time their best schedules in turns."""
    common = ["--workloads", workload, "--trials", trials, "--per-iter", per_iter, "--seed", seed, "--rounds", rounds]
    with tempfile.TemporaryDirectory() as scratch:
        common += ["--out", scratch]
        runs = {}
        for tuner in tuners:
            folder = Path(scratch) / tuner
            folder.mkdir()
            runs[tuner] = in_child(folder / "log.txt", *common, "--tuner", tuner)
        everyone = [x for tuner in tuners for x in ("--tuner", tuner)]
        seconds = in_child(Path(scratch) / "remeasure.txt", *common, *everyone)
    return summary(workload, seed, runs, seconds)


def part(tuners: Sequence[str], workload: str, trials: int, per_iter: int, seed: int, rounds: int, out: Path) -> Any:
    """What a child does: one tuner's run, or, for several tuners, the timing of their best schedules."""
    logging.disable(logging.INFO)
    if len(tuners) > 1:
        return remeasure({t: out / t for t in tuners}, workload, rounds)
    (tuner,) = tuners
    if tuner == Tuner.finished:
        return finish(json.loads((out / "cured" / "log.json").read_text()), out / "cured", out / tuner)
    return tune(tuner, workload, trials, per_iter, seed, out / tuner)


def summary(
    workload: str, seed: int, runs: Mapping[str, Any], seconds: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """One line of the results: what each tuner found in what time, and ours beside the best of the others."""
    row: dict[str, Any] = {"workload": workload, "seed": seed, "tuners": {}}
    for tuner, run in runs.items():
        timeline, times = run["timeline"], seconds.get(tuner)
        row["tuners"][tuner] = {
            "trials": len(timeline),
            "failed": sum(s is None for _, s in timeline),
            "tuning_s": round(run["tuning_s"], 2),
            "best_us": round(float(np.median(times)) * 1e6, 3) if times else None,
            "quartiles_us": [round(float(q) * 1e6, 3) for q in np.quantile(times, (0.25, 0.75))] if times else None,
            "timeline": [[round(t, 2), None if s is None else round(s * 1e6, 3)] for t, s in timeline],
        }
    rival = next((t for t in THEIRS if seconds.get(t)), None)
    if rival is not None and seconds.get("ours"):
        goal_us = row["tuners"][rival]["best_us"]
        timeline = row["tuners"]["ours"]["timeline"]
        reached = next(((i + 1, t) for i, (t, us) in enumerate(timeline) if us is not None and us <= goal_us), None)
        quotients = np.array(seconds["ours"]) / np.array(seconds[rival])
        row["rival"] = rival
        row["ratio"] = [round(float(q), 3) for q in np.quantile(quotients, (0.25, 0.5, 0.75))]
        row["reach"] = None if reached is None else {"trials": reached[0], "seconds": reached[1]}
    return row


def table(rows: Sequence[Mapping[str, Any]], tuners: Sequence[str]) -> str:
    """A line for each workload: medians over the seeds, and how often ours was as good as its rival's best."""
    head = ["workload", "seeds", *(f"{t} s" for t in tuners), *(f"{t} us" for t in tuners), "ours / rival: median"]
    head += ["least to most", "reached", "after, of the rival's time"]
    lines, medians = [], []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        of = [row for row in rows if row["workload"] == workload]
        ratios = [row["ratio"][1] for row in of if "ratio" in row]
        medians.append(float(np.median(ratios)) if ratios else np.nan)
        shares = [r["reach"]["seconds"] / r["tuners"][r["rival"]]["tuning_s"] for r in of if r.get("reach")]
        cells = [workload, str(len(of))]
        for figure, digits in (("tuning_s", 0), ("best_us", 1)):
            values = [[r["tuners"][t][figure] or np.nan for r in of] for t in tuners]
            cells += [f"{np.nanmedian(v):.{digits}f}" for v in values]
        cells += [f"{medians[-1]:.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}" if ratios else "-"]
        cells += [f"{len(shares)} of {len(of)}", f"{np.median(shares):.2f}" if shares else "-"]
        lines.append(cells)
    mean = (
        f"\nGeometric mean of the medians: {np.exp(np.nanmean(np.log(medians))):.3f}, worst {np.nanmax(medians):.3f}\n"
    )
    return markdown(head, lines) + mean


@app.command()
def main(
    workloads: Annotated[str, typer.Option(help="OPERATOR:NUMBER of te_workload, with commas.")] = WORKLOADS,
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each tuner.")] = 64,
    per_iter: Annotated[int, typer.Option(min=1, help="At most so many candidates a batch, for every tuner.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    tuner: Annotated[
        list[Tuner], typer.Option(help="Who tunes, in this order; finished after cured. May be given several times.")
    ] = [Tuner.cured, Tuner.ours],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each best schedule.")] = 21,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/compare_metaschedule"),
    part_of: Annotated[Path | None, typer.Option("--part", hidden=True)] = None,
) -> None:
    """Compare MetaSchedule with Chameleon, seed after seed."""
    tuners = [t.value for t in tuner]
    if part_of is not None:
        part_of.write_text(json.dumps(part(tuners, workloads, trials, per_iter, seed, rounds, out)))
        return
    started = time.perf_counter()
    options = {"trials": trials, "per_iter": per_iter, "rounds": rounds, "tuners": tuners}
    store = RunStore(out / "runs.jsonl", options, lambda line: (line["workload"], line["seed"]))
    for number in range(seed, seed + seeds):
        for workload in workloads.split(","):
            if (workload, number) not in store.lines:
                store.add(compare(workload, number, tuners, trials, per_iter, rounds))
                row = store.lines[workload, number]
                print(workload, number, row.get("ratio"), row.get("reach"), flush=True)
    rows = list(store.lines.values())
    write_results(out, rows, table(rows, tuners), options, time.perf_counter() - started)


if __name__ == "__main__":  # TVM's workers import this module again
    sys.exit(guarded(app, sys.argv[1:]))
