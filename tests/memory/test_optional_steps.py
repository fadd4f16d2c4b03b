"""Optional steps that fail are left out, and searches end when their time is over."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm.ir import IRModule

from chameleon.kernels import defaults
from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.lower import build, kernels_of
from chameleon.kernels.optional import if_possible
from chameleon.memory import graph, placed_concats, plan, rewrite, workspaces
from chameleon.memory.deadline import Deadline
from chameleon.memory.lower import Rewrites, lean
from chameleon.memory.plan import MemoryOptions, plan_memory
from chameleon.memory.rewrite import find_sites, rewrite_module
from chameleon.serenity.order.schedule import schedule
from chameleon.serenity.rewrite.choose import choose_sites
from chameleon.serenity.rewrite.identities import Site
from tests.support.memory_networks import CPU, NETWORKS, Builder, inputs, network, outputs

pytestmark = pytest.mark.tvm
STEPS = {
    "lean schedule": (defaults, "lean_schedule"),
    "default schedule": (defaults, "_cpu_schedule"),
    "row by row": (defaults, "rolling_schedule"),
    "hoisting": (workspaces, "_hoisted"),
    "in place": (graph, "in_place_inputs"),
    "overwriting": (graph, "overwriting"),
    "placing parts": (placed_concats, "concat_kernel"),
    "moving windows": (placed_concats, "windowed"),
    "rolling calls": (plan, "roll_where_it_pays"),
}


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    """Schedules are remembered: those from before would hide a step that fails, those from here would stay."""
    defaults._scheduled_once.cache_clear()
    yield
    defaults._scheduled_once.cache_clear()


def fails(*_: object, **__: object) -> None:
    raise IndexError("index out of range")


def test_what_raises_is_not_possible_here(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "chameleon"):
        assert if_possible("a step", "kernel", fails, 3) == 3
    assert "a step is not possible for kernel: IndexError: index out of range" in caplog.text
    assert if_possible("a step", "kernel", lambda: 4, 3) == 4
    with pytest.raises(KeyboardInterrupt):
        if_possible("a step", "kernel", interrupted, 3)


def interrupted() -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", STEPS)
def test_a_network_is_planned_without_a_step_that_fails(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mod = network("concats")
    expected = outputs(build(schedule_defaults(mod, CPU), CPU), inputs())
    monkeypatch.setattr(*STEPS[step], fails)
    with CPU:
        planned, _ = plan_memory(lean(mod, CPU))
    for ours, theirs in zip(outputs(build(planned, CPU), inputs()), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_set_is_tried_when_time_is_over() -> None:
    tried: list[frozenset[str]] = []

    def evaluate(chosen: frozenset[str]) -> tuple[int]:
        tried.append(chosen)
        return (10 - len(chosen),)

    needs: dict[str, frozenset[str]] = {name: frozenset() for name in "abc"}
    found = choose_sites(needs, evaluate, stop=lambda: len(tried) >= 2)
    assert tried == [frozenset(), frozenset("abc")]
    assert set(found.chosen) == set("abc")
    assert not found.complete
    tried.clear()
    assert choose_sites(needs, evaluate, stop=lambda: True).chosen == ()
    assert tried == [frozenset()]


def test_a_deadline_gives_each_search_what_is_left() -> None:
    over = Deadline(1e-9)
    assert over.passed()
    assert 0 < over.left_s < 1
    assert not Deadline().passed()
    assert Deadline(100.0).part(0.5).left_s == pytest.approx(50.0, abs=1.0)
    with CPU:
        mod, found = plan_memory(network("residual"), over.solver(), MemoryOptions(deadline=over))
    assert found.arena.size_bytes >= found.schedule.peak_bytes
    assert outputs(build(mod, CPU), inputs())


def test_a_site_that_cannot_be_rewritten_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mod = Builder().function(NETWORKS["concats"])
    sites = find_sites(mod)
    bad = next(site for site in sites if site.kind == "channel_wise")
    apply_sites = rewrite.apply_sites

    def sometimes(mod: IRModule, chosen: Collection[Site], *rest: Any, **options: Any) -> IRModule:
        if bad in chosen:
            raise IndexError("index out of range")
        return apply_sites(mod, chosen, *rest, **options)

    def score(mod: IRModule) -> tuple[int]:
        return (plan.peak_score(lean(kernels_of(mod, CPU), CPU), schedule, MemoryOptions())[0],)

    assert bad in rewrite_module(mod, score, schedule).choice.chosen
    monkeypatch.setattr(rewrite, "apply_sites", sometimes)
    assert bad not in rewrite_module(mod, score, schedule).choice.chosen


def test_rewrites_keep_their_order() -> None:
    kept = Rewrites((), False, ("b", "a"))
    assert Rewrites.from_json(kept.to_json()) == kept
    assert Rewrites.from_json({"sites": []}).order == ()
