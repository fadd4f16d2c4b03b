"""AutoTVM's logs through `chameleon records`: the real AutoTVM reads what comes back, with the same best."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import autotvm
from tvm.autotvm.measure import MeasureErrorNo, MeasureInput

from chameleon.cli import main
from tests.autotvm.replaying import FormulaRunner, bowl, formula_option
from tests.autotvm.templates import KINDS, LLVM, conv_task, create
from tuners.autotvm import ChameleonTuner
from tuners.config_space import values_of

pytestmark = pytest.mark.autotvm


def round_trip(log, folder):
    records, again = folder / "records.jsonl", folder / "again.log"
    assert main(["records", "import", str(log), "-o", str(records)]) == 0
    assert main(["records", "check", str(records)]) == 0
    assert main(["records", "export", str(records), "--to", "autotvm", "-o", str(again)]) == 0
    return again


def read(log):
    """What AutoTVM reads: by task and index the values, the time and the error."""
    return {
        (inp.task.name, inp.task.args, inp.config.index): (
            values_of(inp.config),
            inp.config.code_hash,
            np.mean(result.costs) if result.error_no == 0 else None,
            result.error_no,
            result.timestamp,
        )
        for inp, result in autotvm.record.load_from_file(str(log))
    }


def test_a_tuned_log_comes_back_and_has_the_same_best(tmp_path):
    task, log = create("chameleon/matmul", 64, 64), tmp_path / "tune.log"
    answer = lambda config: MeasureErrorNo.COMPILE_HOST if config["x"].size[-1] > 16 else bowl(config)  # noqa: E731
    to_file = autotvm.callback.log_to_file(str(log))
    ChameleonTuner(task).tune(30, formula_option(answer)[0], callbacks=[to_file])
    again = round_trip(log, tmp_path)
    before, after = read(log), read(again)
    assert after.keys() == before.keys()
    for key, (*values, seconds, error, when) in before.items():
        assert after[key] == (*values, pytest.approx(seconds), error, when)
    found = []
    for path in (log, again):
        with autotvm.apply_history_best(str(path)) as history:
            best = history.query(task.target, task.workload)
            found.append((best.index, best.code_hash, values_of(best)))
    assert found[0] == found[1]


# AutoTVM cannot write `reorder` itself; `invalid` and `huge` have knobs that others have as well.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("reorder", "invalid", "huge")])
def test_every_kind_of_knob_comes_back(kind, tmp_path):
    task = create("chameleon/knobs", kind, 64)
    space = task.config_space
    indices = np.random.default_rng(0).choice(space.range_length, min(12, space.range_length), replace=False)
    indices = [int(i) for i in indices if space.is_index_valid(int(i))]
    pairs = [
        (MeasureInput(task.target, task, space.get(i)), FormulaRunner.result(1e-3 * (n + 1)))
        for n, i in enumerate(indices)
    ]
    log = tmp_path / "tune.log"
    log.write_text("".join(autotvm.record.encode(*pair) + "\n" for pair in pairs))
    before, after = read(log), read(round_trip(log, tmp_path))
    assert after.keys() <= before.keys()  # indices with equal values are one configuration
    assert [v[0] for v in after.values() if v[2]] == [
        v[0] for n, v in enumerate(before.values()) if v[0] not in [w[0] for w in list(before.values())[:n]]
    ]
    assert min(v[2] for v in after.values()) == pytest.approx(min(v[2] for v in before.values()))


def test_what_came_back_is_history_for_our_tuner(tmp_path):
    task, log = conv_task(), tmp_path / "tune.log"
    pairs = [
        (MeasureInput(task.target, task, task.config_space.get(i)), FormulaRunner.result(1e-3))
        for i in range(0, 40, 4)
    ]
    log.write_text("".join(autotvm.record.encode(*pair) + "\n" for pair in pairs))
    tuner = ChameleonTuner(task)
    tuner.load_history(str(round_trip(log, tmp_path)))
    first = {int(c.index) for c in tuner.next_batch(16)}
    assert not first & set(range(0, 40, 4))
    assert str(task.target).startswith(LLVM)
