"""Targets: this machine's, and what people write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tvm
from tvm.target import Target

from chameleon.doctor.checks import checks
from chameleon.errors import UsageError
from chameleon.target import check_runs_here, detect_target, parse_target, runs_here, usable_cores

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
        ('{"kind": ' + "[" * 200_000, "JSON"),
        ("[1]", "unknown target"),
        ('{"mcpu": "znver4"}', "kind"),
        ("llvm mcpu=znver4", "mcpu"),
        ("", "unknown target"),
        ("llvm -mcpu=skylakee", "did you mean skylake,"),
        ('{"kind": "llvm", "mcpu": "skylakee"}', "did you mean skylake,"),
        ('{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a7"}', "cortex-a7[0-9]"),
        ('{"kind": "cuda", "host": {"kind": "llvm", "mcpu": "skylakee"}}', "did you mean skylake,"),
        ("llvm -mcpu=host", "this machine's is"),
        ("llvm -mcpu=native", "--target native"),
        ("llvm -mtriple=arch64-linux-gnu", "did you mean aarch64"),
        ('{"kind": "llvm", "num-cores": 0}', "at least 1, got 0"),
        ("c", "kind 'c' here; use llvm"),
        ('{"kind": "c", "mcpu": "x"}', "kind 'c' here; use llvm"),
        ("webgpu", "use llvm"),
        ("hexagon", "use llvm"),
    ],
)
def test_a_wrong_target_is_refused_with_help(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_target(text)


ARM = '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 4}'


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("native", True),
        ("llvm -mcpu=x86-64" if os.uname().machine == "x86_64" else "llvm", True),
        (f"llvm -mtriple={tvm.target.codegen.llvm_get_system_triple()}", True),
        ("cuda", True),
        (ARM, os.uname().machine in ("aarch64", "arm64")),
        ("raspberry-pi/4b-aarch64", os.uname().machine in ("aarch64", "arm64")),
        ("llvm -mtriple=riscv64-linux-gnu", os.uname().machine == "riscv64"),
        ("llvm -mtriple=x86_64-pc-windows-msvc", False),
    ],
)
def test_a_target_of_another_machine_is_known_as_one(text: str, here: bool) -> None:
    target = parse_target(text)
    assert runs_here(target) == here
    if here:
        check_runs_here(target)
    else:
        with pytest.raises(UsageError, match="--tracker"):
            check_runs_here(target)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the names are of x86 processors")
def test_a_processor_with_other_instructions_is_refused_where_it_would_run() -> None:
    newest, oldest = parse_target("llvm -mcpu=diamondrapids"), parse_target("llvm -mcpu=x86-64")
    check_runs_here(oldest)
    check_runs_here(detect_target())
    if "amx-tile" not in tvm.target.codegen.llvm_get_cpu_features(detect_target()):
        with pytest.raises(UsageError, match="lacks instructions of diamondrapids: amx"):
            check_runs_here(newest)


def test_a_remote_device_does_not_get_the_number_of_our_cores() -> None:
    assert parse_target(ARM).attrs["num-cores"] == 4
    assert "num-cores" not in parse_target("nvidia/nvidia-a100").attrs
    partly = '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}'
    assert parse_target(partly, cores=lambda: 7).attrs["num-cores"] == 7
    assert parse_target(ARM, cores=lambda: 7).attrs["num-cores"] == 4


def test_linux_on_risc_v_gets_the_abi_of_its_distributions() -> None:
    attrs = parse_target("llvm -mtriple=riscv64-linux-gnu").attrs
    assert attrs["mabi"] == "lp64d"
    assert "+d" in list(attrs["mattr"])
    assert "mattr" not in parse_target("llvm -mtriple=riscv64-linux-gnu -mcpu=sifive-u74").attrs
    assert "mabi" not in parse_target("llvm -mtriple=riscv64-none-elf").attrs


THREADS = """
import os, threading
import numpy as np, psutil, tvm
from tvm import te
from tvm.s_tir import Schedule
from chameleon.target import detect_target, set_threads

cores, n = os.sched_getaffinity(0), len(os.sched_getaffinity(0))
a = te.placeholder((n * 64, 1024), name="a")
k = te.reduce_axis((0, 1024), name="k")
b = te.compute((n * 64, 1024), lambda i, j: te.sum(a[i, k] * a[i, j], axis=k), name="b")
schedule = Schedule(te.create_prim_func([a, b]))
schedule.parallel(schedule.get_loops(schedule.get_sblock("b"))[0])
kernel = tvm.compile(schedule.mod, detect_target())
x = tvm.runtime.tensor(np.ones((n * 64, 1024), "float32"))
kernel["main"](x, x)  # this thread's pool is made, with half the cores

def busy_threads():
    before = {t.id: t.user_time for t in psutil.Process().threads()}
    for _ in range(10):
        kernel["main"](x, x)
    spent = {t.id: t.user_time - before.get(t.id, 0) for t in psutil.Process().threads()}
    return sum(s > 0.3 * max(spent.values()) for s in spent.values())

def run():
    found.append((set_threads(n), busy_threads()))

found = []
thread = threading.Thread(target=run)
thread.start()
thread.join()
assert found == [(n, n)], found
assert os.sched_getaffinity(0) <= cores
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are bound to cores on Linux only")
def test_a_fresh_thread_really_runs_kernels_on_all_cores() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("TVM_NUM_THREADS", "OMP_NUM_THREADS")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", THREADS], check=True, env=environment)


def test_the_doctor_builds_and_runs_something() -> None:
    found = {check.name: check for check in checks()}
    assert found["import tvm"].ok
    assert found["tuning database"].ok
    assert found["tiny build and run"].ok, found["tiny build and run"].detail
    assert all(check.advice for check in found.values() if not check.ok)
