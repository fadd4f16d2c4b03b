"""Failures of the device and failures of configurations are told apart."""

from __future__ import annotations

import pytest
from tvm.autotvm.measure import MeasureErrorNo, MeasureResult

from chameleon.search import Status
from tests.autotvm.replaying import FormulaRunner, bowl, formula_option
from tests.autotvm.templates import create
from tuners.autotvm import ChameleonTuner
from tuners.autotvm_results import Outages, message_of, outcome_of

pytestmark = pytest.mark.autotvm

OK, SILENT, UNBUILT = 1e-3, MeasureErrorNo.RUN_TIMEOUT, MeasureErrorNo.COMPILE_HOST


def settled(answers):
    """The positions that may be learnt from, and those put down to the device, as they come."""
    outages, known, lost = Outages(), [], []
    for i, answer in enumerate(answers):
        new, gone = outages.settle(outcome_of([i], FormulaRunner.result(answer)))
        known += [o.trial.config[0] for o in new]
        lost += [o.trial.config[0] for o in gone]
    return known, lost, [o.trial.config[0] for o in outages.held]


def test_a_single_failure_belongs_to_its_configuration():
    assert settled([OK, OK, OK, SILENT, OK]) == ([0, 1, 2, 3, 4], [], [])


def test_a_row_of_failures_belongs_to_the_device_but_for_the_first():
    assert settled([OK] * 8 + [SILENT] * 4 + [OK]) == ([*range(9), 12], [9, 10, 11], [])


def test_a_device_that_never_answered_is_not_blamed():
    assert settled([SILENT] * 20 + [OK]) == (list(range(21)), [], [])


def test_where_many_configurations_fail_a_row_is_nothing_unusual():
    known, lost, held = settled([OK, SILENT, OK, SILENT, SILENT, OK, SILENT, SILENT, SILENT, OK])
    assert (sorted(known), lost, held) == (list(range(10)), [], [])


def test_what_did_not_build_says_nothing_of_the_device():
    assert settled([OK] * 8 + [SILENT, UNBUILT, SILENT, UNBUILT, SILENT]) == ([*range(8), 9, 11], [], [8, 10, 12])


def test_lost_configurations_are_measured_again_and_once():
    task, away = create("chameleon/matmul", 64, 64), set(range(10, 16))
    calls = []

    def answer(config):
        calls.append(config.index)
        return SILENT if len(calls) - 1 in away else bowl(config)

    tuner = ChameleonTuner(task, seed=1)
    option, _ = formula_option(answer)
    tuner.tune(40, option)
    first, *lost = calls[10:16]
    assert calls.count(first) == 1
    assert all(calls.count(i) == 2 for i in lost)
    assert len(set(calls)) == len(calls) - len(lost)
    assert tuner.failures == {"device lost": 5, "run_timeout": 1}
    assert sum(t.status is Status.TIMEOUT for t in tuner.trials) == 6
    learnt = tuner._searcher._history.trials
    assert sum(t.status is not Status.OK for t in learnt) == 1


def test_messages_say_what_went_wrong():
    error = RuntimeError("no such device")
    assert message_of((error,)) == "RuntimeError: no such device"  # until TVM 0.8
    assert message_of(("traceback", error)) == "RuntimeError: no such device"
    assert message_of(("traceback", ("traceback", error))) == "RuntimeError: no such device"
    assert message_of(("traceback", TimeoutError())) == "TimeoutError"
    trace = (
        'Traceback (most recent call last):\n  0: ffi_call\n  File "a.cc", line 1\n'
        "InternalError: Check failed: code=1\n "
    )
    assert message_of((trace, RuntimeError(trace[:40]))) == "InternalError: Check failed: code=1"
    assert "log" in message_of((1e9,))


@pytest.mark.parametrize("costs", [(), (0.0,), (1e9,), (float("nan"),)])
def test_times_that_are_none_are_failures(costs):
    outcome = outcome_of([0], MeasureResult(costs, MeasureErrorNo.NO_ERROR, 0.1, 0.0))
    assert outcome.trial.status is Status.RUN_ERROR


def test_what_the_environment_is_to_blame_for_is_no_trial_and_ends_the_tuning(caplog):
    task = create("chameleon/matmul", 64, 64)

    def unbuilt(config):
        return bowl(config) if len(runner.asked) <= 8 else MeasureErrorNo.COMPILE_HOST

    option, runner = formula_option(unbuilt, n_parallel=8)
    message = FileNotFoundError(2, "No such file or directory", "g++")

    def result(answer):
        if isinstance(answer, MeasureErrorNo):
            return MeasureResult(("a traceback", message), answer, 0.1, 0.0)
        return FormulaRunner.result(answer)

    runner.run = lambda inputs, _: [runner.asked.append(i.config.index) or result(unbuilt(i.config)) for i in inputs]
    tuner = ChameleonTuner(task, seed=1)
    with caplog.at_level("ERROR"):
        tuner.tune(64, option)
    assert len(tuner.trials) == 8
    assert len(runner.asked) == 16  # the batch in which it happened was the last
    assert not tuner.failures
    assert "install a C++ compiler" in caplog.text
    assert outcome_of([0], result(MeasureErrorNo.COMPILE_HOST)).fault is not None
    assert outcome_of([0], FormulaRunner.result(MeasureErrorNo.COMPILE_HOST)).fault is None
