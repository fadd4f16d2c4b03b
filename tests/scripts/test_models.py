"""The small models and what is known of them; how outcomes are judged and shown. Nothing is compiled here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from chameleon.errors import UsageError
from scripts.models.cases import FOLDER, STEPS, Case, read_cases
from scripts.models.graphs import GRAPHS, proto
from scripts.models.make import save_program
from scripts.models.modules import MODULES
from scripts.models.reference import disagreement, draw, reference, tolerance
from scripts.models.steps import Outcome, _refusal
from scripts.models.table import Results, differences, table


def test_every_file_has_a_case_and_every_case_a_file_that_the_script_makes() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.suffix != ".yaml"}
    made = {f"{name}.onnx" for name in GRAPHS} | {f"{name}.pt2" for name in MODULES}
    made |= {f"{name}.onnx" for name, module in MODULES.items() if module.onnx}
    assert files == set(read_cases()) == made
    assert sum((FOLDER / name).stat().st_size for name in files) < 2_500_000


@pytest.mark.slow
def test_a_graph_is_written_as_it_is_kept(tmp_path: Path) -> None:
    for name in ("two_tables", "qdq_per_channel", "names_of_tensorflow"):
        assert proto(name, GRAPHS[name]).SerializeToString() == (FOLDER / f"{name}.onnx").read_bytes()
    path = save_program(MODULES["nested_in"], tmp_path / "nested_in.pt2")
    ours, kept = (reference(p, Case("")).outputs for p in (path, FOLDER / "nested_in.pt2"))
    np.testing.assert_array_equal(ours[0][0], kept[0][0])
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_a_case_names_steps_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text("a.onnx:\n  like: x\n  expect: {import: right, others: {refused: because}}\nb.pt2: {like: y}\n")
    cases = read_cases(path)
    assert cases["a.onnx"].expect == {**dict.fromkeys(STEPS, "because"), "import": None}
    assert cases["b.pt2"].expect == dict.fromkeys(STEPS)
    path.write_text("a.onnx: {like: x, expect: {tuning: right}}\n")
    with pytest.raises(UsageError, match="tuning"):
        read_cases(path)


def test_outputs_agree_within_the_tolerance_of_their_type() -> None:
    want = [np.array([1.0, 100.0], np.float32), np.array([3], np.int64)]
    assert not disagreement([want[0] + np.float32(0.005), want[1]], want, tolerance(Case(""), want))
    assert "output 0: differs" in disagreement([want[0] + np.float32(0.02), want[1]], want, 1e-4)
    assert "output 1: differs" in disagreement([want[0], want[1] + 1], want, 1e-4)
    assert "output 0: differs" in disagreement([want[0] * np.float32(np.nan), want[1]], want, 1e-4)
    assert "expected int64" in disagreement([want[0], want[1].astype(np.int32)], want, 1e-4)
    assert disagreement(want[:1], want, 1e-4) == "1 outputs, expected 2"
    assert tolerance(Case(""), [want[0].astype(np.float16)]) == 1e-2
    assert tolerance(Case("", inside="int8"), want) == 1 / 127


def test_inputs_are_drawn_by_their_names() -> None:
    rng = np.random.default_rng(0)
    assert draw("attention_mask", (1, 6), np.dtype(np.int64), 9, rng).tolist() == [[1, 1, 1, 1, 0, 0]]
    assert draw("ids", (100,), np.dtype(np.int64), 3, rng).max() == 2
    assert draw("factor", (), np.dtype(np.float32), 2, rng).shape == ()


def test_what_a_command_said_tells_how_it_ended() -> None:
    assert _refusal("loading\nerror: x.onnx: no such operator\n", 1) == ("refused", "x.onnx: no such operator")
    assert _refusal("╭─ Error ─╮\n│ No such option: --dim │\n╰──╯\n", 2) == ("refused", "No such option: --dim")
    assert _refusal("Segmentation\n", 1)[0] == "traceback"


def test_the_table_says_what_is_otherwise_than_expected() -> None:
    refused = Outcome("refused", "a.onnx: TVM cannot import this network: " + "because " * 30, 0.1)
    rows = {"a.onnx": dict.fromkeys(STEPS, refused), "b.onnx": dict.fromkeys(STEPS, Outcome("right", "", 1.0))}
    cases = {"a.onnx": Case("", expect=dict.fromkeys(STEPS, "TVM cannot import")), "b.onnx": Case("")}
    assert differences(rows, cases) == []
    rows["b.onnx"]["bench"] = Outcome("wrong", "output 0: differs", 1.0)
    assert differences(rows, cases) == ["b.onnx bench: wrong: output 0: differs"]
    text = table(rows, cases)
    assert "| b.onnx | right | right | right | right | right | wrong |" in text
    assert "12 steps: right 5, refused 6, wrong 1, traceback 0; 1 otherwise than expected" in text
    assert max(map(len, text.splitlines())) < 120


def test_results_are_kept_from_the_first_model_on(tmp_path: Path) -> None:
    right, wrong = (dict.fromkeys(STEPS, Outcome(status, "", 1.0)) for status in ("right", "wrong"))
    path, order = tmp_path / "new" / "results.json", ["a.onnx", "b.onnx"]
    first = Results(path, order)
    first.add("mine.onnx", right)
    first.add("b.onnx", wrong)
    second = Results(path, order)
    assert second.rows == {"b.onnx": wrong, "mine.onnx": right}
    second.add("a.onnx", right)
    second.add("b.onnx", right)  # run again
    assert list(Results(path, order).rows.items()) == [("a.onnx", right), ("b.onnx", right), ("mine.onnx", right)]
