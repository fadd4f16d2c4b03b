"""What earlier runs teach: found beside a run or where it was said, and only where it fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon.errors import UsageError
from chameleon.jobs.ledger import space_from_json, space_to_json
from chameleon.jobs.records import Records, RecordsError
from chameleon.jobs.teachers import earlier_runs, taught_by
from chameleon.search import KnobSpace, Status, Trial, location, option, split
from chameleon.search.kin import distance
from tests.search.synthetic import sketched

SPACE = KnobSpace([split("y", 64, 3), option("unroll", [0, 16, 64]), location("where", [-1, 3])])
TRIALS = [Trial((3, 1, 0), Status.OK, 2e-3), Trial((4, 2, 1), Status.RUN_ERROR), Trial((5, 0, 1), Status.OK, 1e-3)]
LLVM = '{"kind":"llvm"}'


def run(folder: Path, target: str = LLVM, trials: list[Trial] = TRIALS, space: KnobSpace = SPACE) -> Path:
    folder.mkdir(parents=True)
    with Records(folder / "trials.jsonl", target) as records:
        records.add_task("key", "dense", space)
        for trial in trials:
            records.append("key", trial, model="m", elapsed_s=1.0)
    return folder


@given(st.integers(0, 10**6))
def test_a_space_on_record_reads_back_its_configurations(seed: int) -> None:
    for space in (SPACE, sketched()):
        recorded = space_from_json(space_to_json(space))
        row = space.sample(1, np.random.default_rng(seed))[0]
        assert recorded.values(row) == space.values(row)
        assert distance(recorded, space) == 0


def test_the_runs_beside_teach_their_successes_and_the_own_run_does_not(tmp_path: Path) -> None:
    run(tmp_path / "other")
    own = run(tmp_path / "own")
    run(tmp_path / "elsewhere", target='{"kind":"cuda"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "trials.jsonl").write_text("no records\n")
    ((space, trials),) = earlier_runs(own, LLVM, [])
    assert space.names == SPACE.names
    assert [t.config for t in trials] == [(3, 1, 0), (5, 0, 1)]


def test_a_given_run_teaches_once_and_one_that_cannot_is_refused(tmp_path: Path) -> None:
    far, own = run(tmp_path / "far" / "other"), tmp_path / "runs" / "own"
    assert len(earlier_runs(own, LLVM, [far])) == 1
    assert len(earlier_runs(far.with_name("own"), LLVM, [far])) == 1  # it is beside that one as well
    assert len(earlier_runs(own, LLVM, [far / "trials.jsonl"])) == 1
    with pytest.raises(UsageError, match="--learn-from: expected a folder of a run"):
        earlier_runs(own, LLVM, [tmp_path])
    with pytest.raises(RecordsError, match="of target"):
        earlier_runs(own, '{"kind":"cuda"}', [far])


def test_wrong_schedules_and_tasks_without_success_teach_nothing(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    with Records(folder / "trials.jsonl", LLVM) as records:
        records.add_task("barren", "dense2", SPACE)
        records.append("barren", TRIALS[1], model="m", elapsed_s=1.0)
        records.mark_wrong("key", (5, 0, 1))
        ((_, trials),) = taught_by(records)
        assert [t.config for t in trials] == [(3, 1, 0)]
        assert taught_by(records, without=["key"]) == []
