"""Targets: this machine's, and what people write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tvm.target import Target

from chameleon.deploy.doctor import checks
from chameleon.deploy.target import detect_target, parse_target, usable_cores
from chameleon.errors import UsageError

pytestmark = pytest.mark.tvm


def test_this_machine_is_named_with_its_processor_and_cores() -> None:
    target = detect_target()
    assert target.kind.name == "llvm"
    assert target.attrs["num-cores"] == usable_cores()
    assert len(str(target.attrs["mcpu"])) > 0
    for text in ("native", "llvm", " local "):
        assert str(parse_target(text)) == str(target)


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "llvm", "mcpu": "znver4", "num-cores": 3}',
        "llvm -mcpu=znver4 -num-cores=3",
        "llvm -mcpu znver4 -num-cores 3",
    ],
)
def test_a_processor_can_be_written_in_several_ways(text: str) -> None:
    assert str(parse_target(text)) == str(Target({"kind": "llvm", "mcpu": "znver4", "num-cores": 3}))


def test_cores_are_added_where_tuning_needs_them_only() -> None:
    assert parse_target('{"kind": "llvm", "mcpu": "znver4"}').attrs["num-cores"] == usable_cores()
    assert parse_target("raspberry-pi/4b-aarch64").attrs["num-cores"] == 4
    a100 = parse_target("nvidia/nvidia-a100")
    assert a100.attrs["arch"] == "sm_80"
    assert "num-cores" not in a100.attrs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lvm", "llvm"),
        ("nvidia/nvidia-a10O", "nvidia/nvidia-a100"),
        ('{"kind": "lvm"}', "llvm"),
        ('{"kind": "llvm", "mcpuu": "x"}', "mcpuu"),
        ('{"kind": ', "JSON"),
        ("[1]", "unknown target"),
        ('{"mcpu": "znver4"}', "kind"),
        ("llvm mcpu=znver4", "mcpu"),
        ("", "unknown target"),
    ],
)
def test_a_wrong_target_is_refused_with_help(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_target(text)


THREADS = """
import os, tvm
from chameleon.deploy.target import set_threads
cores = os.sched_getaffinity(0)
assert set_threads(3) == 3
assert os.sched_getaffinity(0) == cores
assert "TVM_NUM_THREADS" not in os.environ
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are bound to cores on Linux only")
def test_threads_are_set_and_the_caller_stays_free() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("TVM_NUM_THREADS", "OMP_NUM_THREADS")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", THREADS], check=True, env=environment)


def test_the_doctor_builds_and_runs_something() -> None:
    found = {check.name: check for check in checks()}
    assert found["import tvm"].ok
    assert found["tuning database"].ok
    assert found["tiny build and run"].ok, found["tiny build and run"].detail
    assert all(check.advice for check in found.values() if not check.ok)
