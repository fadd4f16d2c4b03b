"""A graph as the solvers see it.

Each step is a bit. Each memory has masks of the steps that start it and of the steps that touch it.

A *downset* is the set of the steps that have run, as a bit mask. If it holds a step, it also holds all steps before
that step. The downset alone decides which memory is in use; the order in which its steps ran does not matter:

    bytes(D) = sum of size(m) over the memories m that are started (given, or a starter of m is in D)
               and not finished (kept, or a toucher of m is not in D)

`bytes` is submodular: for D within E and a step u outside of E,

    bytes(E + u) - bytes(E) <= bytes(D + u) - bytes(D)

The reason is this. "A starter is in D" has diminishing gains. "All touchers are in D" has growing gains, and it is
subtracted. All of storage sharing is in these masks: views and the parts of a concatenation are touchers, and they are
starters too if they write. Running u in D needs

    during(D, u) = bytes(D) + grow(D, u) + workspace(u)

Here grow is the size of u's memory. It is 0 if that memory is already started, or if u overwrites its input in D. grow
never gets larger when more steps have run: u overwrites its input if all other steps that touch that input have run.

Whatever is proved from these two facts (`bytes` is submodular, grow never gets larger) holds for everything that a
graph can have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import accumulate

from chameleon.serenity.graph import Graph


@dataclass(frozen=True)
class Memory:
    """A piece of memory that tensors lie in.

    Attributes:
        size: in bytes.
        starters: mask of the steps whose tensors lie in it. The first of them that runs takes the memory.
        touchers: mask of the steps that read or write it, including the starters. It is freed after the last of them.
        given: whether it is in use before the first step.
        kept: whether it is in use at the end.
    """

    size: int
    starters: int
    touchers: int
    given: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Problem:
    """Steps 0 .. n - 1 to be ordered, numbered so that every step comes after its predecessors.

    Attributes:
        names: `[n]` names of the steps.
        before: `[n]` masks of the direct predecessors.
        memories: those in use at some time but not always.
        constant: bytes that are always in use.
        workspace: `[n]` bytes.
        own: `[n]` the memory that a step may start, -1 if none.
        overwrites: `[n]` mask of the steps that must have run before the step can overwrite its input, None if it
            never does.
    """

    names: tuple[str, ...]
    before: tuple[int, ...]
    memories: tuple[Memory, ...]
    constant: int
    workspace: tuple[int, ...]
    own: tuple[int, ...]
    overwrites: tuple[int | None, ...]

    @property
    def n(self) -> int:
        """Number of steps."""
        return len(self.names)

    @property
    def full(self) -> int:
        """The downset of all steps."""
        return (1 << self.n) - 1

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """`[n]` the direct successors of every step."""
        found: list[list[int]] = [[] for _ in range(self.n)]
        for u, mask in enumerate(self.before):
            for source in bits(mask):
                found[source].append(u)
        return tuple(map(tuple, found))

    @cached_property
    def ancestors(self) -> tuple[int, ...]:
        """`[n]` masks of all steps that must run before a step."""
        found: list[int] = []
        for mask in self.before:
            total = mask
            for source in bits(mask):
                total |= found[source]
            found.append(total)
        return tuple(found)

    @cached_property
    def descendants(self) -> tuple[int, ...]:
        """`[n]` masks of all steps that must run after a step."""
        found = [0] * self.n
        for u in reversed(range(self.n)):
            for reader in self.after[u]:
                found[u] |= found[reader] | 1 << reader
        return tuple(found)

    @cached_property
    def frees(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """`[n]` for every step, (touchers, size) of the memories that it may be the last to touch."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(self.n)]
        for memory in self.memories:
            if not memory.kept:
                for u in bits(memory.touchers):
                    found[u].append((memory.touchers, memory.size))
        return tuple(map(tuple, found))

    @cached_property
    def first_bytes(self) -> int:
        """Bytes in use before the first step."""
        return self.constant + sum(m.size for m in self.memories if m.given)

    @cached_property
    def first_ready(self) -> int:
        """Mask of the steps without predecessors."""
        return sum(1 << u for u in range(self.n) if not self.before[u])

    def run(self, done: int, in_use: int, u: int) -> tuple[int, int]:
        """Count the bytes in use while step `u` runs, and after it.

        Before the step, the steps of the downset `done` have run, and `in_use` bytes are in use.
        """
        during = after = in_use
        own = self.own[u]
        if own >= 0 and not done & self.memories[own].starters:
            after += self.memories[own].size
            needs = self.overwrites[u]
            if needs is None or needs & ~done:
                during = after
        done |= 1 << u
        for touchers, size in self.frees[u]:
            if not touchers & ~done:
                after -= size
        return during + self.workspace[u], after

    def ready_after(self, done: int, ready: int, u: int) -> int:
        """The steps that can run once step `u` has run: the paper's zero-indegree set.

        `done` already holds `u`.
        """
        ready &= ~(1 << u)
        for reader in self.after[u]:
            if not self.before[reader] & ~done:
                ready |= 1 << reader
        return ready

    def peak(self, order: Sequence[int]) -> int:
        """The most bytes in use over an order.

        The peaks that we report come from `chameleon.serenity.accounting`, not from here.
        """
        done, in_use, peak = 0, self.first_bytes, self.first_bytes
        for u in order:
            during, in_use = self.run(done, in_use, u)
            peak, done = max(peak, during), done | 1 << u
        return peak


def bits(mask: int) -> Iterator[int]:
    """Yield the positions of the one bits of a mask, in ascending order."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def problem_of(graph: Graph) -> Problem:
    """Convert a graph to a problem.

    The steps are numbered in the valid order that comes nearest to the listed one.
    """
    names = _topological(graph)
    number = {name: u for u, name in enumerate(names)}

    def mask(some: Sequence[str]) -> int:
        return sum(1 << number[name] for name in set(some) if name in number)

    memories, index = [], {}
    constant = 0
    for owner, members in graph.members.items():
        readers = [reader for name in members for reader in graph.consumers[name]]
        given, kept = owner in graph.inputs, any(name in graph.outputs for name in members)
        size = graph.by_name[owner].output_bytes
        if not size or (given and not readers and owner not in graph.outputs):
            continue
        if given and kept:
            constant += size
            continue
        index[owner] = len(memories)
        memories.append(Memory(size, mask(members), mask((*members, *readers)), given, kept))
    own = []
    for name in names:
        place = index.get(graph.owner(name), -1)
        own.append(-1 if place >= 0 and memories[place].given else place)
    return Problem(
        names=names,
        before=tuple(mask(graph.by_name[name].inputs) for name in names),
        memories=tuple(memories),
        constant=constant,
        workspace=tuple(graph.by_name[name].workspace_bytes for name in names),
        own=tuple(own),
        overwrites=tuple(_overwrites(graph, name, mask) for name in names),
    )


def pieces(problem: Problem, ends: Sequence[int]) -> list[Problem]:
    """Cut a problem at steps, so that the first piece holds the steps 0 .. ends[0] - 1, and so on.

    Every order must run the steps of a piece before those of the next. What has run before a piece is given. What runs
    after is kept. So an order of the piece needs, step by step, what it needs in the whole problem. A memory changes
    in two pieces at most: where it is started and where it is finished. In between it is always in use.

    Args:
        ends: rising, the last is the number of steps; none if there are no steps.
    """
    if not ends:
        return []
    starts = [0, *ends[:-1]]
    changing: list[list[int]] = [[] for _ in ends]
    lasting = [0] * (len(ends) + 1)  # how the bytes that are always in use change from piece to piece
    for i, m in enumerate(problem.memories):
        if not (m.given or m.starters) or not (m.kept or m.touchers):
            continue
        first = 0 if m.given else bisect_right(ends, _lowest(m.starters))
        last = len(ends) - 1 if m.kept else bisect_right(ends, m.touchers.bit_length() - 1)
        always = range(first + (not m.given), last + bool(m.kept))
        for k in {first, last} - set(always):
            changing[k].append(i)
        if always:
            lasting[always.start] += m.size
            lasting[always.stop] -= m.size
    constants = accumulate(lasting[:-1], initial=problem.constant)
    next(constants)
    return [
        _piece(problem, start, stop, sorted(some), constant)
        for start, stop, some, constant in zip(starts, ends, changing, constants, strict=True)
    ]


def _piece(problem: Problem, start: int, stop: int, changing: Sequence[int], constant: int) -> Problem:
    """The steps `start` .. `stop` - 1 as a problem, with the memories of these indices."""
    inside = (1 << (stop - start)) - 1
    memories, index = [], {}
    for i in changing:
        m = problem.memories[i]
        given = m.given or bool(m.starters and _lowest(m.starters) < start)
        kept = m.kept or m.touchers.bit_length() > stop
        index[i] = len(memories)
        memories.append(Memory(m.size, m.starters >> start & inside, m.touchers >> start & inside, given, kept))
    own = [index.get(o, -1) for o in problem.own[start:stop]]
    return Problem(
        names=problem.names[start:stop],
        before=tuple(mask >> start & inside for mask in problem.before[start:stop]),
        memories=tuple(memories),
        constant=constant,
        workspace=problem.workspace[start:stop],
        own=tuple(-1 if o >= 0 and memories[o].given else o for o in own),
        overwrites=tuple(
            None if need is None or need.bit_length() > stop else need >> start & inside
            for need in problem.overwrites[start:stop]
        ),
    )


def _lowest(mask: int) -> int:
    """The position of the lowest one bit."""
    return (mask & -mask).bit_length() - 1


def _overwrites(graph: Graph, name: str, mask: Callable[[Sequence[str]], int]) -> int | None:
    """The mask of the steps that must have run before a node can overwrite its input; None if it never can."""
    node = graph.by_name[name]
    if not node.in_place:
        return None
    source = graph.owner(node.in_place)
    members = graph.members[source]
    if source in graph.inputs or any(m in graph.outputs for m in members):
        return None
    readers = [reader for m in members for reader in graph.consumers[m]]
    return mask((*members, *readers)) & ~mask([name])


def _topological(graph: Graph) -> tuple[str, ...]:
    """Put the steps in a valid order that is near to the listed one.

    At every time this takes the first listed step whose inputs are there. So a valid listed order stays as it is.
    """
    at = {name: i for i, name in enumerate(graph.steps)}
    waiting = {name: sum(s in at for s in set(graph.by_name[name].inputs)) for name in graph.steps}
    heap = [at[name] for name in graph.steps if not waiting[name]]
    found = []
    while heap:
        name = graph.steps[heappop(heap)]
        found.append(name)
        for reader in graph.consumers[name]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heappush(heap, at[reader])
    return tuple(found)
