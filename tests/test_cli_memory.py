"""`chameleon memory` on graphs as JSON: the table, the files, the budget and bad input; no TVM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon.cli import main
from chameleon.errors import UsageError
from chameleon.serenity.accounting import peak_bytes, validate
from chameleon.serenity.graph import Graph, Node, read_graph, write_graph
from chameleon.serenity.order.schedule import ScheduleOptions
from chameleon.serenity.summary import parse_bytes, summarise
from tests.serenity.graphs import random_graph

KEYS = [
    "model",
    "nodes",
    "peak_bytes",
    "lower_bound_bytes",
    "proven",
    "arena_bytes",
    "measured_peak_bytes",
    "schedule_s",
]


def branches() -> Graph:
    """Two wide branches that become narrow: 896 bytes branch by branch, 1,408 side by side."""
    nodes = [Node("x", (), 64)]
    for side in "ab":
        nodes += [Node(f"{side}1", ("x",), 640), Node(f"{side}2", (f"{side}1",), 128)]
    order = ["x", "a1", "b1", "a2", "b2"]
    nodes = sorted(nodes, key=lambda n: order.index(n.name))
    return Graph((*nodes, Node("y", ("a2", "b2"), 64)), ("x",), ("y",), "branches")


@pytest.fixture
def graph_file(tmp_path: Path) -> str:
    write_graph(branches(), tmp_path / "graph.json")
    return str(tmp_path / "graph.json")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["memory", *arguments])
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    assert "Traceback" not in text
    return code, text


def test_sums_of_a_graph_are_added_up_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five tensors, each made of the one before, and their sum, the last one first."""
    nodes = [Node("x", (), 64), *(Node(f"p{i}", (f"p{i - 1}" if i else "x",), 64, op="pool") for i in range(5))]
    nodes.append(Node("y", tuple(f"p{i}" for i in reversed(range(5))), 64, op="add"))
    write_graph(Graph(tuple(nodes), ("x",), ("y",), "sums"), tmp_path / "graph.json")
    code, text = run(capsys, str(tmp_path / "graph.json"), "--json", str(tmp_path / "out.json"))
    assert code == 0
    assert "rewritten: accumulate:y" in text
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["peak_bytes"] == {"as_is": 6 * 64, "kahn": 6 * 64, "best": 6 * 64, "rewritten": 3 * 64}
    assert found["arena_bytes"] == 3 * 64


def test_the_summary_is_what_the_accounting_says() -> None:
    for seed in range(20):
        graph = random_graph(seed)
        summary = summarise(graph, ScheduleOptions(engine="python"))
        assert list(summary.rows) == ["as_is", "kahn", "best", "rewritten"]
        for name, row in summary.rows.items():
            of = summary.rewritten_graph if name == "rewritten" else graph
            assert of is not None
            validate(of, row.order)
            assert row.peak_bytes == peak_bytes(of, row.order)
        assert summary.rows["as_is"].peak_bytes >= summary.best.peak_bytes >= summary.last.peak_bytes
        assert summary.best.proven
        assert summary.arena.size_bytes >= summary.last.peak_bytes


def test_json_has_the_agreed_keys(graph_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    code, text = run(capsys, graph_file, "--json", str(out))
    assert code == 0
    assert "proven" in text
    found = json.loads(out.read_text())
    assert list(found) == KEYS
    assert found["peak_bytes"] == {"as_is": 1408, "kahn": 1408, "best": 896, "rewritten": 896}
    assert (found["model"], found["nodes"], found["lower_bound_bytes"], found["proven"]) == ("branches", 5, 896, True)
    assert found["arena_bytes"] == 896
    assert found["measured_peak_bytes"] is None
    run(capsys, graph_file, "--no-rewrite", "--json", str(out))
    assert json.loads(out.read_text())["peak_bytes"]["rewritten"] is None


def test_the_budget_is_answered(graph_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, graph_file, "--budget", "0.896KB")
    assert code == 0
    assert "fits into 0.896KB (896 bytes)" in text
    code, text = run(capsys, graph_file, "--budget", "895")
    assert code == 1
    assert "does not fit into 895" in text
    assert "needs less than 896 bytes" in text


def test_what_is_not_known_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tensors of one byte, each at a multiple of 64: their order needs 2 bytes and their arena 128."""
    graph = Graph((Node("x", (), 1), Node("y", ("x",), 1)), ("x",), ("y",))
    write_graph(graph, tmp_path / "g.json")
    code, text = run(capsys, str(tmp_path / "g.json"), "--budget", "100")
    assert code == 0
    assert "not known whether it fits" in text
    assert "does not fit" not in text
    code, text = run(capsys, str(tmp_path / "g.json"), "--budget", "100", "--alignment", "1")
    assert (code, "it fits into 100" in text) == (0, True)


def test_the_graph_is_written_back(graph_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, graph_file, "--graph", str(tmp_path / "again.json"))[0] == 0
    assert read_graph(tmp_path / "again.json") == branches()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("512KB", 512_000), ("256KiB", 262_144), ("2MB", 2_000_000), ("2 MiB", 2_097_152), ("65536", 65_536)),
        *(("1.5kb", 1500), ("100B", 100)),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "KB", "12 parsecs", "-5", "1e3", "1,5KB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size such as 512KB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ('{"nodes": [{"name": "a", "inputs": ["b"]}, {"name": "b", "inputs": ["a"]}]}', 1, "cycle: "),
        ('{"nodes": [{"name": "a", "output_bytes": -1}]}', 1, "node 'a': expected output_bytes"),
        ('{"nodes": [{"name": "a", "inputs": ["gone"]}]}', 1, "'a' reads 'gone'"),
        ('{"nodes": [', 1, "expected JSON"),
        ("[]", 1, "expected a graph"),
    ],
)
def test_a_bad_graph_is_named(
    content: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text(content)
    found, text = run(capsys, str(tmp_path / "bad.json"))
    assert found == code
    assert "bad.json" in text
    assert words in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "much"], "512KB"),
        (["--time-limit", "0"], "time limit above 0"),
        (["--alignment", "0"], "alignment of 1 byte"),
        (["--target", "llvm"], "--target does not fit a graph"),
        (["--input-shape", "1,3"], "--input-shape does not fit a graph"),
        (["--dim", "batch=3"], "--dim does not fit a graph"),
        (["--json", "{folder}/graph.json/out.json"], "cannot write"),
    ],
)
def test_wrong_usage(
    arguments: list[str], words: str, graph_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, graph_file, *(a.replace("{folder}", str(tmp_path)) for a in arguments))
    assert code == 2
    assert words in text
    assert run(capsys, str(tmp_path / "none.json"))[0] == 2


def test_a_graph_needs_no_tvm(graph_file: str) -> None:
    """The whole command, in an interpreter that cannot import TVM or PyTorch."""
    code = f"""
import sys
for name in ("tvm", "tvm_ffi", "torch"):
    sys.modules[name] = None
from chameleon.cli import main
sys.exit(main(["memory", {graph_file!r}]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "best order" in ran.stdout
