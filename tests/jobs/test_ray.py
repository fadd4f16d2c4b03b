"""Measuring on a real Ray cluster of several nodes on this machine: all work, and one that dies costs nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tvm

from chameleon.cli import main
from chameleon.jobs.ray_nodes import RayMeasurer, ray_measurer
from chameleon.jobs.run_folder import JobSpec, environment_of
from chameleon.manifest import cpu_name
from chameleon.target import detect_target, usable_cores
from chameleon.workers.faults import EnvironmentFault
from scripts.common.ray_cluster import cluster
from tests.support import misbuild
from tests.support.networks import write_network
from tests.support.ray_cluster import sleeping_measurer

pytestmark = [pytest.mark.tvm, pytest.mark.slow, pytest.mark.needs("ray")]


@pytest.fixture
def three_nodes() -> Iterator[tuple[Any, list[Any]]]:
    with cluster(3) as running:
        yield running


def candidates(n: int, failing: int = -1) -> list[tuple[tuple[int, ...], tvm.s_tir.Schedule]]:
    names = ["fail" if i == failing else f"n{i}" for i in range(n)]
    return [((i,), tvm.s_tir.Schedule(misbuild.doubling(name))) for i, name in enumerate(names)]


def nodes_of(measurer: RayMeasurer) -> set[str]:
    return {node.node_id for node in measurer._nodes if node.joined}


def test_a_node_killed_in_the_middle_loses_nothing_and_no_candidate_is_blamed(three_nodes) -> None:
    running, nodes = three_nodes
    said: list[str] = []
    with ray_measurer(running.address, detect_target(), said.append, sleeping_measurer) as measurer:
        measurer.check()
        assert len(nodes_of(measurer)) == 3
        trials = []
        for trial in measurer(candidates(24, failing=5), task="k", in_time=lambda: True):
            trials.append(trial)
            if len(trials) == 4:
                running.remove_node(nodes[0], allow_graceful=False)
        assert sorted(t.config for t in trials) == [(i,) for i in range(24)]  # none is lost, none comes twice
        assert [(t.config, t.message) for t in trials if t.seconds is None] == [((5,), "build_error: made to fail")]
        assert any("is lost" in text for text in said)
        assert len(nodes_of(measurer)) == 2

        built = measurer.build(candidates(2))
        assert [b.ready for b in built] == [True, True]
        assert measurer.time(built[0]).seconds == 1e-3
        home = measurer._home
        assert home is not None
        running.remove_node(next(n for n in nodes[1:] if n.node_id == home.node_id), allow_graceful=False)
        for candidate in built:  # built again on the node that is left, both of them
            assert measurer.time(candidate).seconds == 1e-3
        assert nodes_of(measurer) != {home.node_id}
        for candidate in built:
            candidate.discard()

        running.add_node(num_cpus=1)  # a node that joins is used as soon as it has started
        for _ in range(30):
            trials = list(measurer(candidates(8), task="k", in_time=lambda: True))
            assert sorted(t.config for t in trials) == [(i,) for i in range(8)]
            if len(nodes_of(measurer)) == 2:
                break
        assert len(nodes_of(measurer)) == 2


@pytest.mark.skipif(usable_cores() < 2, reason="a node with fewer cores needs two")
def test_a_node_of_another_kind_is_left_out() -> None:
    with cluster(1) as (running, nodes):
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            other = running.add_node(num_cpus=1)  # it has one core
        finally:
            os.sched_setaffinity(0, cores)
        running.wait_for_nodes()
        said: list[str] = []
        with ray_measurer(running.address, detect_target(), said.append, sleeping_measurer) as measurer:
            measurer.check()
            for _ in range(100):  # whichever node starts first, and however long after it the other one does
                assert len(list(measurer(candidates(4), task="k", in_time=lambda: True))) == 4
                if measurer.report():
                    break
            assert nodes_of(measurer) == {nodes[0].node_id}
            (why,) = measurer.report()
            assert other.node_id[:8] in why
            assert any("is left out" in text for text in said)


def test_a_network_is_tuned_on_the_nodes(tmp_path: Path) -> None:
    network, out = write_network(tmp_path / "tiny.onnx"), tmp_path / "run"
    command = ["tune", str(network), "--out", str(out), "--trials", "8", "--searcher", "random"]
    with cluster(1) as (running, _):
        assert main([*command, "--ray", running.address]) == 0
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    trials = [line for line in lines if "config" in line]
    assert len(trials) == 8
    assert any(line["status"] == "ok" for line in trials)
    assert any(line.get("kind") == "confirmation" for line in lines)
    (environment,) = [line for line in lines if line.get("kind") == "environment"]
    assert environment["cpu"] == cpu_name()  # the nodes are this machine
    assert {line["environment"] for line in trials} == {environment["environment"]}
    assert (out / "network.so").exists()


def test_trials_belong_to_the_processor_of_the_nodes() -> None:
    target, spec = detect_target(), JobSpec("net.onnx", ray="auto")
    assert environment_of(spec, target).cpu == cpu_name()
    assert environment_of(dataclasses.replace(spec, processor="abacus"), target).cpu == "abacus"


def test_no_cluster_and_no_node(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    network = write_network(tmp_path / "tiny.onnx")
    command = ["tune", str(network), "--out", str(tmp_path / "run"), "--trials", "2", "--ray"]
    assert main([*command, "127.0.0.1:1"]) == 1
    assert "no Ray cluster answers" in capsys.readouterr().err
    assert main([*command, "auto", "--tracker", "127.0.0.1:1", "--device-key", "k"]) == 2
    assert "two places to measure on" in capsys.readouterr().err
    with (
        cluster(0) as (running, _),
        ray_measurer(running.address, detect_target(), print) as measurer,
        pytest.raises(EnvironmentFault, match="none has a core"),
    ):
        measurer.check()
