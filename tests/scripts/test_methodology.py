"""The script that scores by Kernel Tuner's own method, in a small form, and its score by what it means."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from scripts.peers import methodology
from tests.support.scripts import ROOT, run_module

pytestmark = [pytest.mark.needs("autotuning_methodology"), pytest.mark.needs("kernel_tuner"), pytest.mark.slow]
UNTIMED = ROOT / "tests/data/small_cache.json.gz"


def landscape(path: Path) -> Path:
    """A cache of Kernel Tuner: 16 x 12 configurations in milliseconds, of which every ninth does not compile."""
    values = {"x": list(range(16)), "y": list(range(12))}
    cache = {}
    for x, y in itertools.product(*values.values()):
        time = "CompilationFailedConfig" if (x * 12 + y) % 9 == 4 else 1.0 + (x - 11) ** 2 + 0.1 * (y - 3) ** 2
        runs = [] if isinstance(time, str) else [time] * 32
        taken = {"compile_time": 900.0, "verification_time": 0, "benchmark_time": sum(runs), "times": runs}
        cache[f"{x},{y}"] = {"x": x, "y": y, "time": time, **taken}
    document = {
        **{"device_name": "none", "kernel_name": "bowl", "problem_size": [1], "objective": "time"},
        **{"tune_params_keys": list(values), "tune_params": values, "cache": cache},
    }
    path.write_text(json.dumps(document))
    return path


def test_scores(tmp_path: Path) -> None:
    arguments = (landscape(tmp_path / "bowl.json"), "--cutoff", 0.9, "--seeds", 2, "--out", tmp_path, "--strategies")
    ran = run_module("scripts.peers.methodology", *arguments, "random")
    assert ran.returncode == 0, ran.stderr
    ran = run_module("scripts.peers.methodology", *arguments, "random,random_sample")
    assert "2/2 runs" in ran.stdout  # the others are on record
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()[1:]]
    assert {(line["strategy"], line["seed"]) for line in lines} == {
        (name, seed) for name in ("random", "random_sample") for seed in (0, 1)
    }
    assert all(len(line["rows"]) == len(line["engine_ms"]) > 1 for line in lines)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {row["ours"] for row in rows} == {True, False}
    for row in rows:
        assert row["score"]["all"] == row["score"]["bowl"]  # there is one landscape
        assert row["recorded"]["all"] <= 1
    assert (tmp_path / "table.md").read_text().count("\n") == 4
    given = json.loads((tmp_path / "manifest.json").read_text())["arguments"]
    assert given["limits_s"]["bowl"] > 0


def test_the_optimum_at_once_scores_one(tmp_path: Path) -> None:
    timed = methodology.prepared(str(landscape(tmp_path / "bowl.json")))
    values = timed.found.landscape.values
    order = [int(row) for row in np.argsort(values) if np.isfinite(values[row])]
    of = {"landscape": "bowl", "wall_s": 1.0}
    ideal = [{**of, "strategy": "ideal", "seed": s, "rows": order[:1], "engine_ms": [1]} for s in range(2)]
    worst = order[:20:-1]  # the worst first
    stuck = [{**of, "strategy": "stuck", "seed": s, "rows": worst, "engine_ms": [100] * len(worst)} for s in range(2)]
    rows = methodology.summarise([*ideal, *stuck], {"bowl": timed}, 0.9)
    assert [row["strategy"] for row in rows] == ["ideal", "stuck"]
    assert rows[0]["score"]["all"] == pytest.approx(1)
    assert rows[1]["score"]["all"] < 0


def test_a_landscape_without_times_is_refused(tmp_path: Path) -> None:
    ran = run_module("scripts.peers.methodology", UNTIMED, "--out", tmp_path)
    assert ran.returncode == 2
    assert "what it took to compile" in ran.stderr
