"""A recording in place of hardware: the real AutoTVM's tuners, stock and ours, get exactly what was recorded."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import autotvm
from tvm.autotvm.measure import MeasureErrorNo
from tvm.autotvm.tuner import DropletTuner, GATuner, GridSearchTuner, RandomTuner, XGBTuner

from tests.autotvm.templates import topi_task
from tuners.autotvm import AnnealingTuner, ChameleonTuner, ReleaseTuner
from tuners.autotvm_replay import Recording, ReplayBuilder, ReplayRunner, load_recording, make_task
from tuners.landscape import LandscapeError, load_landscape, read_lines, write_lines

pytestmark = pytest.mark.autotvm

CONV = Path(__file__).parent / "data" / "small-conv.jsonl.gz"  # all of the space
DENSE = Path(__file__).parent / "data" / "dense-sample.jsonl.gz"  # 240 of 92,400; a quarter took too long to build
TUNERS = {
    "grid": GridSearchTuner,
    "random": RandomTuner,
    "ga": lambda task: GATuner(task, pop_size=16),
    "droplet": DropletTuner,
    "xgb": lambda task: XGBTuner(task, plan_size=16, feature_type="knob", num_threads=1),
    "chameleon": ChameleonTuner,
    "release": ReleaseTuner,
    "annealing": AnnealingTuner,
}


def tuned(recording: Recording, make: Any, n_trial: int, task: Any = None) -> tuple[Any, list[tuple[int, Any]]]:
    """The tuner after its run, and index and result of every trial."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - AutoTVM's tuners draw from the global state
    seen: list[tuple[int, Any]] = []
    tuner = make(task or recording.task())
    tuner.tune(
        n_trial=n_trial,
        measure_option=autotvm.measure_option(builder=ReplayBuilder(8), runner=ReplayRunner(recording)),
        callbacks=[
            lambda _, inputs, results: seen.extend(zip((i.config.index for i in inputs), results, strict=True))
        ],
    )
    return tuner, seen


def sample_of(lines: list[dict[str, Any]], keep: Any, path: Path) -> Recording:
    write_lines([lines[0], *(line for i, line in enumerate(lines[1:]) if keep(i))], path)
    return load_recording(path)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return load_recording(CONV)


def test_the_recording_is_the_landscape(recording: Recording) -> None:
    landscape = load_landscape(CONV)
    assert recording.complete
    assert len(recording.answers) == len(landscape) == recording.points == 360
    assert recording.best_seconds == pytest.approx(landscape.best, rel=1e-4)
    space = recording.task().config_space
    for config, seconds in zip(landscape.configs, landscape.values, strict=True):
        answer = recording.answers[space.knob2point(config.tolist())]
        assert np.mean(answer.costs) == pytest.approx(seconds, rel=1e-4)
    values = [k["values"] for k in recording.header["knobs"]]
    for index in (0, 17, 359):  # the header says what AutoTVM's entity is
        digits, config = space.point2knob(index), space.get(index)
        for name, digit, known in zip(config, digits, values, strict=True):
            value = config[name].size[1:] if hasattr(config[name], "size") else config[name].val
            assert value == (known[digit][1:] if isinstance(known[digit], list) else known[digit])


@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_gets_what_was_recorded(name: str, recording: Recording) -> None:
    tuner, seen = tuned(recording, TUNERS[name], 40)
    assert len(seen) == 40 or name == "droplet"  # it ends at a local optimum
    for index, result in seen:
        assert result.costs == recording.answers[index].costs
    best_s = min(np.mean(result.costs) for _, result in seen)
    assert tuner.best_flops == pytest.approx(tuner.task.flop / best_s)


def test_the_whole_space_holds_the_best(recording: Recording) -> None:
    tuner, seen = tuned(recording, RandomTuner, 1000)
    assert sorted(index for index, _ in seen) == list(range(360))
    assert tuner.best_flops == pytest.approx(tuner.task.flop / recording.best_seconds)


@pytest.mark.parametrize("name", ["random", "ga", "xgb", "chameleon", "annealing"])
def test_a_sample_is_all_that_is_proposed(name: str, tmp_path: Path) -> None:
    sample = sample_of(read_lines(CONV), lambda i: i % 5 == 0, tmp_path / "sample.jsonl")
    assert (sample.complete, len(sample.answers), sample.points) == (False, 72, 360)
    _, seen = tuned(sample, TUNERS[name], 60)
    assert {index for index, _ in seen} <= set(sample.answers)
    assert len(seen) == 60


def test_failures_are_replayed(tmp_path: Path) -> None:
    lines = read_lines(CONV)
    kinds = (
        {"status": "build_error", "error_no": 1},
        {"status": "timeout"},
        {"status": "run_error", "message": "boom"},
    )
    for i, line in enumerate(lines[1:]):
        if i % 4:
            line.pop("seconds"), line.pop("costs")
            line.update(kinds[i % 4 - 1])
    failing = sample_of(lines, lambda i: True, tmp_path / "failing.jsonl")
    tuner, seen = tuned(failing, RandomTuner, 360)
    counts = Counter(MeasureErrorNo(result.error_no).name for _, result in seen)
    assert counts == {"NO_ERROR": 90, "INSTANTIATION_ERROR": 90, "RUN_TIMEOUT": 90, "RUNTIME_DEVICE": 90}
    assert "boom" in str(next(r for _, r in seen if r.error_no == MeasureErrorNo.RUNTIME_DEVICE))
    assert tuner.best_flops == pytest.approx(tuner.task.flop / failing.best_seconds)


@pytest.mark.parametrize("name", ["random", "chameleon"])
def test_a_space_too_large_to_measure_with_builds_that_time_out(name: str) -> None:
    dense = load_recording(DENSE)
    timeouts = {i for i, answer in dense.answers.items() if answer.error_no}
    assert (len(dense.answers), dense.points, dense.complete) == (240, 92_400, False)
    assert {dense.answers[i].error_no for i in timeouts} == {MeasureErrorNo.BUILD_TIMEOUT}
    tuner, seen = tuned(dense, TUNERS[name], 48)
    assert {index for index, _ in seen} <= set(dense.answers)
    assert {index for index, result in seen if result.error_no} == {index for index, _ in seen} & timeouts
    assert tuner.best_flops <= tuner.task.flop / dense.best_seconds * 1.0001


def test_what_is_not_on_record_is_an_error_of_the_tuner(tmp_path: Path, recording: Recording) -> None:
    sample = sample_of(read_lines(CONV), lambda i: i % 2 == 0, tmp_path / "half.jsonl")
    _, seen = tuned(sample, GridSearchTuner, 10, task=recording.task())  # a task whose space was not restricted
    for index, result in seen:
        assert (result.error_no == MeasureErrorNo.INSTANTIATION_ERROR) == (index not in sample.answers)


def test_another_task_is_refused(recording: Recording) -> None:
    with pytest.raises(LandscapeError, match=r"recording of conv2d_NCHWc.x86 .* not of"):
        tuned(recording, RandomTuner, 1, task=topi_task("dense_pack.x86"))


def test_a_landscape_without_a_task_is_no_recording() -> None:
    with pytest.raises(LandscapeError, match="not a recording of an AutoTVM task"):
        load_recording(Path(__file__).parents[1] / "data" / "tiny_lines.jsonl.gz")


def test_knobs_of_another_version_are_refused(tmp_path: Path) -> None:
    lines = read_lines(CONV)
    lines[0]["knobs"][0]["values"].append([1, 32])
    with pytest.raises(LandscapeError, match="replay with the TVM version that recorded it"):
        sample_of(lines, lambda i: True, tmp_path / "other.jsonl").task()


def test_a_thinned_space_keeps_every_nth_value_of_a_knob() -> None:
    spec = read_lines(CONV)[0]["task"]
    whole, thin = make_task(spec).config_space, make_task({**spec, "every": {"tile_oc": 4, "tile_ow": 2}}).config_space
    assert (whole.dims, thin.dims, len(thin)) == ([5, 6, 6, 2], [5, 2, 3, 2], 60)
    for index in range(60):
        digits = thin.point2knob(index)
        same = whole.get(whole.knob2point([digits[0], 4 * digits[1], 2 * digits[2], digits[3]]))
        assert str(same).rpartition(",")[0] == str(thin.get(index)).rpartition(",")[0]
