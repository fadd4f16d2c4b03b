"""The peers' scripts, with the one peer that this environment has as well: ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon.deploy.irregular import cell, cell_graph

pytestmark = pytest.mark.tvm
PEERS = Path(__file__).parents[2] / "scripts" / "peers"


def run(script: str, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PEERS / script), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_line_for_each_network_and_a_message_for_one_that_does_not_exist() -> None:
    ran = run("ort.py", "swiftnet-hpd-c", "ws17", "ws16")
    assert ran.returncode == 1
    assert "ws17" in ran.stderr
    assert "ws16" in ran.stderr  # the nearest name
    lines = {line["network"]: line for line in map(json.loads, ran.stdout.splitlines())}
    assert set(lines) == {"swiftnet-hpd-c", "ws16"}
    for name, line in lines.items():
        graph = cell_graph(cell(name))
        sizes = {node.name: node.output_bytes for node in graph.nodes}
        assert line["inputs_bytes"] == sum(sizes[i] for i in graph.inputs)
        assert line["outputs_bytes"] == sum(sizes[o] for o in graph.outputs)
        assert line["includes"] == ["outputs", "intermediates", "workspaces"]
        least = max(sizes[s] + sum(sizes[i] for i in graph.by_name[s].inputs if i not in graph.inputs) for s in graph.steps)
        assert least <= line["measured_bytes"] <= line["heap_bytes"]
        assert line["planned_bytes"] is None
        assert line["max_error"] < 1e-4
        assert line["versions"]["onnxruntime"]


def test_usage() -> None:
    assert run("ort.py").returncode == 2
    assert "usage: ort.py" in run("ort.py").stderr


def test_every_peer_of_the_table_has_a_script_and_pinned_requirements() -> None:
    table = (PEERS.parent / "serenity_table.py").read_text()
    for script, name in (("tflite.py", "tflite"), ("executorch_peer.py", "executorch"), ("ort.py", "ort")):
        assert f'"{name}": "{script}"' in table
        assert (PEERS / script).is_file()
        requirements = (PEERS / f"requirements-{name}.txt").read_text().splitlines()
        assert requirements
        assert all("==" in line for line in requirements)
