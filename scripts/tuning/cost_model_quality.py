#!/usr/bin/env python3
"""Measure how well cost models rank what was not measured yet: ours and AutoTVM's, on a log of a real tuning run.

    python -m scripts.tuning.cost_model_quality autotvm_v100_alexnet_conv2d.log.gz

This needs an AutoTVM (TVM <= 0.19), but no GPU. The file is AutoTVM's own log of tuning `conv2d_nchw.cuda` tasks. For
each task, models learn from N trials and predict all others. These are the first N (split `first`), as in tuning, or N
drawn at random (split `random`). The two differ because AutoTVM's tuner chose the later trials of a log: they are
unlike the first ones, and much alike among themselves.

Two models (our ensemble, AutoTVM's XGBoost) see each of four sets of features (our knob features; AutoTVM's `knob`,
`itervar` and `curve`). In addition, `engine` is the learner as our searchers use it, with what it learns of failures.
Failures count as zero throughput. The table has these numbers over the predicted trials:

    rank        Spearman's rank correlation of predicted and measured throughput, over all
    rank_ok     the same over those that did not fail
    recall@64   share of the 64 fastest that are among the 64 best predicted
    best@64     throughput of the fastest among the 64 best predicted / of the fastest of all
"""

# Pyright sees today's TVM, which has no AutoTVM:
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from tvm.autotvm.tuner.xgboost_cost_model import XGBoostCostModel

from chameleon.cli import guarded
from chameleon.cores import usable_cores
from chameleon.errors import ChameleonError
from chameleon.manifest import write_manifest
from chameleon.search import Digits, Status, Trial
from chameleon.search.cost_model import CostModel, CostModelConfig
from chameleon.search.history import History
from chameleon.search.learner import Learner
from scripts.common.experiment_stats import prediction_scores, rank_correlation
from tuners.autotvm_replay import make_task
from tuners.config_space import ConfigKnobs, plain

Floats = NDArray[np.float64]
AUTOTVM_FEATURES = ("knob", "itervar", "curve")
LABELS = {"ours": "our features", **{kind: f"{kind} features" for kind in AUTOTVM_FEATURES}}
SPLITS = ("first", "random")
METRICS = ("rank", "rank_ok", "recall@64", "best@64")
TOP = 64
app = typer.Typer(add_completion=False)


class Logged(NamedTuple):
    """One record of the log.

    Attributes:
        index: AutoTVM's number of the configuration.
        entity: its knobs, each as `[name, kind, value]`.
        costs: seconds of each repeat.
        error: the error's number.
    """

    index: int
    entity: Sequence[Any]
    costs: Sequence[float]
    error: int


@dataclass
class Layer:
    """The log of one task.

    Attributes:
        indices: AutoTVM's numbers of the configurations in the order measured, `[n]`.
        seconds: time of each configuration, NaN where it failed, `[n]`.
    """

    name: str
    task: Any
    knobs: ConfigKnobs
    indices: list[int]
    seconds: Floats

    @property
    def digits(self) -> Digits:
        return np.array([self.knobs.digits(i) for i in self.indices])

    @property
    def throughput(self) -> Floats:
        """Throughput relative to the best, 0 for failures, `[n]`."""
        return np.nan_to_num(np.nanmin(self.seconds) / self.seconds, nan=0.0)


def load_log(path: Path, target: str) -> list[Layer]:
    """Read the tasks of an AutoTVM log, in today's form or in that of 2020.

    If a configuration occurs more than once, its first record counts.

    Raises:
        ChameleonError: if a line is no record of a conv2d, or if its configuration has another index in this TVM's
            space.
    """
    records: dict[str, list[Logged]] = {}
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                args, logged = _parsed(json.loads(line))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise ChameleonError(
                    f"{path}: line {number}: a record of AutoTVM's log expected, got {line[:80]!r}"
                ) from error
            records.setdefault(json.dumps(args), []).append(logged)
    return [_layer(json.loads(args), rows, target) for args, rows in records.items()]


def _parsed(record: dict[str, Any]) -> tuple[list[Any], Logged]:
    """Read one record: the arguments of conv2d_nchw.cuda and what was logged."""
    if "input" in record:  # version 0.2
        (costs, error), config = record["result"][:2], record["config"]
        return record["input"][2], Logged(config["index"], config["entity"], costs, error)
    data, weight, _, strides, padding, dilation = record["i"][2]  # version 0.1: shapes
    (costs, error), config = record["r"][:2], record["i"][5]
    args = [["TENSOR", data, "float32"], ["TENSOR", weight, "float32"], strides, padding, dilation, "float32"]
    return args, Logged(config["i"], config["e"], costs, error)


def _layer(args: Sequence[Any], rows: Sequence[Logged], target: str) -> Layer:
    task = make_task({"template": "conv2d_nchw.cuda", "args": args, "target": target})
    knobs = ConfigKnobs(task.config_space)
    found: dict[int, float] = {}
    for index, entity, costs, error in rows:
        here = {name: _inner(plain(e)) for name, e in knobs.entities(knobs.digits(index)).items()}
        logged = {name: _inner(value) for name, _, value in entity}
        if here != logged:
            raise ChameleonError(
                f"configuration {index} of {args} is {logged} in the log and {here} in this TVM's space"
            )
        found.setdefault(index, float(np.mean(costs)) if error == 0 else np.nan)
    (_, data, _), (_, weight, _) = args[:2]
    name = f"{data[1]}x{data[2]}-{weight[0]}-{weight[2]}x{weight[3]}"
    return Layer(name, task, knobs, list(found), np.array(list(found.values())))


def _inner(value: Any) -> Any:
    """For a split, all factors but the outermost one, which is open (-1); any other value as it is."""
    return tuple(value[1:]) if isinstance(value, (list, tuple)) else value


def features_of(layer: Layer) -> dict[str, NDArray[np.float32]]:
    """Every set of features for all trials, each `[n, f]`."""
    found = {"ours": layer.knobs.space.features(layer.digits)}
    for kind in AUTOTVM_FEATURES:
        model = XGBoostCostModel(layer.task, kind, num_threads=usable_cores(), log_interval=0)
        found[kind] = model._get_feature(layer.indices)
        model._close_pool()
    return found


def ours(features: NDArray[np.float32], throughput: Floats, n: int, seed: int) -> Floats:
    """Fit our ensemble to the first `n` trials and predict the rest."""
    model = CostModel(CostModelConfig())
    model.fit(features[:n], throughput[:n], seed)
    return model.predict(features[n:])[0]


def autotvm(layer: Layer, features: NDArray[np.float32], throughput: Floats, n: int, seed: int) -> Floats:
    """Fit AutoTVM's model to the first `n` trials and predict the rest; `features` take the place of its own."""
    np.random.seed(seed)  # noqa: NPY002 - it shuffles by the global state
    model = XGBoostCostModel(layer.task, "knob", num_threads=1, log_interval=0)
    model.feature_cache.get("knob").update(zip(layer.indices, features, strict=True))
    model.fit(layer.indices[:n], throughput[:n], TOP)
    predicted = model.predict(layer.indices[n:])
    model._close_pool()
    return np.asarray(predicted, dtype=np.float64)


def engine(layer: Layer, n: int, seed: int) -> Floats:
    """Fit the learner of our searchers to the first `n` trials and predict the rest."""
    history = History(layer.knobs.space)
    configs = layer.digits
    for config, seconds in zip(configs[:n], layer.seconds[:n], strict=True):
        ok = np.isfinite(seconds)
        history.add([Trial(tuple(config), Status.OK if ok else Status.RUN_ERROR, float(seconds) if ok else None)])
    return Learner(layer.knobs.space, CostModelConfig(), seed).predict(history, configs[n:])[0]


def scores(predicted: Floats, throughput: Floats) -> dict[str, float]:
    """Compute all metrics of a prediction of `[n]` throughputs."""
    ok = throughput > 0
    rank_ok = rank_correlation(predicted[ok], throughput[ok])
    return {**prediction_scores(predicted, throughput, TOP), "rank_ok": rank_ok}


def evaluate(layer: Layer, sizes: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """One row for each split, seed, number of trials and model."""
    features, rows = features_of(layer), []
    for split in SPLITS:
        for seed in range(seeds):
            count = len(layer.indices)
            order = np.arange(count) if split == "first" else np.random.default_rng(seed).permutation(count)
            shuffled = replace(layer, indices=[layer.indices[i] for i in order], seconds=layer.seconds[order])
            for n in sizes:
                for name, found in _scored(
                    shuffled, {kind: x[order] for kind, x in features.items()}, n, seed
                ).items():
                    rows.append(
                        {"layer": layer.name, "split": split, "trials": n, "seed": seed, "model": name, **found}
                    )
    return rows


def _scored(layer: Layer, features: dict[str, NDArray[np.float32]], n: int, seed: int) -> dict[str, dict[str, float]]:
    """The metrics of every model that learnt from the first `n` trials."""
    throughput = layer.throughput
    predicted = {"engine": engine(layer, n, seed)}
    for kind, x in features.items():
        predicted[f"our model, {LABELS[kind]}"] = ours(x, throughput, n, seed)
        predicted[f"AutoTVM's model, {LABELS[kind]}"] = autotvm(layer, x, throughput, n, seed)
    return {name: scores(p, throughput[n:]) for name, p in predicted.items()}


def table(rows: Sequence[dict[str, Any]], sizes: Sequence[int]) -> str:
    """Make tables in Markdown, one for each split and metric: the mean over tasks and seeds.

    There is one row for each model and one column for each number of trials.
    """
    models, lines = list(dict.fromkeys(row["model"] for row in rows)), []
    for split in SPLITS:
        for metric in METRICS:
            lines += [
                "",
                f"{metric}, split `{split}`, mean over {len({r['layer'] for r in rows})} tasks and all seeds:",
                "",
            ]
            lines += ["| model | " + " | ".join(f"N={n}" for n in sizes) + " |", "|---" * (1 + len(sizes)) + "|"]
            for model in models:
                of = [r for r in rows if (r["model"], r["split"]) == (model, split)]
                means = [np.mean([r[metric] for r in of if r["trials"] == n]) for n in sizes]
                lines.append(f"| {model} | " + " | ".join(f"{m:.3f}" for m in means) + " |")
    return "\n".join(lines).lstrip() + "\n"


@app.command()
def main(
    log: Annotated[Path, typer.Argument(help="AutoTVM's log of conv2d_nchw.cuda tasks, plain or gzip.")],
    sizes: Annotated[
        str, typer.Option(help="Numbers of trials to learn from, separated by commas.")
    ] = "64,128,256,512",
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each model.")] = 5,
    limit: Annotated[
        int | None, typer.Option(help="Only so many trials of each task, and only the first task.")
    ] = None,
    target: Annotated[str, typer.Option(help="Target of the template; nothing is built.")] = "cuda -arch=sm_70",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/cost_model"),
) -> None:
    """Measure rank correlation and recall of cost models on a tuning log."""
    started, counts = time.perf_counter(), [int(n) for n in sizes.split(",")]
    layers = load_log(log, target)
    if limit is not None:
        layers = layers[:1]
        layers[0].indices, layers[0].seconds = layers[0].indices[:limit], layers[0].seconds[:limit]
    rows = []
    for layer in layers:
        rows += evaluate(layer, counts, seeds)
        print(f"{layer.name}: done after {time.perf_counter() - started:.0f} s", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps({"results": rows}, indent=1) + "\n")
    text = table(rows, counts)
    (out / "table.md").write_text(text)
    arguments = {"log": log, "sizes": counts, "seeds": seeds, "limit": limit, "target": target}
    write_manifest(out / "manifest.json", {**arguments, "took_s": round(time.perf_counter() - started, 1)})
    print(text)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
