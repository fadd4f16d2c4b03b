"""Rewrites a graph where that lowers the peak of its best schedule (Ahn 2020, sec. 3.3).

`chameleon.serenity.rewrite.identities` says what can be rewritten, and what a node must tell for that.

The paper applies every pattern that it finds. That can raise the peak, for two reasons. A small part may now have
readers that wait, so that it stays in memory. And if two readers share one concatenation, both the concatenation and
its parts may be needed. So here a rewrite stays only if it lowers the *solved* peak, the peak of the order that the
solver finds.
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

    kinds: tuple[str, ...] = KINDS  # kinds of sites, see chameleon.serenity.rewrite.identities
    accumulation: Accumulation = "shared"  # how the partial sums of a convolution are kept
    max_solves: int = 256  # the most solver calls, including the call for the graph as it is
    stop: Callable[[], bool] = lambda: False  # says that no time is left for another solver call


@dataclass(frozen=True)
class Rewritten(Generic[T]):
    """A graph with the rewrites that lower its peak, and its schedule.

    Attributes:
        graph: the rewritten graph; the given one if nothing lowers its peak.
        schedule: the schedule of `graph`.
        applied: the sites that were rewritten. Without any one of them, and the sites that need it, the peak would be
            higher.
        before: the schedule of the graph as it was given.
        sites: how many sites there were.
        solves: how often the solver ran.
        complete: whether the search ended by itself, not by `max_solves`.
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
    """Apply the rewrites that lower the peak that `solve` finds.

    The result is deterministic if `solve` is. Sets of sites with equal peak are compared by the number of steps that
    reach the peak. So the search sees progress where a network has its peak at two places and a rewrite clears one of
    them.

    Raises:
        GraphError: if a node says something impossible about its channels.
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
        needs = {}  # the peak is at a step that no rewrite changes
    groups, near = kind_groups(needs), neighbourhoods(graph, needs)
    choice = choose_sites(needs, evaluate, groups, near, options.max_solves, options.stop)
    best, schedule = solved[frozenset(choice.chosen)]
    before = solved[frozenset()][1]
    return Rewritten(best, schedule, choice.chosen, before, sites, choice.evaluations, choice.complete)


def choices(sites: Mapping[Site, frozenset[Site]], kinds: Collection[str]) -> dict[Site, frozenset[Site]]:
    """Pick the sites of some kinds that can be applied without sites of other kinds.

    Either all sums accumulate or none does. That is enough, because the terms may be added in any order: the solver
    chooses the order for each sum (`chameleon.serenity.rewrite.sums`).

    Returns:
        For each site, the sites that come with it.
    """
    found = {site: needs for site, needs in sites.items() if site.kind in kinds}
    found = {site: needs for site, needs in found.items() if needs <= found.keys()}
    sums = frozenset(site for site in found if site.kind == "accumulate")
    return {site: sums - {site} if site in sums else needs for site, needs in found.items()}


def floor_bytes(graph: Graph, sites: Collection[Site]) -> int:
    """A lower bound for the peak of every rewritten graph.

    It is the most that some step needs that no rewrite changes. So whatever is rewritten, no order has a smaller peak.
    """
    changed = {site.node for site in sites}
    given, merged = set(graph.inputs), ("add", *PER_TERM) if any(site.kind == "accumulate" for site in sites) else ()
    stays = [n for n in graph.nodes if n.name not in changed | given and n.op not in ("concat", *merged)]
    return max((_least(graph, node) for node in stays), default=0)


def _least(graph: Graph, node: Node) -> int:
    """The least bytes that a step needs: its inputs, its output and its workspace.

    A part of a concatenation counts with its own size, because it may come to lie alone.
    """
    sizes: dict[str, int] = {}
    for source in node.inputs:
        owner = graph.by_name[graph.owner(source)]
        alone = owner.op == "concat" and source != owner.name
        size = graph.by_name[source].output_bytes if alone else owner.output_bytes
        sizes[owner.name] = max(sizes.get(owner.name, 0), size)
    grows = not node.in_place and not node.storage and node.name not in sizes
    return sum(sizes.values()) + node.workspace_bytes + (node.output_bytes if grows else 0)


def kind_groups(sites: Collection[Site]) -> list[list[Site]]:
    """Sets of sites from which a search may start.

    There is one set for the sites of each kind, and one for the sites of all kinds but one.
    """
    kinds = list(dict.fromkeys(site.kind for site in sites))
    alone = [[site for site in sites if site.kind == kind] for kind in kinds]
    return alone + [[site for site in sites if site.kind != kind] for kind in kinds]


def neighbourhoods(graph: Graph, sites: Mapping[Site, frozenset[Site]]) -> list[list[Site]]:
    """Groups of sites that may help only together.

    For each chain of concatenations these are its sites, with all, some or no zero-copy ones.
    """
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
        # new: without the zero-copy sites of concatenations of the given graph; these still copy
        new = [site for site in near if site.kind != "zero_copy" or sites[site]]
        found += [[site for site in near if site.kind != "zero_copy"], new, near]
    return [group for group in found if len(group) > 1]
