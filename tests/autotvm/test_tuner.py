"""The tuners in AutoTVM's own loop; times come from formulas, so that the search is what is tested."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from tvm import autotvm
from tvm.autotvm.measure import MeasureErrorNo

from chameleon.errors import UsageError
from chameleon.search import Status, UnknownSearcherError
from tests.autotvm.replaying import bowl, formula_option
from tests.autotvm.templates import KINDS, TOPI, create, kind_task, topi_task
from tuners.autotvm import AnnealingTuner, ChameleonTuner, ReleaseTuner, SearcherTuner

pytestmark = pytest.mark.autotvm

SMALL = {"walkers": 12, "steps": 5, "rollouts": 1}
MODEL = {"trees": 8, "members": 2}
TUNERS = {
    "chameleon": lambda task, seed=0: ChameleonTuner(task, seed=seed, explorer=SMALL, model=MODEL),
    "release": lambda task, seed=0: ReleaseTuner(task, seed=seed, explorer=SMALL, model=MODEL),
    "annealing": lambda task, seed=0: AnnealingTuner(task, seed=seed, explorer={"steps": 10}, model=MODEL),
    "annealing+adaptive": lambda task, seed=0: AnnealingTuner(
        task, adaptive=True, seed=seed, explorer={"steps": 10}, model=MODEL
    ),
}


@pytest.fixture(params=TUNERS)
def make(request):
    return TUNERS[request.param]


def tune(tuner, n_trial, answer=bowl, n_parallel=1, **options):
    option, runner = formula_option(answer, n_parallel)
    tuner.tune(n_trial, option, **options)
    return runner.asked


@pytest.mark.parametrize("n_parallel", [1, 3, 64])
def test_it_measures_as_often_as_it_may_and_nothing_twice(make, n_parallel):
    task = create("chameleon/matmul", 64, 64)
    tuner = make(task)
    asked = tune(tuner, 40, n_parallel=n_parallel)
    assert len(asked) == len(set(asked)) == 40 == len(tuner.trials)
    best = min(asked, key=lambda i: bowl(task.config_space.get(i)))
    assert tuner.best_config.index == best
    assert tuner.best_flops == pytest.approx(task.flop / bowl(tuner.best_config))


def test_it_ends_when_everything_was_measured(make):
    task = create("chameleon/matmul", 16, 16)
    asked = tune(make(task), 1000, n_parallel=4)
    assert sorted(asked) == list(range(25))


@pytest.mark.parametrize("kind", [*KINDS, *TOPI])
def test_every_kind_of_space_is_taken(kind):
    task = topi_task(kind) if kind in TOPI else kind_task(kind)
    tuner = TUNERS["chameleon"](task)
    asked = tune(tuner, 24, n_parallel=5)
    assert len(set(asked)) == len(asked) <= 24
    if kind == "invalid":
        assert len(asked) == 15  # of 25, the tiles of y up to 4
        assert tuner.failures == {"invalid: tile of y too large": 10}
    elif kind in ("nothing", "one point"):
        assert asked == [0]
    elif kind == "huge":
        assert task.config_space._shared_filter_cache is None
    else:
        assert all(task.config_space.is_index_valid(i) for i in asked)
        assert len(asked) == min(24, len(task.config_space))
        assert not tuner.failures or kind == "conv2d_nchw_spatial_pack.mali"


def test_a_template_that_refuses_everything_is_given_up(caplog):
    task = kind_task("invalid", 37)  # a prime: the tile of y is 1 or 37
    task.config_space.multi_filter(lambda e: e["y"].size[1] > 4)
    try:
        tuner = ChameleonTuner(task, max_refusals=2)
        assert tune(tuner, 10) == []
    finally:
        kind_task.cache_clear()
    assert not tuner.has_next()
    assert "tile of y too large" in caplog.text


def test_the_same_seed_gives_the_same_search_and_another_seed_another(make):
    task = create("chameleon/matmul", 64, 64)
    first = tune(make(task, 3), 30)
    assert tune(make(task, 3), 30) == first
    assert tune(make(task, 4), 30) != first


def test_reset_forgets(make):
    task = create("chameleon/matmul", 64, 64)
    tuner = make(task)
    first = tune(tuner, 30)
    tuner.reset()
    assert tuner.best_config is None
    assert not tuner.trials
    assert tune(tuner, 30) == first


def test_a_second_call_goes_on(make):
    task = create("chameleon/matmul", 64, 64)
    tuner = make(task)
    asked = tune(tuner, 20) + tune(tuner, 20)
    assert len(set(asked)) == 40


def test_what_was_saved_goes_on_identically(make, tmp_path):
    task = create("chameleon/matmul", 64, 64)
    one, other = make(task), make(task, 9)
    tune(one, 22, n_parallel=3)
    waiting = one.next_batch(3)  # handed out, never reported
    one.save(tmp_path / "state.json")
    other.load(tmp_path / "state.json")
    assert other.best_config.index == one.best_config.index
    assert other.best_flops == one.best_flops
    assert other.trials == one.trials
    assert other.best_measure_pair[1].costs == pytest.approx((bowl(one.best_config),))
    rest = tune(other, 30, n_parallel=3)
    assert rest[:3] == [c.index for c in waiting]
    inputs = [autotvm.measure.MeasureInput(task.target, task, c) for c in waiting]
    one.update(inputs, formula_option(bowl)[1].run(inputs, None))
    assert tune(one, 27, n_parallel=3) == rest[3:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(chameleon=99), "expected chameleon 1"),
        (lambda d: d.update(searcher="release"), "expected searcher chameleon"),
        (lambda d: d.update(task=["another", "llvm"]), "expected task"),
        (lambda d: d.pop("state"), "not the saved state"),
        (lambda d: d["state"]["searcher"].update(space="0"), "knobs have changed"),
    ],
)
def test_a_state_of_something_else_is_refused(damage, message, tmp_path):
    tuner = TUNERS["chameleon"](create("chameleon/matmul", 64, 64))
    path = tmp_path / "state.json"
    tune(tuner, 4)
    tuner.save(path)
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=message):
        tuner.load(path)
    assert len(tuner.trials) == 4


def test_a_state_that_is_no_file_or_no_json_is_refused(tmp_path):
    tuner = TUNERS["chameleon"](create("chameleon/matmul", 64, 64))
    with pytest.raises(UsageError, match="cannot be read"):
        tuner.load(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"chameleon": 1, "ki')
    with pytest.raises(UsageError, match="not the saved state"):
        tuner.load(tmp_path / "cut.json")


def test_early_stopping_is_autotvms(make):
    task = create("chameleon/matmul", 64, 64)
    tuner = make(task)
    flat = tune(tuner, 40, lambda config: 1e-3, early_stopping=7)
    stock = autotvm.tuner.RandomTuner(task)
    assert len(flat) == len(tune(stock, 40, lambda config: 1e-3, early_stopping=7)) == 7


def test_callbacks_see_every_trial(make, tmp_path, capsys):
    task = create("chameleon/matmul", 32, 32)
    log, database, monitor = tmp_path / "tune.log", autotvm.database.DummyDatabase(), autotvm.callback.Monitor()
    callbacks = [
        autotvm.callback.progress_bar(12, prefix="task", si_prefix="M"),
        autotvm.callback.log_to_file(str(log)),
        autotvm.callback.log_to_database(database),
        monitor,
    ]
    tuner = make(task)
    tune(tuner, 12, n_parallel=2, callbacks=callbacks, si_prefix="M")
    assert "Progress: (12/12)" in capsys.readouterr().out
    assert len(monitor.trial_scores()) == 12
    records = list(autotvm.record.load_from_file(str(log)))
    assert len(records) == 12
    assert database.load(records[0][0]) is not None
    with autotvm.apply_history_best(str(log)) as best, task.target:
        assert best.query(task.target, task.workload).index == tuner.best_config.index


def test_failures_are_counted_shown_and_never_learnt_as_times(make, caplog):
    task = create("chameleon/matmul", 64, 64)
    kinds = [e for e in MeasureErrorNo if e.value]

    def answer(config):
        return bowl(config) if config.index % 3 else kinds[config.index // 3 % len(kinds)]

    tuner = make(task)
    with caplog.at_level(logging.WARNING):
        asked = tune(tuner, 30, answer, n_parallel=2)
    failed = [i for i in asked if i % 3 == 0]
    assert sum(tuner.failures.values()) == len(failed)
    assert set(tuner.failures) <= {"device lost", *(k.name.lower() for k in kinds)}
    assert "made up" in caplog.text
    assert "30 trials, best" in caplog.text
    assert all(t.seconds is None for t in tuner.trials if t.status is not Status.OK)
    assert max(t.seconds for t in tuner.trials if t.seconds) < 1
    history = tuner._searcher._history
    assert np.nanmax(history.costs) < 1


def test_everything_failing_ends_like_autotvms_own(make, caplog):
    task = create("chameleon/matmul", 16, 16)
    tuner = make(task)
    asked = tune(tuner, 100, lambda config: MeasureErrorNo.RUNTIME_DEVICE, n_parallel=2)
    assert len(asked) == len(set(asked)) == 25
    assert tuner.best_config is None
    assert "none of them ran" in caplog.text


def test_wrong_arguments_are_answered():
    task = create("chameleon/matmul", 64, 64)
    with pytest.raises(UnknownSearcherError, match="did you mean chameleon"):
        SearcherTuner(task, "chamelon")
    with pytest.raises(UnknownSearcherError, match="unknown option of chameleon: 'plan'"):
        ChameleonTuner(task, plan=64)
    with pytest.raises(ValueError, match="at least 1"):
        ChameleonTuner(task, max_refusals=0)


def test_the_options_of_autotvm_are_taken(caplog):
    """As every tutorial passes them; only the class has another name."""
    task = create("chameleon/matmul", 64, 64)
    with caplog.at_level(logging.WARNING):
        tuner = ChameleonTuner(
            task,
            plan_size=32,
            feature_type="knob",
            loss_type="rank",
            num_threads=2,
            optimizer="sa",
            diversity_filter_ratio=2,
            log_interval=10,
            explorer=SMALL,
            model=MODEL,
        )
    (line,) = [r.getMessage() for r in caplog.records if "no use for" in r.getMessage()]
    assert "loss_type='rank'" in line
    assert "plan_size=32" in line
    assert len(tune(tuner, 20)) == 20
    with pytest.raises(UnknownSearcherError, match="unknown option of chameleon: 'los_type'"):
        ChameleonTuner(task, los_type="rank")


def test_options_of_autotvm_that_mean_something_here_are_kept(caplog):
    task = create("chameleon/matmul", 64, 64)
    with caplog.at_level(logging.WARNING):
        annealed = AnnealingTuner(task, plan_size=24, picker={"epsilon": 0.5}, explorer={"steps": 10}, model=MODEL)
        bred = SearcherTuner(task, "genetic", pop_size=20, elite_num=2, mutation_prob=0.2)
    assert not caplog.records
    for tuner, size in ((annealed, 24), (bred, 20)):
        tuner.next_batch(1)
        assert len(tuner._searcher.state()["queue"]) == size - 1


def test_a_history_is_read_from_its_log(tmp_path):
    task = create("chameleon/matmul", 64, 64)
    first, log = ChameleonTuner(task, explorer=SMALL, model=MODEL), tmp_path / "history.log"
    tune(first, 12, callbacks=[autotvm.callback.log_to_file(str(log))])
    log.write_text("# a comment\n" + log.read_text())
    for name in (str(log), log):
        again = ChameleonTuner(task, explorer=SMALL, model=MODEL)
        again.load_history(name)
        assert {tuple(t.config) for t in first.trials} == set(again._told)
    with pytest.raises(UsageError, match=r"none\.log: no such file; expected a log of AutoTVM"):
        first.load_history(str(tmp_path / "none.log"))
    (tmp_path / "other.log").write_text('{"a": 1}\n')
    with pytest.raises(UsageError, match="expected a log of AutoTVM, one record a line"):
        first.load_history(str(tmp_path / "other.log"))
    for wrong in (3, ["history.log"], [("a", "b")]):
        with pytest.raises(UsageError, match="pairs of MeasureInput and MeasureResult"):
            first.load_history(wrong)
