"""Whether any order has an arena within a budget, against all orders one by one, and where the least peak has none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest

from chameleon.serenity import fitting
from chameleon.serenity.accounting import Buffer, lifetimes, validate
from chameleon.serenity.arena.plan import Arena, check_arena, plan_arena
from chameleon.serenity.fitting import MOST_STEPS, find_fit
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.order.schedule import ScheduleOptions
from chameleon.serenity.summary import fitted, summarise
from tests.serenity.graphs import random_graph


def orders(graph: Graph) -> list[list[str]]:
    """All valid orders, or the first few hundred."""

    def go(done: set[str], left: list[str]) -> Iterator[list[str]]:
        if not left:
            yield []
        for name in left:
            if done.issuperset(graph.by_name[name].inputs):
                for rest in go(done | {name}, [other for other in left if other != name]):
                    yield [name, *rest]

    return list(islice(go(set(graph.inputs), list(graph.steps)), 300))


def test_the_answer_is_that_of_all_orders() -> None:
    """With every feature of memory, and sizes that are rounded up."""
    answers = []
    for seed in range(25):
        graph, rng = random_graph(seed, 6), np.random.default_rng(seed)
        graph = Graph(
            tuple(replace(n, output_bytes=37 * n.output_bytes) for n in graph.nodes), graph.inputs, graph.outputs
        )
        every = orders(graph)
        if len(every) == 300:
            continue
        sized = graph.aligned(64)
        least = min(plan_arena(lifetimes(sized, order), time_limit_s=5).size_bytes for order in every)
        for budget in {least, max(least - 1, 0), int(rng.integers(0, 2 * least + 1))}:
            fit = find_fit(graph, budget, 64, 30)
            assert fit.answer == ("yes" if budget >= least else "no")
            answers.append(fit.answer)
            if fit.arena is not None:
                validate(graph, fit.order)
                check_arena(lifetimes(sized, fit.order), fit.arena, alignment=64)
                assert fit.arena.size_bytes <= budget
    assert {"yes", "no"} == set(answers)


def two_branches() -> Graph:
    """Any of `a` and `b` may run first; both orders need 192 bytes."""
    nodes = [Node("x", (), 64), Node("a", ("x",), 64), Node("b", ("x",), 64), Node("y", ("a", "b"), 64)]
    return Graph(tuple(nodes), ("x",), ("y",))


@pytest.mark.parametrize(
    ("bad", "proven", "answer"),
    [
        ({"a"}, True, "fits"),  # the order of the summary has no such arena, but the other order has
        ({"a", "b"}, True, "does not fit"),
        ({"a", "b"}, False, "not known"),
    ],
)
def test_other_orders_are_tried(monkeypatch: pytest.MonkeyPatch, bad: set[str], proven: bool, answer: str) -> None:
    """As if the tensors could not be placed at their bound where one of `bad` runs first."""
    real = plan_arena

    def planned(buffers: Sequence[Buffer], **options: Any) -> Arena:
        arena = real(buffers, **options)
        first = min((b for b in buffers if b.name in ("a", "b")), key=lambda b: b.start).name
        size = arena.size_bytes + 64 * (first in bad)
        return replace(arena, size_bytes=size, least_bytes=size if proven else arena.least_bytes)

    monkeypatch.setattr(fitting, "plan_arena", planned)
    monkeypatch.setattr("chameleon.serenity.summary.plan_arena", planned)
    summary = summarise(two_branches(), ScheduleOptions(engine="python"), rewriting=False)
    assert summary.verdict(192) == "not known"
    found = fitted(summary, 192, 10)
    assert found.verdict(192) == answer
    assert (found.arena_of is not None) == (answer == "fits")
    if found.arena_of is not None:
        assert found.arena_of[1][0] == "b"
    assert found.verdict(10**6) == "fits"


def test_large_graphs_are_left_open() -> None:
    nodes = [Node("x", (), 1), *(Node(f"u{i}", ("x",), 1) for i in range(MOST_STEPS + 1))]
    assert find_fit(Graph(tuple(nodes), ("x",)), 10**6, 1, 1.0).answer == "not known"
