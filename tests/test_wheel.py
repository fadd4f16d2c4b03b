"""The wheel: built, installed where nothing of the checkout can be seen, and used from there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import chameleon

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
LANDSCAPE = ROOT / "tests/data/tiny_lines.jsonl.gz"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    copy = folder / "source"
    copy.mkdir()
    for name in ("chameleon", "tuners", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy)], check=True)
    done = subprocess.run([sys.executable, "-c", build, str(folder)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel; of the tests' own it sees the dependencies only.

    A folder that is named in a `.pth` file is searched, but the `.pth` files in it are not read. So the checkout,
    which is installed that way for the tests, stays out of sight.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-deps"]
    done = subprocess.run([*install, "--no-index", "--force-reinstall", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The wheel's command in a folder of its own."""
    return subprocess.run(
        [str(installed / "chameleon"), *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_wheel_holds_types_presets_and_sources(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"chameleon/py.typed", "tuners/py.typed", "chameleon/memory/allocations.cc"} <= names
    assert {"chameleon/presets/quick.yaml", "chameleon/presets/release.yaml"} <= names
    assert "chameleon/page/page.html.jinja" in names
    assert not {name for name in names if name.startswith(("tests/", "scripts/"))}
    for path in (*ROOT.glob("chameleon/**/*.py"), *ROOT.glob("tuners/*.py")):
        assert path.relative_to(ROOT).as_posix() in names


def test_the_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    code = "import chameleon, tuners; print(chameleon.__file__); print(tuners.__file__)"
    done = subprocess.run(
        [str(installed / "python"), "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith(str(installed.parent)) for line in done.stdout.split())


def test_it_tells_its_version_and_its_searchers(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "--version").stdout.strip() == f"chameleon-tvm {chameleon.__version__}"
    done = run(installed, tmp_path, "searchers")
    assert done.returncode == 0, done.stderr
    assert {"chameleon", "release", "annealing", "random"} <= set(done.stdout.split())


def test_it_replays(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "replay", str(LANDSCAPE), "--searcher", "random", "--trials", "25", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout


def test_shell_completion_knows_searchers_and_presets(installed: Path, tmp_path: Path) -> None:
    for words, expected in (("chameleon tune x --searcher ", "release"), ("chameleon tune x --config ", "quick")):
        environment = {"_CHAMELEON_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
        done = subprocess.run(
            [str(installed / "chameleon")], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120
        )
        assert expected in done.stdout.split(), done.stdout + done.stderr


@pytest.mark.tvm
def test_the_doctor_finds_a_complete_installation(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tiny build and run" in done.stdout


@pytest.mark.tvm
def test_a_preset_of_the_wheel_tunes(installed: Path, tmp_path: Path) -> None:
    from tests.support.networks import write_network

    write_network(tmp_path / "net.onnx")
    done = run(installed, tmp_path, "tune", "net.onnx", "--config", "quick", "--trials", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "searcher chameleon" in done.stdout
    done = run(installed, tmp_path, "tune", "net.onnx", "--config", "quik")
    assert done.returncode == 2
    assert "did you mean quick" in done.stderr
