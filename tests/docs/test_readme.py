"""The README is executed: every command in it, and its Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tvm
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

ELSEWHERE = {
    "make tune": "its two commands are run below with a smaller budget",
    "make test": "what runs this test",
    "make check": "a part of make test",
    'pip install -e ".[all]"': "what the Makefile does to make the environment of this test",
    "pip install -e .": "tests/test_install.py: the core needs no TVM",
    'pip install -e ".[autotvm]"': "what the Makefile does to make the environment of tests/autotvm",
    "python scripts/tune_autotvm.py resnet-18 --tuner chameleon": "tests/autotvm/test_script.py, on a smaller network",
    "python scripts/tune_zoo.py configs/zoo-small.yaml": "tests/tvm/test_zoo.py, on a smaller list",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder that looks like the checkout, so that what the commands write does not land in it."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tests", "scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_the_readme_has_commands():
    assert set(ELSEWHERE) <= set(commands())
    assert len(commands()) > len(ELSEWHERE) + 4


@pytest.mark.parametrize("command", [c for c in commands() if c not in ELSEWHERE])
def test_command(command, folder):
    """In the README's order: what one command writes, the next may need."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, timeout=500, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_make_tune_is_tune_and_bench():
    done = subprocess.run(["make", "-n", "tune"], cwd=ROOT, capture_output=True, text=True, check=True)
    run = [line.strip() for line in done.stdout.splitlines() if "bin/chameleon" in line]
    assert [line.split("bin/chameleon ")[1].split()[:2] for line in run] == [
        ["tune", "resnet18"],
        ["bench", "resnet18"],
    ]


def test_the_python_block(tmp_path):
    from chameleon.target import detect_target
    from tests.support.workloads import task_of

    block, _ = blocks("python")  # the other one: tests/autotvm/test_readme.py
    target = detect_target()
    scope = {"mod": task_of("dense", target), "target": target, "work_dir": str(tmp_path)}
    exec(block, scope)  # the project's own README
    assert len(scope["database"].get_all_tuning_records()) == 32
