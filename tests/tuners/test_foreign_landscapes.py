"""Recordings of other tuners as they are found: failures, caches cut anywhere, other objectives; and what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon.search.trial import Status
from tuners.landscape import LandscapeError, LandscapeWarning, load_landscape, save_landscape
from tuners.replay import replay


def write(tmp_path: Path, document: object, name: str = "k.json") -> Path:
    path = tmp_path / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def cache(entries: list[dict[str, Any]], objective: object = "time", **changes: Any) -> dict[str, Any]:
    """A cache of Kernel Tuner with the parameter `x`, numbered in the order of the entries."""
    listed = {str(i): {"x": i, **entry} for i, entry in enumerate(entries)}
    head = {"kernel_name": "k", "tune_params_keys": ["x"], "tune_params": {"x": list(range(len(entries)))}}
    return {**head, "objective": objective, "cache": listed, **changes}


def test_an_error_without_a_time_is_a_failed_trial(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        *({"__error__": f"{kind}Config", "compile_time": 9.0} for kind in ("CompilationFailed", "RuntimeFailed")),
        {"time": 2.0},
    ]
    landscape = load_landscape(write(tmp_path, cache(entries, ["time"])))
    assert [s.value for s in landscape.statuses] == ["build_error", "run_error", "ok"]
    assert landscape.messages[0] == "CompilationFailedConfig"
    assert landscape.best == 2e-3


def test_a_cache_cut_anywhere_keeps_its_whole_entries(tmp_path: Path) -> None:
    """Cut after every letter from the first whole entry on; no cut may be taken for a file of another kind."""
    document = cache([{"time": 1.5, "note": 'a "}" \\'}, {"time": 2.0, "times": [1, {"a": []}]}, {"time": 3.0}])
    text = json.dumps(document, indent=0)
    ends = [text.index("}", text.index(mark)) for mark in ('"time": 1.5', '"a"', '"time": 3.0')]
    ends[0] = text.index("}", ends[0] + 1)  # the first is in a string
    ends[1] = text.index("}", ends[1] + 1)
    for stop in range(text.index('"cache"') + 11, len(text.rstrip()) - 1):
        whole = sum(end < stop for end in ends)
        if not whole:
            with pytest.raises(LandscapeError, match="never closed and holds no whole entry"):
                load_landscape(write(tmp_path, text[:stop]))
            continue
        with pytest.warns(LandscapeWarning, match=f"never closed; using the {whole} entries"):
            assert len(load_landscape(write(tmp_path, text[:stop]))) == whole


def test_values_may_be_objects(tmp_path: Path) -> None:
    document = cache([{"time": 1.0, "o": {}}, {"time": 2.0, "o": {"b": [1], "a": None}}])
    document["tune_params_keys"].append("o")
    document["tune_params"]["o"] = [{}, {"a": None, "b": [1]}]
    landscape = load_landscape(write(tmp_path, document))
    assert landscape.space.knobs[1].values == ("{}", '{"a": null, "b": [1]}')
    save_landscape(landscape, tmp_path / "again.jsonl")
    np.testing.assert_array_equal(load_landscape(tmp_path / "again.jsonl").values, landscape.values)


@pytest.mark.parametrize(
    ("name", "values", "fractions"),
    [
        ("GFLOP/s", [10.0, 40.0, 20.0], [0.25, 1.0, 0.5]),
        ("score", [-1.0, 1.0, 0.0], [0.0, 1.0, 0.5]),
        ("energy", [10.0, 40.0, 20.0], [1.0, 0.25, 0.5]),
        ("error", [-3.0, 1.0, -1.0], [1.0, 0.0, 0.5]),
    ],
)
def test_other_objectives_load_and_are_searched(
    tmp_path: Path, name: str, values: list[float], fractions: list[float]
) -> None:
    entries: list[dict[str, Any]] = [{name: v, "time": 1.0} for v in values]
    document = cache([*entries, {name: "RuntimeFailedConfig"}], name)
    landscape = load_landscape(write(tmp_path, document))
    assert landscape.objective.name == name
    np.testing.assert_allclose(landscape.fraction(landscape.values), [*fractions, 0.0])
    save_landscape(landscape, tmp_path / "again.jsonl")
    again = load_landscape(tmp_path / "again.jsonl")
    assert again.objective == landscape.objective
    np.testing.assert_array_equal(again.values, landscape.values)
    for one in (landscape, again):
        run = replay(one, "genetic", trials=4, seed=0)
        assert sorted(run.values[~np.isnan(run.values)]) == sorted(values)
        assert run.fraction[-1] == 1.0


def test_a_file_says_which_way_is_better(tmp_path: Path) -> None:
    document = cache([{"goodness": 1.0}, {"goodness": 2.0}], "goodness", objective_higher_is_better=True)
    assert load_landscape(write(tmp_path, document)).best == 2.0
    document = cache([{"time": 1.0, "GB/s": 2.0}, {"time": 2.0, "GB/s": 1.0}], ["GB/s", "time"])
    with pytest.warns(LandscapeWarning, match="objectives GB/s, time only time is used"):
        assert load_landscape(write(tmp_path, document)).best == 1e-3
    with pytest.warns(LandscapeWarning, match="no entry has the objective GB/s; the time is used"):
        assert load_landscape(write(tmp_path, cache([{"time": 1.0}], "GB/s"))).best == 1e-3


def test_t4_with_another_objective(tmp_path: Path) -> None:
    results = [
        {
            "configuration": {"x": x},
            "invalidity": "correct",
            "objectives": ["GFLOP/s"],
            "measurements": [{"name": "time", "value": 1, "unit": "ms"}, {"name": "GFLOP/s", "value": v, "unit": ""}],
        }
        for x, v in enumerate([3.0, 5.0])
    ]
    assert load_landscape(write(tmp_path, {"results": results})).best == 5.0


def ktt(status: str, duration: float, x: int, unit: str = "Microseconds") -> dict[str, Any]:
    return {
        "Metadata": {"KttVersion": "2.1.0", "TimeUnit": unit},
        "Results": [
            {
                "KernelName": "k",
                "Status": status if i == x else "Ok",
                "TotalDuration": duration * (i + 1),
                "Configuration": [
                    {"Name": "X", "Value": i, "ValueType": "UnsignedInt"},
                    {"Name": "KIND", "Value": "a", "ValueType": "String"},
                ],
                "ComputationResults": [],
            }
            for i in range(3)
        ],
    }


def test_results_of_ktt(tmp_path: Path) -> None:
    statuses = {
        "CompilationFailed": Status.BUILD_ERROR,
        "ValidationFailed": Status.RUN_ERROR,
        "ComputationFailed": Status.RUN_ERROR,
    }
    for status, expected in statuses.items():
        landscape = load_landscape(write(tmp_path, ktt(status, 2.0, 1)))
        np.testing.assert_allclose(landscape.values, [2e-6, np.nan, 6e-6])
        assert landscape.statuses[1] is expected
    assert load_landscape(write(tmp_path, ktt("Ok", 2.0, 0, "Nanoseconds"))).best == pytest.approx(2e-9)
    broken = ktt("Ok", 2.0, 0)
    del broken["Results"][1]["TotalDuration"]
    with pytest.raises(LandscapeError, match=r"result 1 of KTT: .*'TotalDuration' is missing"):
        load_landscape(write(tmp_path, broken))


AUTOTVM = '{"input": ["llvm", "conv2d", [], {}], "config": {"index": 1}, "result": [[0.1], 0, 1, 2], "version": 0.2}\n'
META = '[0, [[[["GetBlock", [], ["a", "main"], ["b0"]]], []], [0.1], {"kind": "llvm"}, []]]\n'
ONE_SEARCH = "only a landscape, which lists every configuration of one space, can be replayed"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("# a comment\n#another\n" + AUTOTVM * 2, f"a log of AutoTVM.*{ONE_SEARCH}.*load_history"),
        (AUTOTVM, "a log of AutoTVM"),
        (AUTOTVM * 2, "a log of AutoTVM"),
        (META, f"the tuning records of a MetaSchedule database.*{ONE_SEARCH}"),
        (META * 2, "the tuning records of a MetaSchedule database"),
        ('["123", "bW9k"]\n' * 2, "the workloads of a MetaSchedule database"),
        ('<?xml version="1.0"?>\n<Results/>', "XML; if KTT wrote it, save its results again as JSON"),
        ('{"General": {}, "ConfigurationSpace": {}}', "a description of a tuning problem"),
    ],
)
def test_what_is_no_landscape_is_called_by_its_name(tmp_path: Path, content: str, what: str) -> None:
    with pytest.raises(LandscapeError, match=f"(?s)not a recorded landscape: expected .*, got {what}"):
        load_landscape(write(tmp_path, content))
