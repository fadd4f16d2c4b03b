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

**Only events of which nothing smaller is missing have to be tried**, and those of memories that a step may overwrite. For let
the missing part of an event lie within that of event i: it happens not after f_i, so at f_i, and may be taken first, unless
f_i overwrites the input whose memory event i finishes.

**Safe moves.** If nothing smaller is missing than the set U of an event in D, no step of U but the last finishes anything, so
bytes(D + Q) >= bytes(D) for all parts Q of U. If U fits and bytes(D + U) <= bytes(D), it alone has to be tried in D: bring U
to the front of any order from D on. Where P had run, P + U has; bytes is submodular, so bytes(D + P + U) - bytes(D + P) <=
bytes(D + U) - bytes(D + (P and U)) <= 0. The rest is as for single steps (`chameleon.serenity.dp`).
"""

from __future__ import annotations

from typing import NamedTuple

from chameleon.serenity.problem import Problem, bits


class Event(NamedTuple):
    """Something that frees bytes or needs a workspace.

    Attributes:
        closure: mask of the steps that it needs.
        size: bytes that it frees.
        overwritten: whether a step may overwrite that memory.
    """

    closure: int
    size: int
    overwritten: bool


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
    """All events of a problem, and a last one for the end; those of one closure are one."""
    found: dict[int, tuple[int, bool]] = {problem.full: (0, False)}
    overwritten = [0] * len(problem.memories)  # masks of the steps that may overwrite a memory
    for u, needs in enumerate(problem.overwrites):
        for i, m in enumerate(problem.memories):
            if needs is not None and not m.kept and m.touchers == needs | 1 << u:
                overwritten[i] |= 1 << u
    for i, m in enumerate(problem.memories):
        if not m.kept:
            closure = m.touchers
            for u in bits(m.touchers):
                closure |= problem.ancestors[u]
            size, over = found.get(closure, (0, False))
            found[closure] = (size + m.size, over or bool(overwritten[i]))
    for u, workspace in enumerate(problem.workspace):
        if workspace:
            found.setdefault(problem.ancestors[u] | 1 << u, (0, False))
    return [Event(closure, size, over) for closure, (size, over) in found.items()]


def moves(problem: Problem, table: list[Event], done: int, in_use: int) -> list[Move]:
    """The moves that have to be tried in the downset `done`."""
    least: dict[int, int] = {}  # what is missing of events within which no smaller one lies -> the bytes that it frees
    others: set[int] = set()
    for closure, size, overwritten in table:
        missing = closure & ~done
        if not missing:
            continue
        if overwritten:
            others.add(missing)
        if missing in least:
            least[missing] += size
        elif not any(not smaller & ~missing for smaller in least):
            for larger in [mask for mask in least if not missing & ~mask]:
                del least[larger]
            least[missing] = size
    found = [_move(problem, done, in_use, missing, freed, True) for missing, freed in least.items()]
    for missing in others - least.keys():
        freed = sum(size for closure, size, _ in table if closure & ~done and not closure & ~done & ~missing)
        found.append(_move(problem, done, in_use, missing, freed, False))
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
