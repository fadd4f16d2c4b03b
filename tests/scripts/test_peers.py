"""The peers' scripts, with the one peer that this environment has as well: ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from chameleon.models.irregular import cell, cell_graph
from tests.support.scripts import ROOT, run_process

pytestmark = pytest.mark.tvm
LEAST = """
import json
from scripts.peers import common

def lines(planned, *measured):
    return [{"planned_bytes": planned, "measured_bytes": m} for m in measured]

found = {
    "planned": common.least({"a": lines(5, 6), "b": lines(4, 9)}),
    "measured": common.least({"a": lines(None, 3, 0), "b": lines(None, 7, 0)}),
}
print(json.dumps(found))
"""


def run(*names: str) -> subprocess.CompletedProcess[str]:
    return run_process("scripts.peers.ort", *names)


def test_a_line_for_each_network_and_a_message_for_one_that_does_not_exist() -> None:
    name = "swiftnet-hpd-c"
    ran = run("--runs", "1", "ws17", name)
    assert ran.returncode == 1
    assert "ort: ws17: " in ran.stderr
    assert "ws16" in ran.stderr  # the nearest name
    (line,) = map(json.loads, ran.stdout.splitlines())
    graph = cell_graph(cell(name))
    sizes = {node.name: node.output_bytes for node in graph.nodes}
    assert line["network"] == name
    assert line["inputs_bytes"] == sum(sizes[i] for i in graph.inputs)
    assert line["outputs_bytes"] == sum(sizes[o] for o in graph.outputs)
    assert line["includes"] == ["outputs", "intermediates", "workspaces"]
    least = max(
        sizes[s] + sum(sizes[i] for i in graph.by_name[s].inputs if i not in graph.inputs) for s in graph.steps
    )
    assert least <= line["measured_bytes"] <= line["heap_bytes"]
    assert line["planned_bytes"] is None
    assert line["max_error"] < 1e-4
    assert line["versions"]["onnxruntime"]
    assert set(line["by_setting"]) == {"default", "no reuse", "no reuse, no blocked layout"}
    assert all(len(runs) == 1 for runs in line["by_setting"].values())
    assert line["measured_bytes"] == min(min(runs) for runs in line["by_setting"].values())
    assert line["measured_bytes"] in line["by_setting"][line["setting"]]


def test_the_least_is_by_what_is_planned_where_something_is() -> None:
    command = [sys.executable, "-c", LEAST]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert found["planned"] == {
        "planned_bytes": 4,
        "measured_bytes": 9,
        "setting": "b",
        "by_setting": {"a": [5], "b": [4]},
    }
    assert found["measured"] == {
        "planned_bytes": None,
        "measured_bytes": 0,
        "setting": "a",
        "by_setting": {"a": [3, 0], "b": [7, 0]},
    }


def test_usage() -> None:
    ran = run("--runs", "0", "ws16")
    assert ran.returncode == 2
    assert "usage: ort.py" in ran.stderr


def test_every_peer_of_the_table_has_a_script_and_pinned_requirements() -> None:
    peers = ROOT / "scripts" / "peers"
    table = (ROOT / "scripts" / "memory" / "table.py").read_text()
    for script, name in (("tflite", "tflite"), ("executorch_peer", "executorch"), ("ort", "ort")):
        assert f'"{name}": "{script}"' in table
        assert (peers / f"{script}.py").is_file()
        requirements = (peers / f"requirements-{name}.txt").read_text().splitlines()
        assert requirements
        assert all("==" in line for line in requirements)
