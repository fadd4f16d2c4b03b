"""Moves of several steps: a step runs when it helps to free something, or needs a workspace. Ours, not the paper's.

Most downsets differ in steps that merely take memory and might as well wait. An *event* is that a memory is finished (all that
touch it have run), or that a step with a workspace runs. The *closure* of an event are the steps that it needs: those that
touch the memory, or the step with the workspace, and all that come before them. A lazy order runs the closure of one event,
then what is missing of the closure of the next, and so on; what no event needs comes last.

**If some order keeps a budget, a lazy one does.** Take an order, and its events in the order in which they happen; event i
happens at step f_i, before which the set G has run. Run the closures in this order, each in the order of the old one. Look at
step s of closure i in the new order, at the set E before it. As all of the closures up to i lie in G + f_i:

- what is started by E + s is started by G + f_i;
- what is finished in G belongs to an event before i, so it is finished in E.

So s needs, workspaces apart, no more than f_i needed. If s has a workspace, it is an event itself, not before i as s is in no
earlier closure, and not after i as s is in G + f_i: s is f_i and has the same workspace as it had. After the last event steps
only take memory, and the end is the same. That leaves f_i overwriting an input in G, which makes it need less, by its size: it
finishes the memory M of the input. Of the events that happen at f_i let that of M come first. If s is f_i, then all others
that touch M are in E, and it overwrites its input again. If s comes before it, f_i has not taken its memory yet; if after it,
M is finished in E: either way it makes up for the size. Storage sharing, given and kept memory are in "started" and
"finished": the proof covers them.

**Only events of which nothing smaller is missing have to be tried**, and some of memories that a step may overwrite. For let
the missing part of an event lie within that of event i: it happens not after f_i, so at f_i, and may be taken first, unless
f_i overwrites the input whose memory event i finishes. So f_i is in all smaller missing sets, where event i has to be tried.

**Safe moves.** If nothing smaller is missing than the set U of an event in D, no step of U but the last finishes anything, so
bytes(D + Q) >= bytes(D) for all parts Q of U. If U fits and bytes(D + U) <= bytes(D), it alone has to be tried in D: bring U
to the front of any order from D on. Where P had run, P + U has; bytes is submodular, so bytes(D + P + U) - bytes(D + P) <=
bytes(D + U) - bytes(D + (P and U)) <= 0. The rest is as for single steps (`chameleon.serenity.order.search`).
"""

from __future__ import annotations

from typing import NamedTuple

from chameleon.serenity.order.problem import Problem, bits

FINISHED, PASSED_OVER = -1, -2


class Event(NamedTuple):
    """Something that frees bytes or needs a workspace.

    Attributes:
        closure: mask of the steps that it needs.
        size: bytes that it frees.
        overwriters: mask of the steps that may overwrite that memory.
        inside: the events, by their places in the list, whose closures lie within this one, without those inside of others.
    """

    closure: int
    size: int
    overwriters: int
    inside: tuple[int, ...]


class Move(NamedTuple):
    """Steps to run in one go.

    Attributes:
        steps: mask.
        during: the most bytes in use while they run; at most that for a move that is not `least`.
        after: bytes in use after them.
        least: no smaller set of steps ends in an event.
    """

    steps: int
    during: int
    after: int
    least: bool


def events(problem: Problem) -> list[Event]:
    """All events of a problem, those of few steps first, and a last one for the end; those of one closure are one."""
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
    return [Event(c, *found[c], inside) for c, inside in zip(closures, _insides(closures), strict=True)]


def moves(problem: Problem, table: list[Event], done: int, in_use: int) -> list[Move]:
    """The moves that have to be tried in the downset `done`."""
    least = _least(table, done)
    found = [_move(problem, done, in_use, missing, freed, True) for missing, freed in least.items()]
    for missing in _overwriting(table, done, least):
        freed = sum(event.size for event in table if event.closure & ~done and not event.closure & ~done & ~missing)
        found.append(_move(problem, done, in_use, missing, freed, False))
    return found


def _least(table: list[Event], done: int) -> dict[int, int]:
    """What is missing of the events of which nothing smaller is missing, and the bytes that it frees.

    Of an event only the steps within the missing ones of those inside of it can be missing, so that most need no look at all.
    """
    least: list[int] = []  # 0 for one that turned out to be larger than another
    freed: list[int] = []
    place: list[int] = []  # of every event in `least`
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
    """The other missing sets that may end with an overwritten input: all smaller ones have the step that overwrites it."""
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


def _insides(closures: list[int]) -> list[tuple[int, ...]]:
    """For every closure the places of the largest ones within it; closures are sorted by size."""
    within: list[int] = []  # masks of places
    found = []
    for at, closure in enumerate(closures):
        mask = sum(1 << i for i in range(at) if not closures[i] & ~closure)
        within.append(mask)
        largest = []
        while mask:
            largest.append(mask.bit_length() - 1)
            mask &= ~(within[largest[-1]] | 1 << largest[-1])
        found.append(tuple(largest))
    return found


def unfold(problem: Problem, done: int, steps: int) -> list[int]:
    """An order of the steps of a move that needs no more than the move says: last the one that saves most by overwriting."""
    last = [u for u in bits(steps) if not problem.descendants[u] & steps]
    best = max(last, key=lambda u: _saved(problem, (done | steps) & ~(1 << u), u))
    return [u for u in bits(steps) if u != best] + [best]


def _move(problem: Problem, done: int, in_use: int, steps: int, freed: int, least: bool) -> Move:
    """A move all of whose steps take memory before its last frees some, perhaps overwriting an input."""
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
