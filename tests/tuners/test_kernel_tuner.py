"""The searchers inside the real Kernel Tuner: simulated on recordings, and compiling C kernels. No GPU is needed."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chameleon.errors import UsageError
from chameleon.search import SEARCHERS, Status, UnknownSearcherError
from chameleon.testing import check_host, check_space
from tests.search.test_contract import SMALL
from tuners.kernel_tuner import ChameleonStrategy, StrategyError, Tunables, trial_of
from tuners.landscape import TIME, Objective, load_landscape
from tuners.replay import replay

DATA = Path(__file__).parents[1] / "data"
Results = list[dict[str, Any]]

needs_kernel_tuner = pytest.mark.needs("kernel_tuner")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def small(name: str, seed: int | None = 0) -> ChameleonStrategy:
    return ChameleonStrategy(name, seed, **SMALL.get(name, {}))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked("tiny_cache", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with 243 failures among its 1152 configurations."""
    return unpacked("small_cache", tmp_path_factory.mktemp("small"))


def unpacked(name: str, folder: Path) -> Path:
    path = folder / f"{name}.json"
    path.write_bytes(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
    return path


def with_work(cache: Path, folder: Path) -> Path:
    """A copy of the cache in which each success has a rate as well, which is best where the time is worst."""
    document = json.loads(cache.read_text())
    for entry in document["cache"].values():
        if isinstance(entry["time"], float):
            entry["GFLOP/s"] = entry["time"] * 10
    path = folder / "rates.json"
    path.write_text(json.dumps(document))
    return path


def simulate(cache: Path, strategy: Any, options: Mapping[str, Any], **more: Any) -> Results:
    """What Kernel Tuner measures, where the recording answers instead of hardware."""
    from constraint import FunctionConstraint
    from kernel_tuner import tune_kernel

    document = json.loads(cache.read_text())
    names = document["tune_params_keys"]
    recorded = {tuple(entry[n] for n in names) for entry in document["cache"].values()}
    given: dict[str, Any] = {
        "restrictions": [FunctionConstraint(lambda *values: values in recorded)],
        "simulation_mode": True,
        "cache": str(cache),
        "quiet": True,
        **more,
    }
    results, _ = tune_kernel(
        document["kernel_name"],
        "",
        tuple(document["problem_size"]),
        [],
        document["tune_params"],
        strategy=strategy,
        strategy_options=dict(options),
        **given,
    )
    return results


def proposals(cache: Path, results: Results) -> list[tuple[Any, ...]]:
    names = json.loads(cache.read_text())["tune_params_keys"]
    return [tuple(result[n] for n in names) for result in results]


@pytest.mark.slow
@needs_kernel_tuner
@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_measures_each_configuration_of_the_space_once(name: str, tiny: Path) -> None:
    results = simulate(tiny, small(name), {})
    recorded = json.loads(tiny.read_text())["cache"]
    assert {",".join(map(str, p)) for p in proposals(tiny, results)} == set(recorded)
    assert len(results) == len(recorded)
    assert min(r["time"] for r in results if "__error__" not in r) == pytest.approx(
        load_landscape(DATA / "tiny_cache.json.gz").best * 1e3
    )


@pytest.mark.slow
@needs_kernel_tuner
@pytest.mark.parametrize("name", SEARCHERS)
def test_it_searches_as_a_replay_of_the_same_recording_does(name: str, failing: Path) -> None:
    replayed = replay(load_landscape(failing), name, trials=64, seed=2, **SMALL.get(name, {}))
    results = simulate(failing, small(name, 2), {"max_fevals": 64})
    measured = [np.nan if "__error__" in r else r["time"] * 1e-3 for r in results]
    np.testing.assert_array_equal(measured, replayed.values)


@needs_kernel_tuner
@pytest.mark.parametrize("name", SEARCHERS)
def test_it_keeps_the_contract_of_hosts(name: str, failing: Path) -> None:
    def run(name: str, seed: int, trials: int) -> list[tuple[Any, ...]]:
        return proposals(failing, simulate(failing, small(name, seed), {"max_fevals": trials}))

    check_host(run, [name], trials=37)


@pytest.mark.slow
@needs_kernel_tuner
def test_the_search_learns_from_what_kernel_tuner_measures(failing: Path) -> None:
    """What it measures is better, in the mean, than what random search does; failures count as nothing."""
    landscape = load_landscape(DATA / "small_cache.json.gz")
    for seed in range(3):
        results = simulate(failing, small("annealing+adaptive", seed), {"max_fevals": 100})
        seconds = [np.nan if "__error__" in r else r["time"] * 1e-3 for r in results]
        assert landscape.fraction(np.array(seconds)).mean() > 1.2 * landscape.fraction(landscape.values).mean()


@pytest.mark.slow
@needs_kernel_tuner
@pytest.mark.parametrize("name", ["chameleon", "genetic", "random"])
def test_the_same_seed_gives_the_same_proposals_and_another_seed_others(name: str, tiny: Path) -> None:
    def asked(own: int | None, given: int | None = None) -> list[tuple[Any, ...]]:
        return proposals(tiny, simulate(tiny, small(name, own), {"max_fevals": 40}, seed=given))

    assert asked(3) == asked(3)
    assert asked(4) != asked(3)
    assert asked(None) == asked(0)
    assert asked(None, 3) == asked(3)  # tune_kernel's own
    assert asked(4, 3) == asked(4)


@needs_kernel_tuner
def test_one_strategy_searches_anew_in_each_call(tiny: Path, failing: Path) -> None:
    strategy = small("genetic", 5)
    simulate(failing, strategy, {"max_fevals": 20})
    again = simulate(tiny, strategy, {"max_fevals": 20})
    assert proposals(tiny, again) == proposals(tiny, simulate(tiny, small("genetic", 5), {"max_fevals": 20}))


@needs_kernel_tuner
def test_failures_are_measurements_and_are_counted_by_reason(failing: Path) -> None:
    strategy = small("grid")
    results = simulate(failing, strategy, {})
    errors = [str(r["__error__"]) for r in results if "__error__" in r]
    assert len(results) == 1152
    assert len(errors) == 243
    assert strategy.failures == {name: errors.count(name) for name in set(errors)}
    assert set(errors) == {"CompilationFailedConfig", "RuntimeFailedConfig"}


@needs_kernel_tuner
@pytest.mark.parametrize("name", SEARCHERS)
def test_a_space_in_which_everything_fails(name: str, tiny: Path, tmp_path: Path) -> None:
    document = json.loads(tiny.read_text())
    for entry in document["cache"].values():
        entry["time"] = "CompilationFailedConfig"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(document))
    strategy = small(name)
    assert len(simulate(broken, strategy, {"max_fevals": 60})) == 60
    assert strategy.failures == {"CompilationFailedConfig": 60}


@pytest.mark.slow
@needs_kernel_tuner
@pytest.mark.parametrize("name", ["annealing", "genetic"])
def test_a_rate_is_maximised(name: str, tiny: Path, tmp_path: Path) -> None:
    """The largest rate is the longest time. The searches for the two must part ways."""
    rates = with_work(tiny, tmp_path)
    fast = simulate(rates, small(name), {"max_fevals": 120})
    slow = simulate(rates, small(name), {"max_fevals": 120}, objective="GFLOP/s", objective_higher_is_better=True)
    assert np.mean([r["time"] for r in slow if "__error__" not in r]) > np.mean(
        [r["time"] for r in fast if "__error__" not in r]
    )
    assert max(r["GFLOP/s"] for r in slow if "__error__" not in r) == max(
        r["time"] * 10 for r in simulate(rates, small("grid"), {}) if "__error__" not in r
    )


@needs_kernel_tuner
def test_a_metric_may_be_the_objective(tiny: Path) -> None:
    best = simulate(
        tiny,
        small("genetic"),
        {"max_fevals": 288},
        metrics={"rate": lambda p: 1 / p["time"]},
        objective="rate",
        objective_higher_is_better=True,
    )
    assert max(r["rate"] for r in best if "__error__" not in r) == pytest.approx(
        1e-3 / load_landscape(DATA / "tiny_cache.json.gz").best
    )


@needs_kernel_tuner
def test_only_what_passes_the_restrictions_is_proposed(tiny: Path) -> None:
    restrictions = ["block_x * block_y >= 64", "tile != 8", lambda p: p["cache"] != "none"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Configuration .* not in cache")  # it was asked for something else
        results = simulate(tiny, small("annealing"), {}, restrictions=restrictions)
    wanted = [
        e
        for e in json.loads(tiny.read_text())["cache"].values()
        if e["block_x"] * e["block_y"] >= 64 and e["tile"] != 8 and e["cache"] != "none"
    ]
    assert len(results) == len(wanted) > 20


@needs_kernel_tuner
def test_the_starting_point_comes_first(tiny: Path) -> None:
    start = [16, 2, 3, "shared", 1, 15]
    results = simulate(tiny, small("chameleon"), {"max_fevals": 30, "x0": start})
    asked = proposals(tiny, results)
    assert list(asked[0]) == start
    assert len(set(asked)) == 30


@needs_kernel_tuner
def test_what_cannot_be_done_is_said(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="maxfevals in strategy_options; it takes max_fevals"):
        simulate(tiny, small("random"), {"maxfevals": 10})
    with pytest.raises(StrategyError, match="expected x0 to be a configuration"):
        simulate(tiny, small("random"), {"max_fevals": 10, "x0": [16, 1]})
    with pytest.raises(StrategyError, match="expected x0 to be a configuration"):
        simulate(tiny, small("random"), {"max_fevals": 10, "x0": [16, 1, 3, "shared", 1, 15]})
    with pytest.raises(StrategyError, match="expected a number for the objective 'energy'"):
        simulate(tiny, small("random"), {"max_fevals": 10}, objective="energy")
    rates = with_work(tiny, tmp_path)
    with pytest.raises(StrategyError, match=r"expected one objective, got time, GFLOP/s"):
        simulate(rates, small("random"), {"max_fevals": 9}, objectives={"time": False, "GFLOP/s": True})


@needs_kernel_tuner
def test_as_an_optimiser_of_a_t1_file(tiny: Path, tmp_path: Path) -> None:
    """`tune_kernel_T1` makes the strategy itself, from the file of this module and the options of its constructor."""
    from kernel_tuner.interface import tune_kernel_T1

    import tuners.kernel_tuner as module

    document = json.loads(tiny.read_text())
    parameters = [
        {"Name": n, "Type": "string" if isinstance(v[0], str) else "int", "Values": str(v)}
        for n, v in document["tune_params"].items()
    ]
    conditions = [{"Expression": "block_x * block_y >= 32", "Parameters": ["block_x", "block_y"]}]
    (tmp_path / "tiny.cu").write_text("__global__ void tiny() {}")
    (tmp_path / "t1.json").write_text(
        json.dumps(
            {
                "General": {"BenchmarkName": "tiny", "OutputFormat": "JSON"},
                "ConfigurationSpace": {"TuningParameters": parameters, "Conditions": conditions},
                "KernelSpecification": {
                    "Language": "CUDA",
                    "KernelName": "tiny",
                    "KernelFile": str(tmp_path / "tiny.cu"),
                    "GlobalSize": {"X": "4096"},
                    "LocalSize": {"X": "block_x"},
                    "ProblemSize": document["problem_size"],
                    "Arguments": [],
                },
            }
        )
    )
    results, _ = tune_kernel_T1(
        tmp_path / "t1.json",
        tiny,
        device="imagined",
        simulation_mode=True,
        output_T4=False,
        strategy="ChameleonStrategy",
        strategy_options={
            "custom_search_method_path": Path(module.__file__),
            "max_fevals": 25,
            "searcher": "genetic",
            "seed": 3,
        },
    )
    assert proposals(tiny, results) == proposals(
        tiny, simulate(tiny, ChameleonStrategy("genetic", 3), {"max_fevals": 25})
    )


C_KERNEL = """
extern "C" float work(float *out, int n) {
    for (int i = 0; i < n; i += 1) { out[i] = i * block; }
    return 5.0f - block + 0.5f * (flag == 2);  // what Kernel Tuner takes as the time, in ms
}
"""


@needs_kernel_tuner
@needs_compiler
def test_measuring_goes_on_from_the_cache(tmp_path: Path) -> None:
    """Kernels in C are compiled and run. The second run, with a larger budget, begins with what the first measured."""
    from kernel_tuner import tune_kernel

    cache, out = tmp_path / "cache.json", np.zeros(16, dtype=np.float32)

    def run(budget: int) -> Results:
        results, _ = tune_kernel(
            "work",
            C_KERNEL,
            16,
            [out, np.int32(16)],
            {"block": [1, 2, 3, 4], "flag": [1, 2]},
            lang="C",
            restrictions=["block * flag < 8"],
            strategy=small("genetic", 1),
            strategy_options={"max_fevals": budget},
            cache=str(cache),
            quiet=True,
        )
        return results

    first = run(3)
    stamps = [entry["timestamp"] for entry in json.loads(cache.read_text())["cache"].values()]
    second = run(7)
    assert len(first) == 3
    assert [(r["block"], r["flag"]) for r in second[:3]] == [(r["block"], r["flag"]) for r in first]
    assert len({(r["block"], r["flag"]) for r in second}) == len(second) == 7
    best = min(second, key=lambda r: r["time"])
    assert (best["block"], best["flag"]) == (4, 1)
    assert stamps == [e["timestamp"] for e in json.loads(cache.read_text())["cache"].values()][:3]


@pytest.mark.slow
@needs_kernel_tuner
@needs_compiler
def test_the_time_limit_ends_the_search(tmp_path: Path) -> None:
    from kernel_tuner import tune_kernel

    results, _ = tune_kernel(
        "work",
        C_KERNEL,
        16,
        [np.zeros(16, dtype=np.float32), np.int32(16)],
        {"block": [1, 2, 4], "flag": list(range(1000))},
        lang="C",
        strategy=small("random"),
        strategy_options={"time_limit": 1.0},
        quiet=True,
    )
    assert 0 < len(results) < 3000


# What follows does without Kernel Tuner.


def searchspace(tune_params: Mapping[str, list[Any]], configs: list[tuple[Any, ...]]) -> Any:
    return SimpleNamespace(tune_params=tune_params, list=configs)


def test_knobs_have_the_values_that_occur_with_numbers_rising() -> None:
    configs = [(8, "b", True), (2, "a", True), (np.int64(4), "b", True)]
    tunables = Tunables.of(searchspace({"x": [8, 2, 4, 16], "y": ["b", "a", "c"], "z": [False, True]}, configs))
    assert [k.values for k in tunables.space.knobs] == [(2, 4, 8), ("b", "a"), (True,)]
    check_space(tunables.space, np.random.default_rng(0))
    assert [tunables.config(row) for row in tunables.space.rows(0, 9)] == sorted(configs)
    for config in configs:
        assert tunables.config(tunables.digits(config)) == config


@pytest.mark.parametrize("x0", [(2, "b"), (2, "a", 1), (3, "a"), "ab", 5, None, (2, ["a"])])
def test_a_starting_point_outside_of_the_space_is_refused(x0: Any) -> None:
    tunables = Tunables.of(searchspace({"x": [2, 4], "y": ["a", "b"]}, [(2, "a"), (4, "b")]))
    with pytest.raises(StrategyError, match="each of x, y, got"):
        tunables.digits(x0)


def test_nothing_to_tune() -> None:
    with pytest.raises(StrategyError, match="no configuration passes the restrictions"):
        Tunables.of(searchspace({"x": [2]}, []))


@pytest.mark.parametrize(
    ("result", "status", "value"),
    [
        ({"time": 2.0}, Status.OK, 2e-3),
        ({"time": np.float32(2.0), "compile_time": 1.0}, Status.OK, 2e-3),
        ({"time": 0.0}, Status.RUN_ERROR, None),
        ({"time": float("inf")}, Status.RUN_ERROR, None),
        ({"time": float("nan")}, Status.RUN_ERROR, None),
        ({"time": 1e20}, Status.RUN_ERROR, None),
        ({"time": 2.0, "__error__": "RuntimeFailedConfig"}, Status.RUN_ERROR, None),
        ({"__error__": "CompilationFailedConfig"}, Status.BUILD_ERROR, None),
        ({"__error__": "InvalidConfig"}, Status.BUILD_ERROR, None),
    ],
)
def test_results_become_trials(result: dict[str, Any], status: Status, value: float | None) -> None:
    trial = trial_of(np.array([0, 1]), {"x": 1, **result}, TIME)
    assert (trial.config, trial.status, trial.seconds) == ((0, 1), status, value)
    assert bool(trial.message) == (status is not Status.OK)


def test_other_objectives_become_scores() -> None:
    result = {"x": 1, "time": 2.0, "energy": 3.0, "compile_time": 500.0, "benchmark_time": None}
    assert trial_of(np.array([0]), result, Objective("energy")).score == -3.0
    assert trial_of(np.array([0]), result, Objective("energy", True)).score == 3.0
    assert trial_of(np.array([0]), result, Objective("time", True)).score == 2.0
    assert trial_of(np.array([0]), result, TIME).timings == {"build": 0.5}
    for name in ("power", "benchmark_time"):
        with pytest.raises(StrategyError, match=f"'{name}' in each result, got one with x, time, energy"):
            trial_of(np.array([0]), result, Objective(name))


def test_wrong_arguments() -> None:
    with pytest.raises(UnknownSearcherError, match="did you mean chameleon"):
        ChameleonStrategy("chamelion")
    with pytest.raises(UnknownSearcherError, match="walkers"):
        ChameleonStrategy(explorer={"walker": 3})
    with pytest.raises(UsageError, match="seed"):
        ChameleonStrategy(seed="0")  # type: ignore[arg-type]
    assert repr(ChameleonStrategy("release", 3)) == "ChameleonStrategy('release', seed=3)"
