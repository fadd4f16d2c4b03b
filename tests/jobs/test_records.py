"""Records: nothing measured is lost, and what does not belong is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon.jobs.ledger import Confirmation, Exchange
from chameleon.jobs.records import Records, RecordsError
from chameleon.search import KnobSpace, Status, Trial
from chameleon.search.space import option, split
from chameleon.wording import same_target

SPACE = KnobSpace([split("tile", 12, 2), option("unroll", [0, 16])])
TRIALS = [
    Trial((0, 1), Status.OK, 1e-3),
    Trial((2, 0), Status.TIMEOUT, message="10 s"),
    Trial((3, 1), Status.OK, 2e-3),
]


def written(path: Path) -> bytes:
    with Records(path, "llvm") as records:
        assert records.add_task("k1", "conv", SPACE).events == []
        for i, trial in enumerate(TRIALS):
            records.append("k1", trial, model="net", elapsed_s=i + 0.5)
    return path.read_bytes()


def reread(path: Path) -> list[Trial]:
    with Records(path, "llvm") as records:
        return records.add_task("k1", "conv", SPACE).trials


def test_what_was_appended_is_read_back(tmp_path):
    written(tmp_path / "t.jsonl")
    assert reread(tmp_path / "t.jsonl") == TRIALS
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        assert records.elapsed_s == {"net": 2.5}
        assert list(records.tasks["k1"].owners.values()) == ["net"] * 3


def test_a_wrong_schedule_is_marked_and_stays_so(tmp_path):
    written(tmp_path / "t.jsonl")
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        records.mark_wrong("k1", (0, 1))
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        assert records.wrong == {"k1": {(0, 1)}}
        assert records.add_task("k1", "conv", SPACE).trials == TRIALS


def test_every_trial_is_on_disk_before_the_next(tmp_path):
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        records.add_task("k1", "conv", SPACE)
        for n, trial in enumerate(TRIALS, start=1):
            records.append("k1", trial, model="net", elapsed_s=1.0)
            lines = (tmp_path / "t.jsonl").read_text().splitlines()
            assert len(lines) == 2 + n
            assert Trial.from_json(json.loads(lines[-1])) == trial


def test_a_file_cut_anywhere_gives_all_whole_trials_and_can_be_continued(tmp_path):
    whole = written(tmp_path / "t.jsonl")
    head = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for cut in range(head, len(whole), 7):
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_bytes(whole[:cut])
        kept = reread(path)
        assert kept == TRIALS[: whole[head:cut].count(b"\n")]
        with Records(path, "llvm") as records:
            records.add_task("k1", "conv", SPACE)
            records.append("k1", TRIALS[-1], model="net", elapsed_s=9.0)
        assert reread(path) == [*kept, TRIALS[-1]]


def test_a_cut_header_starts_anew(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"chameleon":1,"ki')
    assert reread(tmp_path / "t.jsonl") == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1}\n', "expected the header"),
        (b"[1]\n", "expected a JSON object"),
        (b'{"chameleon":1,"kind":"landscape"}\n', "expected the header"),
        (b'{"chameleon":1,"kind":"tuning","target":"cuda"}\n', "records of target cuda, expected llvm"),
        (
            b'{"chameleon":1,"kind":"tuning","target":"llvm"}\n{"task":"x","config":[0]}\n',
            ":2: not a line of tuning records",
        ),
    ],
)
def test_other_files_are_refused_and_left_as_they_are(tmp_path, content, says):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordsError, match=says):
        Records(path, "llvm")
    assert path.read_bytes() == content


OTHER = KnobSpace([split("tile", 24, 2), option("unroll", [0, 16])])


def test_another_space_of_knobs_begins_anew_and_loses_nothing(tmp_path):
    written(tmp_path / "t.jsonl")
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        assert records.add_task("k1", "conv", OTHER).trials == []
        records.append("k1", Trial((7, 0), Status.OK, 1e-4), model="net", elapsed_s=4.0)
    assert reread(tmp_path / "t.jsonl") == TRIALS
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        assert records.add_task("k1", "conv", OTHER).trials == [Trial((7, 0), Status.OK, 1e-4)]
    with Records(tmp_path / "t.jsonl", read_only=True) as records:
        third = KnobSpace([option("unroll", [0, 16])])
        with pytest.raises(RecordsError, match="with other knobs"):
            records.add_task("k1", "conv", third)


def test_two_writers_see_what_the_other_has_written(tmp_path):
    path = tmp_path / "t.jsonl"
    with Records(path, "llvm") as one, Records(path, "llvm") as two:
        for records in (one, two):
            records.add_task("k1", "conv", SPACE)
        one.append("k1", TRIALS[0], model="a", elapsed_s=1.0)
        two.append("k1", TRIALS[2], model="b", elapsed_s=1.0)
        two.append("k1", dataclasses.replace(TRIALS[0], seconds=9.0), model="b", elapsed_s=2.0)
        one.append("k1", TRIALS[1], model="a", elapsed_s=2.0)
        assert one.refresh() == {"k1": [(TRIALS[2], "b")]}
        assert two.refresh() == {"k1": [(TRIALS[1], "a")]}  # it has measured the other one itself
        assert one.refresh() == two.refresh() == {}
        assert one.elapsed_s == two.elapsed_s == {"a": 2.0, "b": 2.0}
    assert reread(path) == [TRIALS[0], TRIALS[2], TRIALS[1]]
    assert path.read_text().count('"kind":"tuning"') == 1


def test_readers_need_no_lock_and_leave_a_torn_line_to_its_writer(tmp_path):
    path = tmp_path / "t.jsonl"
    written(path)
    with Records(path, "llvm") as writer:
        torn = path.read_bytes() + b'{"task":"k1","conf'
        path.write_bytes(torn)
        with Records(path, "llvm", read_only=True) as records:
            assert records.add_task("k1", "conv", SPACE).trials == TRIALS
            assert records.add_task("k2", "new", SPACE).trials == []
        assert path.read_bytes() == torn
        assert writer.tasks["k1"].trials == TRIALS
    with pytest.raises(RecordsError, match="target llvm, expected cuda"):
        Records(path, "cuda", read_only=True)


def test_a_second_task_line_keeps_the_trials_before_it(tmp_path):
    """As where the records of two runs are put together into one file."""
    first, both = written(tmp_path / "a.jsonl"), tmp_path / "both.jsonl"
    with Records(tmp_path / "b.jsonl", "llvm") as records:
        records.add_task("k1", "conv", SPACE)
        for trial in (Trial(TRIALS[0].config, Status.OK, 9.0), Trial((1, 1), Status.OK, 5e-3)):
            records.append("k1", trial, model="net", elapsed_s=1.0)
        again = Trial(TRIALS[1].config, Status.OK, 4e-3)  # it failed in the first run
        records.append("k1", again, model="net", elapsed_s=2.0)
    both.write_bytes(first + (tmp_path / "b.jsonl").read_bytes())
    assert reread(both) == [TRIALS[0], TRIALS[2], Trial((1, 1), Status.OK, 5e-3), again]


def test_a_line_that_may_be_about_two_spaces_is_refused(tmp_path):
    """Earlier versions did not write the space into a trial's line; there was one only."""
    path = tmp_path / "t.jsonl"
    lines = written(path).splitlines()
    old = [{name: value for name, value in json.loads(line).items() if name != "space"} for line in lines[2:]]
    task = json.loads(lines[1])

    def write(*order):
        path.write_text("".join(json.dumps(line) + "\n" for line in (json.loads(lines[0]), *order)))

    write(task, *old)
    assert reread(path) == TRIALS
    write(task, *old, {**task, "space": "other"})
    assert reread(path) == TRIALS
    write(task, {**task, "space": "other"}, *old)
    with pytest.raises(RecordsError, match=r":4: the task 'conv' came before with several spaces of knobs"):
        Records(path, "llvm")


def test_confirmations_and_the_end_of_tuning_are_read_back(tmp_path):
    again = Confirmation({TRIALS[0].config: (1.1e-3, 1.2e-3), TRIALS[2].config: ()}, {TRIALS[0].config: (2e-3,)})
    exchanged = Exchange(TRIALS[2].config, TRIALS[0].config, ((0.1, 0.2), (0.3, 0.4)), "net")
    written(tmp_path / "t.jsonl")
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        records.add_task("k1", "conv", SPACE)
        records.confirm("k1", again, model="net", elapsed_s=4.0)
        records.exchange("k1", exchanged, elapsed_s=4.2)
        records.finish("net", elapsed_s=4.5)
    before = (tmp_path / "t.jsonl").read_bytes()
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        assert records.tasks["k1"].events == [*TRIALS, again, exchanged]
        assert records.elapsed_s == {"net": 4.5}
        assert records.finished == {"net"}
        records.finish("net", elapsed_s=4.5)
        assert (tmp_path / "t.jsonl").read_bytes() == before
        records.append("k1", Trial((1, 0), Status.OK, 1e-3), model="net", elapsed_s=5.0)
        assert records.finished == set()
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        assert records.finished == set()  # it goes on being tuned


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    config=st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
    seconds=st.floats(min_value=1e-9, max_value=1e9),
    message=texts,
    timings=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False)),
)
def test_a_trial_survives_its_line(config, seconds, message, timings):
    for trial in (
        Trial(config, Status.OK, seconds, message, timings),
        Trial(config, Status.RUN_ERROR, message=message, timings=timings),
    ):
        line = json.dumps(trial.to_json())
        assert "\n" not in line
        assert Trial.from_json(json.loads(line)) == trial


@pytest.mark.parametrize(
    "line", [{}, {"config": [1]}, {"config": 3, "status": "ok", "seconds": 1.0}, {"config": [1], "status": "odd"}]
)
def test_what_is_no_trial_is_refused(line):
    with pytest.raises(ValueError, match=r"trial|odd"):
        Trial.from_json(line)


def test_numpy_digits_become_plain_numbers():
    trial = Trial(tuple(np.array([1, 2])), Status.INVALID)
    assert json.dumps(trial.to_json()["config"]) == "[1, 2]"


def test_a_target_is_the_same_in_any_order():
    assert same_target('{"kind":"llvm","num-cores":2}', '{"num-cores": 2, "kind": "llvm"}')
    assert not same_target('{"kind":"llvm","num-cores":2}', '{"kind":"llvm","num-cores":1}')
    assert same_target("llvm", "llvm")
    assert not same_target("llvm", '{"kind":"llvm"}')


def test_a_trial_keeps_the_task_whose_schedule_it_took(tmp_path):
    path = tmp_path / "t.jsonl"
    with Records(path, "llvm") as records:
        records.add_task("k1", "conv", SPACE, "like")
        records.add_task("k2", "conv_relu", SPACE, "like")
        records.append("k2", TRIALS[0], model="net", elapsed_s=1.0, origin="k1")
        records.append("k2", TRIALS[1], model="net", elapsed_s=2.0, origin="k1")
        records.append("k2", TRIALS[2], model="net", elapsed_s=3.0)
    with Records(path, "llvm") as records:
        assert [records.tasks[key].anchor for key in ("k1", "k2")] == ["like", "like"]
        assert records.tasks["k2"].origins == {(0, 1): "k1", (2, 0): "k1"}
        records.forget_failures()
        assert records.tasks["k2"].origins == {(0, 1): "k1"}
        # A failure that is measured again is a trial of the task's own, unless it says otherwise.
        records.append("k2", Trial((2, 0), Status.OK, 3e-3), model="net", elapsed_s=4.0)
        assert records.tasks["k2"].origins == {(0, 1): "k1"}


def test_records_without_main_blocks_and_origins_are_read(tmp_path):
    written(tmp_path / "t.jsonl")
    assert "anchor" not in (tmp_path / "t.jsonl").read_text()
    with Records(tmp_path / "t.jsonl", "llvm") as records:
        assert records.tasks["k1"].anchor is None
        assert records.tasks["k1"].origins == {}
        assert records.add_task("k1", "conv", SPACE, "like").anchor == "like"
        assert records.tasks["k1"].trials == TRIALS
