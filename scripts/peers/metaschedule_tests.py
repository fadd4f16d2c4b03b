"""Runs TVM's own tests of MetaSchedule's search strategies with ours in the place of theirs.

    python -m scripts.peers.metaschedule_tests [FOLDER]

FOLDER holds the test files; without it, they are fetched from TVM's repository, of the version that is installed. They
are run as they are, and nothing of them is kept: where a test makes `EvolutionarySearch`, `ReplayTrace` or
`ReplayFunc`, it gets `ChameleonStrategy`, without the options that only theirs has. Tests that make none of them, or
a strategy of their own, are left out.

It writes `results.json`, `table.md` and `manifest.json`, and fails if a test fails for which no reason is known here.
This module is also the plug-in for pytest that does it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import pytest
import typer

from chameleon.cli import guarded
from chameleon.errors import ChameleonError
from scripts.common.run_store import write_results
from scripts.common.tables import markdown

URL = "https://raw.githubusercontent.com/apache/tvm/v{version}/tests/python/s_tir/meta_schedule/{name}"
FILES = ("test_meta_schedule_search_strategy.py", "test_meta_schedule_task_scheduler.py")
NAMED = ("EvolutionarySearch", "ReplayTrace", "ReplayFunc")
"""The strategies that tests make."""
ENDS = "it expects empty batches after the last one; ours ends at once, as the interface allows"
TWICE = "its schedules have no decisions, and it expects them to be measured again and again; ours measures each once"
PLANNED = "it expects full batches; ours hands out what is planned, so that the next plan knows the outcomes"
KNOWN = {
    "test_meta_schedule_replay_func": PLANNED,
    "test_meta_schedule_evolutionary_search_early_stop": ENDS,
    "test_meta_schedule_task_scheduler_single": TWICE,
    "test_meta_schedule_task_scheduler_multiple": TWICE,
    "test_meta_schedule_task_scheduler_override_next_task_id_only": TWICE,
    "test_meta_schedule_task_scheduler_multiple_gradient_based": TWICE,
    "test_meta_schedule_task_scheduler_gradient_based_with_null_search_strategy": TWICE,
}
"""Tests that cannot pass with ours, and why."""
app = typer.Typer(add_completion=False)


class InPlace:
    """Ours, under the name of one of theirs: whatever theirs is given is dropped."""

    def __new__(cls, *_theirs: Any, **_options: Any) -> Any:
        from tuners.meta_schedule import ChameleonStrategy

        return ChameleonStrategy(seed=0)


def pytest_configure() -> None:
    """Puts ours in the place of the strategies that tests make."""
    from tvm.s_tir import meta_schedule as ms

    for name in NAMED:
        setattr(ms.search_strategy, name, type(name, (InPlace,), {}))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests in which a strategy of ours runs."""
    left_out = [item for item in items if not _makes_ours(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _makes_ours(item: pytest.Item) -> bool:
    code = item.function.__code__  # type: ignore[attr-defined]
    return bool(set(code.co_names) & set(NAMED)) or "TestClass" in code.co_varnames


def fetch(folder: Path) -> Path:
    """Fetches the tests of the version that is installed, and returns their folder.

    Raises:
        ChameleonError: if they cannot be fetched.
    """
    for name in FILES:
        url = URL.format(version=version("apache-tvm"), name=name)
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                (folder / name).write_bytes(answer.read())
        except OSError as error:
            raise ChameleonError(f"cannot fetch {url}: {error}; give the FOLDER that has the tests") from error
    return folder


def run_tests(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Run the tests in a process of their own: one row for each."""
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        report = Path(folder) / "report.xml"
        options = ["-p", "scripts.peers.metaschedule_tests", "-p", "no:cacheprovider", "--junitxml", str(report)]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            "/dev/null",
            *options,
            "--rootdir",
            str(files[0].parent),
        ]
        ran = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
        if not report.exists():
            raise ChameleonError(f"pytest ended without a report: {(ran.stdout + ran.stderr)[-800:]}")
        return [_row(case) for case in ElementTree.parse(report).iter("testcase")]


def _row(case: ElementTree.Element) -> dict[str, Any]:
    test = case.get("name", "")
    row = {"file": case.get("classname", "").rpartition(".")[2], "test": test, "passed": True, "why": ""}
    failed = [found for found in case if found.tag in ("failure", "error")]
    if not failed:
        return row
    message = " ".join((failed[0].get("message") or "").split()).partition(" + where")[0][:200]
    why = KNOWN.get(test.partition("[")[0]) if message.startswith("assert") else None  # no crash is excused
    return row | {"passed": False, "known": why is not None, "message": message, "why": why or message}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make a table in Markdown: each test, and why it cannot pass."""
    lines: list[list[str]] = []
    for row in rows:
        verdict = "passes" if row["passed"] else "cannot" if row["known"] else "FAILS"
        lines.append([row["test"], verdict, row["why"].replace("|", "\\|")])
    return markdown(["test", "with ours", "why"], lines)


@app.command()
def main(
    source: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", exists=True, help="The tests (default: fetch them).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/metaschedule_tests"),
) -> None:
    """Run TVM's own tests of MetaSchedule's search strategies, with ours in the place of theirs."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
        source = (source or fetch(Path(folder))).resolve()
        files = [source / name for name in FILES if (source / name).exists()]
        if not files:
            raise ChameleonError(f"{source} has none of {', '.join(FILES)}")
        rows = run_tests(files)
        sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    out.mkdir(parents=True, exist_ok=True)
    write_results(out, rows, table(rows), {"sha256": sums}, time.perf_counter() - started)
    unknown = [row["test"] for row in rows if not (row["passed"] or row["known"])]
    if unknown:
        raise ChameleonError(f"{', '.join(unknown)} failed, and no reason is known")


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
