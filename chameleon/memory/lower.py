"""Lower a model to kernels that need little memory, and rewrite it where that lowers the peak.

Rewriting changes the operators, before they are made into fused kernels. But only the kernels show how much memory a
rewrite saves. So every set of rewrites that is tried goes the whole way: it is lowered, its kernels get the lean
default schedule, and the graph of these kernels is solved.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tvm.ir import IRModule
from tvm.target import Target

from chameleon.kernels.defaults import schedule_defaults
from chameleon.kernels.lower import checked, in_target_layout, kernels_of
from chameleon.kernels.optional import if_possible
from chameleon.memory.deadline import Deadline
from chameleon.memory.placed_concats import place_possible, placeable_concats
from chameleon.memory.plan import MemoryOptions, Solve, peak_score, prepare, rewritten_kernels
from chameleon.memory.rewrite import apply_sites, find_sites, rewrite_module
from chameleon.models.load import Model, ModelError
from chameleon.serenity.graph import Graph
from chameleon.serenity.rewrite.choose import Score
from chameleon.serenity.rewrite.identities import Site

CONCAT_KERNELS = "concat_parts"
"""How `chameleon.memory.rewrite` names the kernel of a concatenation whose parts are to be written in place."""

MAX_TRIES = 32
"""How many sets of rewrites are lowered and solved, at most."""


@dataclass(frozen=True)
class Rewrites:
    """What is changed in a model before its operators become kernels: all that is needed to do it again.

    Attributes:
        sites: the places that were rewritten.
        gather: whether terms of a sum wait for each other; see `chameleon.memory.rewrite.apply_sites`.
        order: of the rewritten operators, as a solver gave it; empty if it has to be found again.
    """

    sites: tuple[Site, ...] = ()
    gather: bool = True
    order: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        sums = sum(site.kind == "accumulate" for site in self.sites)
        others = (str(site) for site in self.sites if site.kind != "accumulate")
        return ", ".join((*others, *([f"accumulate: {sums} sum{'s' * (sums > 1)}"] if sums else [])))

    def to_json(self) -> dict[str, Any]:
        """Plain data; the inverse of `from_json`."""
        sites = [[site.kind, site.node] for site in self.sites]
        return {"sites": sites, "gather": self.gather, "order": list(self.order)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Rewrites:
        """Read what `to_json` wrote.

        Raises:
            ModelError: if it comes from an earlier version that limited how many operators become one kernel.
        """
        if content.get("fuse_depth") is not None:
            raise ModelError(
                f"the rewrites are of an earlier version: its kernels held {content['fuse_depth']} operators at most, "
                "and this version has no such limit; tune again, into another folder (--out)"
            )
        sites = tuple(Site(kind, node) for kind, node in content["sites"])
        return cls(sites, content.get("gather", True), tuple(content.get("order", ())))


@dataclass(frozen=True)
class RewrittenModel:
    """A model's fused kernels, without schedules, after the rewrites that lower the peak.

    Attributes:
        lowered: a module of kernels, such as `chameleon.kernels.lower.lower` makes.
        rewrites: what was changed.
        tries: how many sets of rewrites were solved.
        complete: whether the search ended before its time did.
    """

    lowered: IRModule = field(repr=False)
    rewrites: Rewrites
    tries: int
    complete: bool = True


def lean(lowered: IRModule, target: Target) -> IRModule:
    """Bring kernels into the form in which their memory is counted.

    They have the lean default schedule, their workspaces are arguments, and the chosen parts of concatenations are
    written in place.
    """
    with target:
        prepared = prepare(schedule_defaults(lowered, target, lean=True))
    concats = if_possible("placing parts", "main", lambda: placeable_concats(prepared, CONCAT_KERNELS), {})
    return place_possible(prepared, concats)


def lean_rewritten(lowered: IRModule, target: Target, solve: Solve, deadline: Deadline | None = None) -> IRModule:
    """The same as `lean`, and then the kernels are rewritten where that lowers the peak."""
    kernels, options = lean(lowered, target), MemoryOptions(deadline=deadline or Deadline())
    return if_possible("changing kernels", "main", lambda: rewritten_kernels(kernels, solve, options, 16), kernels)


def lower_rewritten(
    model: Model, target: Target, solve: Solve, max_tries: int = MAX_TRIES, deadline: Deadline | None = None
) -> RewrittenModel:
    """Apply identities to a model where that lowers the peak, and make its kernels.

    Args:
        solve: finds an order of the graph; the peak of that order is compared.
        max_tries: how many sets of rewrites are tried at most.
        deadline: after it no further set is tried; by default there is none.

    Raises:
        ModelError: if TVM has no kernel for an operator.
    """
    deadline = deadline or Deadline()

    def score(mod: IRModule) -> Score:
        kernels = lean(_lowered(mod, target, model.name), target)
        return peak_score(kernels, solve, MemoryOptions(name=model.name))

    base, _ = in_target_layout(model, target)
    found = rewrite_module(base, score, solve, max_tries=max_tries, deadline=deadline)
    rewrites, tries = Rewrites(found.choice.chosen, order=found.order), found.choice.evaluations
    together, complete = _lowered(found.mod, target, model.name), not deadline.passed()
    if not complete or not any(site.kind == "accumulate" for site in rewrites.sites):
        return RewrittenModel(together, rewrites, tries, complete)
    rewrites = replace(rewrites, gather=False)
    apart = _lowered(_again(base, rewrites, solve), target, model.name)

    def peak_bytes(lowered: IRModule) -> float:
        return peak_score(lean_rewritten(lowered, target, solve, deadline), solve, MemoryOptions(name=model.name))[0]

    gather = peak_bytes(together) <= peak_bytes(apart)  # gathering makes fewer kernels: taken if the peak is no higher
    rewrites = replace(rewrites, gather=gather)
    return RewrittenModel(together if gather else apart, rewrites, tries + 1, not deadline.passed())


def lower_again(model: Model, target: Target, solve: Solve, rewrites: Rewrites) -> IRModule:
    """Make the kernels of a model with the rewrites that `lower_rewritten` found in an earlier run.

    Raises:
        ModelError: if the model has no such site, or if TVM has no kernel for an operator.
    """
    base, _ = in_target_layout(model, target)
    if missing := set(rewrites.sites) - set(find_sites(base)):
        raise ModelError(f"{model.name} has no place to rewrite called {', '.join(map(str, sorted(missing)))}")
    return _lowered(_again(base, rewrites, solve), target, model.name)


def _again(base: IRModule, rewrites: Rewrites, solve: Solve) -> IRModule:
    def order_of(graph: Graph) -> tuple[str, ...]:
        return rewrites.order or solve(graph).order

    return apply_sites(base, rewrites.sites, order_of, gather=rewrites.gather)


def _lowered(mod: IRModule, target: Target, name: str) -> IRModule:
    return checked(kernels_of(mod, target), name)
