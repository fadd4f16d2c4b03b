"""The pages are executed: README.md, CONTRIBUTING.md and docs/, every command in them, their Python and their YAML.

Blocks of AutoTVM run in tests/autotvm/test_readme.py. Blocks marked `text` are output and figures.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from chameleon.cli import main
from tests.support.pages import ROOT, Block, blocks, blocks_in, commands, execute, pages_with_python

ELSEWHERE = {
    "make tune": "its two commands are run below on a smaller network",
    "make test": "what runs this test",
    "make check": "a part of make test",
    'pip install -e ".[all]"': "what the Makefile does to make the environment of this test",
    "pip install -e .": "tests/test_install.py: the core needs no TVM; tests/test_wheel.py installs it",
    'pip install -e ".[autotvm]"': "what the Makefile does to make the environment of tests/autotvm",
    'pip install -e ".[kernel-tuner]"': "what the Makefile does to make the environment of this test",
    "python -m pytest tests/search/test_sampling.py": "what runs this test, on one file",
    "python -m pytest tests/search -k sampling": "the same, on some tests",
    "chameleon tune resnet18 --config quick": "tests/jobs/test_config.py reads the preset; it would take minutes here",
    "chameleon zoo configs/zoo-small.yaml": "tests/jobs/test_zoo.py, on a smaller list",
    'pip install -e ".[all,ray]"': "what the Makefile does to make the environment of this test",
    "ray start --head --port 6379": "tests/jobs/test_ray.py starts clusters in Python",
    "ray start --address 192.168.1.5:6379": "the same",
    "python -m scripts.faults.inject --injections 1000": "tests/scripts/test_injected_faults.py, with few injections",
    "chameleon tune resnet18 --ray auto": "tests/jobs/test_ray.py, on a cluster of its own",
    "chameleon autotvm resnet-18 --tuner chameleon": "tests/autotvm/test_script.py, on a smaller network",
    "chameleon records export runs/resnet20 --to metaschedule -o database": "tests/exchange/test_metaschedule.py",
    "chameleon records import database -o imported.jsonl": "tests/exchange/test_metaschedule.py",
    "chameleon records import tune.log -o autotvm.jsonl": "tests/exchange/test_formats.py; tests/autotvm/test_logs.py",
    "chameleon records export autotvm.jsonl --to autotvm -o again.log": "the same",
    "chameleon report tests/data/tiny-run --serve": "tests/page/test_page.py, until it is told to end",
    "python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190": "tests/measure/test_rpc.py starts one in Python",
    "python scripts/fleets/serve.py --tracker 192.168.1.5:9190 --key board --host 0.0.0.0": (
        "tests/measure/test_fleet.py, on loopback"
    ),
    "chameleon tune resnet18 --tracker 192.168.1.5:9190 --device-key board": (
        "tests/measure/test_rpc.py, on a tracker of its own"
    ),
    "chameleon tune resnet18 --tracker 192.168.1.5:9190 --device-key pi --cc aarch64-linux-gnu-g++": (
        "tests/measure/test_cross.py, its linker"
    ),
    "apt install g++-aarch64-linux-gnu g++-riscv64-linux-gnu": ".ci/run, where it can",
    "apt install qemu-user g++-aarch64-linux-gnu g++-riscv64-linux-gnu": "the same",
    "python -m scripts.fleets.emulated resnet20_cifar10 --trials 24": (
        "tests/measure/test_emulated.py, on a smaller network"
    ),
}
"""Commands that are not run here, and what covers them."""

WITHOUT_TVM = (
    "chameleon --version",
    "chameleon replay",
    "chameleon searchers",
    "chameleon memory configs/",
    "chameleon report",
    "chameleon records",
)
RUN = [command for command in commands() if command not in ELSEWHERE]
LANGUAGES = {"bash", "python", "yaml", "text"}
CODE = re.compile(r"^\s*(chameleon \w|make \w|pip |python |\$ |import \w|from \w+[\w.]* import )", re.MULTILINE)


def no_code(block: Block) -> bool:
    """Whether a `text` block is output or a figure, and holds nothing that should have been executed."""
    return not CODE.search(block.text)


@pytest.fixture
def run(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs a command as a reader would, but in this process: what the console script calls is called here."""

    def run(command: str) -> None:
        program, *arguments = shlex.split(command)
        assert program == "chameleon"
        monkeypatch.chdir(folder)
        code, said = main(arguments), capfd.readouterr()
        assert code == 0, said.out + said.err
        assert said.out.strip()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout, so that what the commands write does not land in it."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tests", "scripts", "configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_the_readme_has_commands() -> None:
    assert set(ELSEWHERE) <= set(commands())
    assert len(RUN) > 8
    assert len(set(commands("README.md")) - set(ELSEWHERE)) > 4


def test_every_block_is_executed_or_is_output() -> None:
    assert {block.language for block in blocks()} <= LANGUAGES
    assert not [block for block in blocks("text") if not no_code(block)]
    assert not [path for path in (ROOT / "docs").rglob("*.md") if "~~~" in path.read_text()]


def test_code_in_a_text_block_is_found() -> None:
    (hidden,) = blocks_in("page", "```text\nfrom chameleon.memory import MemoryAware\n```\n")
    (shown,) = blocks_in("page", "```text\nfrom here on: chameleon\n```\n")
    assert not no_code(hidden)
    assert no_code(shown)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in RUN if c.startswith(WITHOUT_TVM)])
def test_command_without_tvm(command: str, run: Callable[[str], None]) -> None:
    run(command)


@pytest.mark.tvm
@pytest.mark.parametrize("command", [c for c in RUN if not c.startswith(WITHOUT_TVM)])
def test_command(command: str, run: Callable[[str], None]) -> None:
    """In the pages' order, in one folder: what one command writes, the next may need."""
    run(command)


def test_make_tune_is_tune_and_bench() -> None:
    done = subprocess.run(["make", "-n", "tune"], cwd=ROOT, capture_output=True, text=True, check=True)
    run = [line.strip() for line in done.stdout.splitlines() if "bin/chameleon" in line]
    assert [line.split("bin/chameleon ")[1].split()[:2] for line in run] == [
        ["tune", "resnet18"],
        ["bench", "resnet18"],
    ]


@pytest.mark.tvm
def test_the_python_block(tmp_path: Path) -> None:
    assert len(blocks("python", "README.md")) == 2  # the other one: tests/autotvm/test_readme.py
    scope = execute("README.md", "tvm", of_a_task(tmp_path))
    assert len(scope["database"].get_all_tuning_records()) == 32


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_python(needs=""))
def test_python_without_tvm(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    execute(page, "", {})


@pytest.mark.slow
@pytest.mark.needs("kernel_tuner")
@pytest.mark.parametrize("page", pages_with_python(needs="kernel_tuner"))
def test_python_with_kernel_tuner(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert len(execute(page, "kernel_tuner", {})["results"]) == 20


@pytest.mark.tvm
@pytest.mark.parametrize("page", pages_with_python(needs="tvm"))
def test_python(page: str, tmp_path: Path) -> None:
    scope = execute(page, "tvm", of_a_task(tmp_path) if page == "docs/hosts.md" else {})
    for name in ("builder", "runner"):
        if name in scope:
            scope[name].close()


def of_a_task(work_dir: Path) -> dict[str, object]:
    """The names that a page takes as given."""
    from chameleon.target import detect_target
    from tests.support.workloads import task_of

    target = detect_target()
    return {"mod": task_of("dense", target), "target": target, "work_dir": str(work_dir)}


def is_zoo(text: str) -> bool:
    return "models" in yaml.safe_load(text)


@pytest.mark.parametrize("text", [b.text for b in blocks("yaml") if not is_zoo(b.text)])
def test_preset(text: str) -> None:
    from chameleon.jobs.config import tune_config

    assert tune_config(yaml.safe_load(text), {}).trials == 2000


@pytest.mark.tvm
@pytest.mark.parametrize("text", [b.text for b in blocks("yaml") if is_zoo(b.text)])
def test_zoo(text: str) -> None:
    from chameleon.jobs.zoo import read_zoo

    content = yaml.safe_load(text)
    assert len(read_zoo(content).entries) == len(content["models"]) * len(content.get("targets", [0]))
