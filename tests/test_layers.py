"""The layers hold in a running interpreter: what must not know TVM does not load it, and importing is cheap."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"tvm", "tvm_ffi", "torch", "xgboost", "sklearn", "matplotlib", "numba", "ortools", "networkx"}
HEAVY |= {"kernel_tuner", "pytest", "sqlalchemy", "psycopg"}


def loaded(code: str) -> set[str]:
    """Top-level modules in memory after running `code` in a fresh interpreter."""
    show = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        "chameleon",
        "tuners",
        "chameleon.search",
        "chameleon.testing",
        "tuners.landscape",
        "tuners.replay",
        "tuners.kernel_tuner",
        "chameleon.report",
        "chameleon.page.facts",
        "chameleon.page.serve",
        "chameleon.exchange.check",
        "chameleon.exchange.sources",
        "chameleon.store.open",
        "chameleon.manifest",
        "chameleon.serenity.order.schedule",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert not loaded(f"import {module}") & HEAVY


@pytest.mark.slow
def test_the_check_can_fail() -> None:
    assert "xgboost" in loaded("import xgboost")


@pytest.mark.slow
def test_searching_loads_no_tvm() -> None:
    """Not at import and not later: a whole run of the engine, its model and its clustering included."""
    code = """
import numpy as np
from chameleon.search import KnobSpace, Status, Trial, make_searcher, option
space = KnobSpace([option("a", range(20)), option("b", range(20))])
searcher = make_searcher("chameleon", space, np.random.default_rng(0))
for _ in range(3):
    searcher.tell([Trial(tuple(c), Status.OK, 1e-3 * (1 + abs(c[0] - 7) + c[1])) for c in searcher.ask(8)])
"""
    names = loaded(code)
    assert "torch" in names
    assert not names & {"tvm", "tvm_ffi"}
