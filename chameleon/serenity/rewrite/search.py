"""Rewrite a graph where that lowers the peak of its best schedule (Ahn 2020, sec. 3.3).

`chameleon.serenity.rewrite.identities` says what can be rewritten and what a node must tell for it. The paper applies every pattern
it finds. That can raise the peak: a part that was small may have readers that now wait, and two readers of one concatenation
may need it and its parts. So here a rewrite stays only if the *solved* peak falls by it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import networkx as nx

from chameleon.serenity.accounting import footprint
from chameleon.serenity.graph import Graph, Node
from chameleon.serenity.rewrite.choose import choose_sites
from chameleon.serenity.rewrite.identities import KINDS, Accumulation, Site, apply_sites, find_sites
from chameleon.serenity.rewrite.sums import PER_TERM


class Solution(Protocol):
    """What a solver returns, such as `chameleon.serenity.order.schedule.Schedule`."""

    @property
    def order(self) -> tuple[str, ...]: ...

    @property
    def peak_bytes(self) -> int: ...


T = TypeVar("T", bound=Solution)


@dataclass(frozen=True)
class RewriteOptions:
    """What may be rewritten, and how long to search."""

    kinds: tuple[str, ...] = KINDS  # of sites, see chameleon.serenity.rewrite.identities
    accumulation: Accumulation = "shared"  # how the partial sums of a convolution are kept
    max_solves: int = 256  # solver calls, the one for the graph as it is included
    stop: Callable[[], bool] = lambda: False  # says that no time is left for another solver call


@dataclass(frozen=True)
class Rewritten(Generic[T]):
    """A graph with the rewrites that lower its peak, and its schedule.

    Attributes:
        graph: the rewritten graph; the given one if nothing lowers its peak.
        schedule: of `graph`.
        applied: the sites that were rewritten; without any one of them and what needs it the peak would be higher.
        before: the schedule of the graph as it was given.
        sites: how many sites there were.
        solves: how often the solver ran.
        complete: the search ended by itself, not by `max_solves`.
    """

    graph: Graph
    schedule: T
    applied: tuple[Site, ...]
    before: T
    sites: int
    solves: int
    complete: bool

    @property
    def saved_bytes(self) -> int:
        """By how much the peak fell; never negative."""
        return self.before.peak_bytes - self.schedule.peak_bytes


def rewrite(graph: Graph, solve: Callable[[Graph], T], options: RewriteOptions = RewriteOptions()) -> Rewritten[T]:
    """The graph with the rewrites that lower the peak that `solve` finds; deterministic if `solve` is.

    Sets of one peak are told apart by the number of steps that reach it, so that the search sees a step forward where a
    network has its peak at two places and a rewrite clears one of them.

    Raises:
        GraphError: if a node says something of its channels that cannot be.
    """
    needs = choices(find_sites(graph), options.kinds)
    sites, solved = len(needs), dict[frozenset[Site], tuple[Graph, T]]()

    def evaluate(chosen: frozenset[Site]) -> tuple[int, int]:
        if chosen not in solved:
            candidate = apply_sites(graph, chosen, options.accumulation) if chosen else graph
            solved[chosen] = candidate, solve(candidate)
        candidate, schedule = solved[chosen]
        use = footprint(candidate, schedule.order)
        return schedule.peak_bytes, int((use.during == use.peak_bytes).sum())

    if evaluate(frozenset())[0] <= floor_bytes(graph, needs):
        needs = {}  # the peak is where no rewrite reaches
    choice = choose_sites(needs, evaluate, kind_groups(needs), neighbourhoods(graph, needs), options.max_solves, options.stop)
    best, schedule = solved[frozenset(choice.chosen)]
    before = solved[frozenset()][1]
    return Rewritten(best, schedule, choice.chosen, before, sites, choice.evaluations, choice.complete)


def choices(sites: Mapping[Site, frozenset[Site]], kinds: Collection[str]) -> dict[Site, frozenset[Site]]:
    """The sites of some kinds that can be applied without others; per site those that come with it.

    Sums accumulate all or none: if any order of terms is allowed, the solver chooses for each (`chameleon.serenity.rewrite.sums`).
    """
    found = {site: needs for site, needs in sites.items() if site.kind in kinds}
    found = {site: needs for site, needs in found.items() if needs <= found.keys()}
    sums = frozenset(site for site in found if site.kind == "accumulate")
    return {site: sums - {site} if site in sums else needs for site, needs in found.items()}


def floor_bytes(graph: Graph, sites: Collection[Site]) -> int:
    """What some step needs that no rewrite changes: whatever is rewritten, no order has a smaller peak."""
    changed = {site.node for site in sites}
    given, merged = set(graph.inputs), ("add", *PER_TERM) if any(site.kind == "accumulate" for site in sites) else ()
    stays = [n for n in graph.nodes if n.name not in changed | given and n.op not in ("concat", *merged)]
    return max((_least(graph, node) for node in stays), default=0)


def _least(graph: Graph, node: Node) -> int:
    """The inputs, output and workspace of a step; a part of a concatenation may come to lie alone."""
    sizes: dict[str, int] = {}
    for source in node.inputs:
        owner = graph.by_name[graph.owner(source)]
        alone = owner.op == "concat" and source != owner.name
        size = graph.by_name[source].output_bytes if alone else owner.output_bytes
        sizes[owner.name] = max(sizes.get(owner.name, 0), size)
    grows = not node.in_place and not node.storage and node.name not in sizes
    return sum(sizes.values()) + node.workspace_bytes + (node.output_bytes if grows else 0)


def kind_groups(sites: Collection[Site]) -> list[list[Site]]:
    """Where a search may start: the sites of each kind, and of all kinds but one."""
    kinds = list(dict.fromkeys(site.kind for site in sites))
    alone = [[site for site in sites if site.kind == kind] for kind in kinds]
    return alone + [[site for site in sites if site.kind != kind] for kind in kinds]


def neighbourhoods(graph: Graph, sites: Mapping[Site, frozenset[Site]]) -> list[list[Site]]:
    """Sites that may only help together: those of each chain of concatenations, with all, some or no zero-copy ones."""
    links = nx.Graph()
    sites = {site: needs for site, needs in sites.items() if site.kind != "accumulate"}
    for site in sites:
        node = graph.by_name[site.node]
        links.add_node(node.name)
        links.add_edges_from((node.name, source) for source in node.inputs if graph.by_name[source].op == "concat")
    names = {site.node for site in sites}
    links.add_edges_from((name, source) for name in names for source in graph.by_name[name].inputs if source in names)
    found = []
    for chain in nx.connected_components(links):
        near = [site for site in sites if site.node in chain]
        new = [site for site in near if site.kind != "zero_copy" or sites[site]]  # copies of the graph as it was stay
        found += [[site for site in near if site.kind != "zero_copy"], new, near]
    return [group for group in found if len(group) > 1]
