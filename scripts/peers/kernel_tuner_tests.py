"""Runs Kernel Tuner's own tests of its strategies with ours in the place of theirs.

    python -m scripts.peers.kernel_tuner_tests [FOLDER]

FOLDER is its source, of the version that is installed; without it, the source is fetched from the package index. The
tests are run as they are, and nothing of them is kept:

- `test_strategies` takes every name that Kernel Tuner knows. Our searchers are added to these names, and the test is
  run for ours only.
- Tests that name a strategy (`random_sample`, `genetic_algorithm`, `bayes_opt`) get ours under that name, without the
  options that only theirs has.
- The test of the wrapper for optimisers of one's own gets ours for its optimiser.

This module is also the plug-in for pytest that does it.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from chameleon.cli import guarded
from chameleon.search import SEARCHERS
from tuners.kernel_tuner import OPTIONS, ChameleonStrategy

FILES = (
    "test/strategies/test_strategies.py",
    "test/test_runners.py",
    "test/test_time_budgets.py",
    "test/test_custom_optimizer.py",
)
NAMED = ("random_sample", "genetic_algorithm", "bayes_opt")
"""The strategies that tests ask for by name."""
NOT_OURS = {
    "test_random_sample": "`fraction` is an option of random_sample alone",
    "test_OptAlgWrapper_T1": "it makes the optimiser of its own file; our tests do it with ours",
}
"""Tests that cannot be run with ours, and why."""
app = typer.Typer(add_completion=False)


class InPlace:
    """Ours, as a module of Kernel Tuner's strategies: it says which options it has, and drops those of others."""

    _options: dict[str, Any] = {}  # noqa: RUF012  # Kernel Tuner's name for what a strategy has of its own

    def __init__(self, searcher: str) -> None:
        self._ours = ChameleonStrategy(searcher, seed=0)

    def tune(self, searchspace: Any, runner: Any, tuning_options: Any) -> Any:
        given = tuning_options.strategy_options
        tuning_options.strategy_options = type(given)({n: value for n, value in given.items() if n in OPTIONS})
        return self._ours.tune(searchspace, runner, tuning_options)


def pytest_configure() -> None:
    """Adds our searchers to the names, and puts ours in the place of the strategies that tests name."""
    from kernel_tuner.interface import strategy_map

    known: dict[str, Any] = strategy_map
    known.update({name: InPlace(name) for name in SEARCHERS})
    known.update({name: InPlace("chameleon") for name in NAMED})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests in which a strategy of ours runs."""
    left_out = [item for item in items if not _runs_ours(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    for item in items:
        module: Any = getattr(item, "module", None)
        if hasattr(module, "HybridDELocalRefinement"):
            module.HybridDELocalRefinement = lambda: ChameleonStrategy(seed=0)


def _runs_ours(item: pytest.Item) -> bool:
    name = getattr(item, "originalname", item.name)
    if name in NOT_OURS:
        return False
    if name == "test_strategies":
        return item.callspec.params["strategy"] in SEARCHERS  # type: ignore[attr-defined]
    code = item.function.__code__  # type: ignore[attr-defined]
    return name == "test_OptAlgWrapper" or bool({*code.co_consts, *_inner(code)} & set(NAMED))


def _inner(code: Any) -> set[Any]:
    """The constants in the tuples of constants of a function."""
    return {constant for group in code.co_consts if isinstance(group, tuple) for constant in group}


def fetch(folder: Path) -> Path:
    """Fetches the source of the version that is installed, and returns its folder."""
    wanted = f"kernel-tuner=={version('kernel-tuner')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", wanted]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        tests = [member for member in source.getmembers() if "/test/" in member.name]
        source.extractall(folder, tests, filter="data")
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


@app.command()
def main(
    source: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", exists=True, help="Its source (default: fetch it).")
    ] = None,
) -> None:
    """Run Kernel Tuner's own tests of its strategies, with ours in the place of theirs."""
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        source = (source or fetch(Path(folder))).resolve()
        files = [str(source / name) for name in FILES if (source / name).exists()]
        options = ["-p", "scripts.peers.kernel_tuner_tests", "-p", "no:cacheprovider", "-ra", "--rootdir", str(source)]
        command = [sys.executable, "-m", "pytest", "-c", "/dev/null", *options, *files]
        raise typer.Exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
