"""Moves of several steps: a step runs only when it helps to free something, or when a workspace is needed.

This is ours, not the paper's. Most downsets differ only in steps that take memory and might as well wait. (A downset
is a set of steps that have run, see `chameleon.serenity.order.problem`.)

- An *event* happens when a memory is finished (all steps that touch it have run), or when a step with a workspace
  runs.
- The *closure* of an event is the set of steps that the event needs: the steps that touch the memory, or the step with
  the workspace, and all steps that come before them.
- A *lazy order* runs the closure of one event, then what is missing of the closure of the next event, and so on. Steps
  that no event needs come last.

**Claim 1: if some order keeps a budget, a lazy order keeps it too.**

Take an order that keeps the budget, and its events in the order in which they happen. Event i happens at step f_i. The
set of steps that have run before f_i is called G. The new order runs the closures in this order of events, and the
steps of each closure in their old order. Look at a step s of closure i in the new order, and let E be the set of steps
before s. All closures up to i lie in G + f_i. Therefore:

- what is started by E + s is started by G + f_i;
- what is finished in G belongs to an event before i, so it is finished in E.

So s needs no more than f_i needed, apart from workspaces and apart from one more case, overwriting.

- *Workspaces.* If s has a workspace, then s itself is an event. This event is not before i, because s is in no earlier
  closure. It is not after i, because s is in G + f_i. So s is f_i, and it has the same workspace as before.
- *The end.* After the last event, steps only take memory. The end is the same in both orders.
- *Overwriting.* f_i may overwrite an input in G. Then f_i needs less, by the size of that input. It finishes the
  memory M of the input. Of the events that happen at f_i, let the event of M come first. If s is f_i, then all other
  steps that touch M are in E, and s overwrites its input again. If s comes before f_i, then f_i has not taken its
  memory yet. If s comes after f_i, then M is finished in E. In these last two cases, this makes up for the size.

Storage sharing, given memory and kept memory are part of "started" and "finished", so the proof covers them.

**Claim 2: only events of which nothing smaller is missing have to be tried, and some events of memories that a step
may overwrite.**

"Nothing smaller is missing" means: no other event has a smaller missing part (not empty) that lies within the missing
part of this event. Let the missing part of some event lie within the missing part of event i. That event happens not
after f_i, so it happens at f_i, and it may be taken first. There is one exception: f_i overwrites the input whose
memory event i finishes. Then f_i is in all of the smaller missing sets. Only in this case event i has to be tried.

**Claim 3: some moves are safe, so that no other move has to be tried.**

Let U be the missing set of an event in the downset D, and let nothing smaller be missing. Then no step of U but the
last one finishes anything. So bytes(D + Q) >= bytes(D) for all parts Q of U. If U fits and bytes(D + U) <= bytes(D),
then only U has to be tried in D. To see this, bring U to the front of any order from D on. Where the old order had run
the set P, the new one has run P + U. bytes is submodular, so

    bytes(D + P + U) - bytes(D + P) <= bytes(D + U) - bytes(D + (P and U)) <= 0.

The rest is as for single steps (`chameleon.serenity.order.search`).
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from chameleon.serenity.order.problem import Problem, bits

FINISHED, PASSED_OVER = -1, -2


class Event(NamedTuple):
    """Something that frees bytes or needs a workspace.

    Attributes:
        closure: mask of the steps that it needs.
        size: bytes that it frees.
        overwriters: mask of the steps that may overwrite the memory that it frees.
        inside: the events whose closures lie within this closure, by their places in the list. An event that lies
            inside of another one of these is left out.
    """

    closure: int
    size: int
    overwriters: int
    inside: tuple[int, ...]


class Move(NamedTuple):
    """Steps to run in one go.

    Attributes:
        steps: mask of the steps.
        during: the most bytes in use while they run. For a move that is not `least` this is an upper bound.
        after: bytes in use after them.
        least: whether no smaller set of steps ends in an event.
    """

    steps: int
    during: int
    after: int
    least: bool


class OutOfTimeError(Exception):
    """The deadline passed while the events were listed."""


def events(problem: Problem, deadline_s: float = math.inf) -> list[Event]:
    """List all events of a problem, those with few steps first.

    Events with the same closure become one event. The last event stands for the end.

    Args:
        deadline_s: when to give up, in the time of `time.perf_counter`.

    Raises:
        OutOfTimeError: at the deadline.
    """
    found: dict[int, tuple[int, int]] = {problem.full: (0, 0)}
    places = [(u, needs | 1 << u) for u, needs in enumerate(problem.overwrites) if needs is not None]
    for m in problem.memories:
        if not m.kept:
            closure = m.touchers
            for u in bits(m.touchers):
                closure |= problem.ancestors[u]
            size, overwriters = found.get(closure, (0, 0))
            overwriters |= sum(1 << u for u, touchers in places if touchers == m.touchers)
            found[closure] = (size + m.size, overwriters)
    for u, workspace in enumerate(problem.workspace):
        if workspace:
            found.setdefault(problem.ancestors[u] | 1 << u, (0, 0))
    closures = sorted(found, key=lambda c: (c.bit_count(), c))
    return [Event(c, *found[c], inside) for c, inside in zip(closures, _insides(closures, deadline_s), strict=True)]


def moves(problem: Problem, table: list[Event], done: int, in_use: int) -> list[Move]:
    """The moves that have to be tried in the downset `done`."""
    least = _least(table, done)
    found = [_move(problem, done, in_use, missing, freed, True) for missing, freed in least.items()]
    for missing in _overwriting(table, done, least):
        freed = sum(event.size for event in table if event.closure & ~done and not event.closure & ~done & ~missing)
        found.append(_move(problem, done, in_use, missing, freed, False))
    return found


def _least(table: list[Event], done: int) -> dict[int, int]:
    """Find the events of which nothing smaller is missing.

    If an event inside of this event has something missing, then that lies within what is missing of this event. So
    this event misses either the same steps or more steps than the inner one. Most events need no further look.

    Returns:
        What is missing of each of these events, and the bytes that it frees.
    """
    least: list[int] = []  # 0 for a set that turned out to be larger than another one
    freed: list[int] = []
    place: list[int] = []  # for every event, its place in `least`
    for event in table:
        missing = event.closure & ~done
        inner = {place[i] for i in event.inside} - {FINISHED}
        if not missing:
            at = FINISHED
        elif inner:
            at = inner.pop()
            if inner or at == PASSED_OVER or least[at] != missing:
                at = PASSED_OVER
        else:
            within = [k for k, other in enumerate(least) if other and not other & ~missing]
            at = within[0] if within else len(least)
            if not within:
                least = [other if missing & ~other else 0 for other in least] + [missing]
                freed.append(0)
            elif least[at] != missing:
                at = PASSED_OVER
        if at >= 0:
            freed[at] += event.size
        place.append(at)
    return {missing: size for missing, size in zip(least, freed, strict=True) if missing}


def _overwriting(table: list[Event], done: int, least: dict[int, int]) -> set[int]:
    """Find the other missing sets that may end with an overwritten input.

    The step that overwrites the input must be in all smaller missing sets.
    """
    found = set()
    for event in table:
        missing, last = event.closure & ~done, event.overwriters & ~done
        if not last or missing in least:
            continue
        for smaller in least:
            if not smaller & ~missing:
                last &= smaller
        if last:
            found.add(missing)
    return found


def _insides(closures: list[int], deadline_s: float) -> list[tuple[int, ...]]:
    """For every closure, find the places of the largest closures within it; closures are sorted by size.

    The work grows with the square of their number.
    """
    within: list[int] = []  # masks of places
    found = []
    for at, closure in enumerate(closures):
        if time.perf_counter() > deadline_s:
            raise OutOfTimeError
        mask = sum(1 << i for i in range(at) if not closures[i] & ~closure)
        within.append(mask)
        largest = []
        while mask:
            largest.append(mask.bit_length() - 1)
            mask &= ~(within[largest[-1]] | 1 << largest[-1])
        found.append(tuple(largest))
    return found


def unfold(problem: Problem, done: int, steps: int) -> list[int]:
    """Put the steps of a move in an order that needs no more than the move says.

    The step that saves most by overwriting comes last.
    """
    last = [u for u in bits(steps) if not problem.descendants[u] & steps]
    best = max(last, key=lambda u: _saved(problem, (done | steps) & ~(1 << u), u))
    return [u for u in bits(steps) if u != best] + [best]


def _move(problem: Problem, done: int, in_use: int, steps: int, freed: int, least: bool) -> Move:
    """Make the move that runs these steps.

    All of its steps take memory before the last one frees some. The last one may overwrite an input.
    """
    all_done = done | steps
    taken = {problem.own[u] for u in bits(steps)} - {-1}
    after = in_use + sum(problem.memories[o].size for o in taken if not problem.memories[o].starters & done)
    last = [u for u in bits(steps) if not problem.descendants[u] & steps]
    saved = max(_saved(problem, all_done & ~(1 << u), u) for u in last)
    workspace = sum(problem.workspace[u] for u in bits(steps))
    return Move(steps, after - saved + workspace, after - freed, least)


def _saved(problem: Problem, done: int, u: int) -> int:
    """The bytes that step `u` saves in the downset `done` by overwriting an input."""
    needs, own = problem.overwrites[u], problem.own[u]
    if needs is None or needs & ~done or own < 0 or problem.memories[own].starters & done:
        return 0
    return problem.memories[own].size
