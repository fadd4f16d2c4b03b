"""Records of earlier tuning: of the same task, of its kin, and of others."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tvm import autotvm
from tvm.autotvm.measure import MeasureErrorNo, MeasureInput

from chameleon.search import Status
from tests.autotvm.replaying import FormulaRunner, bowl, formula_option
from tests.autotvm.templates import conv_task, create, kind_task
from tuners.autotvm import ChameleonTuner
from tuners.config_space import ConfigKnobs, plain
from tuners.transfer import distance, frozen, past_of

pytestmark = pytest.mark.autotvm


def records_of(task, indices, answer=bowl):
    """What a log would hold of some configurations of a task."""
    configs = [task.config_space.get(int(i)) for i in indices]
    return [(MeasureInput(task.target, task, c), FormulaRunner.result(answer(c))) for c in configs]


def through_a_log(pairs, path):
    path.write_text("".join(autotvm.record.encode(*pair) + "\n" for pair in pairs))
    return list(autotvm.record.load_from_file(str(path)))


def tune(tuner, n_trial):
    option, runner = formula_option(bowl)
    tuner.tune(n_trial, option)
    return runner.asked


def test_what_was_measured_before_is_known_and_not_measured_again(tmp_path):
    task = create("chameleon/matmul", 64, 64)
    done = range(0, 49, 2)
    tuner = ChameleonTuner(task)
    tuner.load_history(through_a_log(records_of(task, done), tmp_path / "tune.log"))
    assert sorted([*tune(tuner, 100), *done]) == list(range(49))


def test_failures_on_record_are_failures_and_the_best_of_repeats_counts(tmp_path):
    task = create("chameleon/matmul", 64, 64)
    bad = records_of(task, [0], lambda c: MeasureErrorNo.COMPILE_HOST)
    bad += records_of(task, [1], lambda c: MeasureErrorNo.RUN_TIMEOUT)
    twice = records_of(task, [20], lambda c: 2e-3) + records_of(task, [20], lambda c: 1e-3)
    past = past_of(task, ConfigKnobs(task.config_space), through_a_log([*bad, *twice], tmp_path / "tune.log"))
    assert {t.status for t in past.own} == {Status.OK, Status.BUILD_ERROR, Status.TIMEOUT}
    assert [t.seconds for t in past.own if t.seconds] == [1e-3]
    assert not past.kin


def test_a_log_of_ours_is_history_for_ours(tmp_path):
    task, log = create("chameleon/matmul", 64, 64), tmp_path / "tune.log"
    first = ChameleonTuner(task)
    first.tune(20, formula_option(bowl)[0], callbacks=[autotvm.callback.log_to_file(str(log))])
    second = ChameleonTuner(task, seed=1)
    second.load_history(autotvm.record.load_from_file(str(log)))
    assert not {t.config for t in first.trials} & {t.config for t in second.trials}
    assert len(tune(second, 100)) == 49 - 20


def test_the_best_of_a_kin_is_tried_first(tmp_path):
    other, task = create("chameleon/matmul", 96, 32), create("chameleon/matmul", 64, 64)
    pairs = through_a_log(records_of(other, range(0, len(other.config_space), 3)), tmp_path / "kin.log")
    best = min(pairs, key=lambda pair: pair[1].costs[0])[0].config
    tuner = ChameleonTuner(task)
    tuner.load_history(pairs)
    (first,) = tuner.next_batch(1)
    assert [first[k].size[-1] for k in ("y", "x")] == [best[k].size[-1] for k in ("y", "x")]


def test_a_kin_of_which_little_is_on_record_saves_measurements():
    """Where the best tiles are the same, 16 records of another size are worth the first plans."""
    other, task = create("chameleon/matmul", 256, 64), create("chameleon/matmul", 512, 512)
    best = min(bowl(task.config_space.get(i)) for i in range(len(task.config_space)))
    with_history, without = [], []
    for seed in range(5):
        source = ChameleonTuner(other, seed=seed)
        asked = tune(source, 16)
        one, two = ChameleonTuner(task, seed=seed), ChameleonTuner(task, seed=seed)
        one.load_history(records_of(other, asked))
        for tuner, found in ((one, with_history), (two, without)):
            tune(tuner, 8)
            found.append(best / min(t.seconds for t in tuner.trials if t.seconds))
    assert np.mean(with_history) > np.mean(without)


def test_the_same_workload_on_another_target_is_kin(tmp_path):
    task = create("chameleon/matmul", 64, 64)
    elsewhere = create("chameleon/matmul", 64, 64, target="llvm -mcpu=core-avx2")
    past = past_of(
        task, ConfigKnobs(task.config_space), through_a_log(records_of(elsewhere, [0, 8]), tmp_path / "tune.log")
    )
    assert not past.own
    assert [k.distance for k in past.kin] == [0.0]


def test_other_templates_and_too_few_records_change_nothing(tmp_path):
    task = create("chameleon/matmul", 64, 64)
    foreign = records_of(conv_task(), [0, 1]) + records_of(kind_task("option"), [0])
    tuner, few, plain = (ChameleonTuner(task, seed=3) for _ in range(3))
    tuner.load_history(through_a_log(foreign, tmp_path / "foreign.log"))
    few.load_history(records_of(task, [5]), min_seed_records=2)
    asked = tune(plain, 20)
    assert tune(tuner, 20) == asked
    assert tune(few, 20) == asked


def test_kin_are_nearest_first_fastest_first_and_relative():
    task = create("chameleon/matmul", 64, 64)
    near, far = create("chameleon/matmul", 64, 32), create("chameleon/matmul", 512, 512)
    pairs = records_of(far, range(0, 100, 7)) + records_of(near, range(0, 49, 5))
    kin = past_of(task, ConfigKnobs(task.config_space), pairs).kin
    assert [round(k.distance) for k in kin] == [1, 6]
    for group, other in zip(kin, (near, far), strict=True):
        assert list(group.throughput) == sorted(group.throughput, reverse=True)
        assert group.throughput[0] == 1
        best = min((pair for pair in pairs if pair[0].task is other), key=lambda pair: pair[1].costs[0])
        assert group.configs[0] == {name: plain(best[0].config[name]) for name in best[0].config}


def test_distance_of_workloads_counts_doublings():
    one = ("conv", ("TENSOR", (1, 63, 55), "float32"), None, True)
    assert distance(one, one) == 0
    assert distance(one, ("conv", ("TENSOR", (1, 127, 55), "float32"), None, True)) == pytest.approx(1.0)
    assert distance(one, ("conv", ("TENSOR", (1, 63, 55), "int8"), None, True)) == math.inf
    assert distance(one, one[:3]) == math.inf
    assert frozen([1, [2, {"a": [3]}]]) == (1, (2, (("a", (3,)),)))
