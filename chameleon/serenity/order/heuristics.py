"""Orders that are quick to find.

They are baselines and first upper bounds, and they are what is left when the exact search runs out of time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

from chameleon.serenity.graph import Graph
from chameleon.serenity.order.problem import Problem, bits, problem_of
from chameleon.serenity.order.search import rounds


def as_is(graph: Graph) -> tuple[str, ...]:
    """The order in which the graph lists its nodes.

    Where the graph lists a node before its inputs, this is the nearest valid order.
    """
    return problem_of(graph).names


def kahn(graph: Graph) -> tuple[str, ...]:
    """Kahn's topological order: the node that is ready first runs first.

    It is the paper's baseline, and its first budget.
    """
    problem = problem_of(graph)
    return _named(problem, kahn_order(problem))


def reverse_postorder(graph: Graph) -> tuple[str, ...]:
    """The order of a depth-first search along the data, from the first listed node on.

    The node that the search finishes last runs first.
    """
    problem = problem_of(graph)
    return _named(problem, reverse_postorder_order(problem))


def greedy(graph: Graph) -> tuple[str, ...]:
    """Run at every step the node that leaves the fewest bytes in use.

    Among equal nodes it runs the one that needs the fewest bytes while it runs.
    """
    problem = problem_of(graph)
    return _named(problem, greedy_order(problem))


def beam(graph: Graph, width: int = 64) -> tuple[str, ...]:
    """Run the dynamic program with only the best `width` sets of each size.

    The best sets are those with the least peak, then with the fewest bytes in use.

    Raises:
        ValueError: if `width` is not positive.
    """
    if width < 1:
        raise ValueError(f"expected a positive width of the beam, got {width}")
    problem = problem_of(graph)
    return _named(problem, rounds(problem, width=width, safe_moves=True).order)


def kahn_order(problem: Problem) -> tuple[int, ...]:
    """See `kahn`."""
    waiting = [mask.bit_count() for mask in problem.before]
    ready = deque(u for u in range(problem.n) if not waiting[u])
    order = []
    while ready:
        u = ready.popleft()
        order.append(u)
        for reader in problem.after[u]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return tuple(order)


def reverse_postorder_order(problem: Problem) -> tuple[int, ...]:
    """See `reverse_postorder`."""
    finished: list[int] = []
    seen: set[int] = set()
    for root in reversed(list(bits(problem.first_ready))):
        seen.add(root)
        stack = [(root, iter(reversed(problem.after[root])))]
        while stack:
            u, readers = stack[-1]
            reader = next((r for r in readers if r not in seen), None)
            if reader is None:
                finished.append(u)
                stack.pop()
            else:
                seen.add(reader)
                stack.append((reader, iter(reversed(problem.after[reader]))))
    return tuple(reversed(finished))


def greedy_order(problem: Problem) -> tuple[int, ...]:
    """See `greedy`.

    What a step costs is kept in a heap. It changes only if the step becomes the last to touch a memory, or if another
    step has started its own memory.
    """
    touched = _touched(problem)
    left = [m.touchers.bit_count() for m in problem.memories]
    done, ready, order = 0, problem.first_ready, []
    cost: dict[int, tuple[int, int]] = {}
    heap: list[tuple[tuple[int, int], int]] = []

    def enter(steps: Iterable[int]) -> None:
        for u in steps:
            during, after = problem.run(done, 0, u)
            cost[u] = (after, during)
            heappush(heap, (cost[u], u))

    enter(bits(ready))
    while heap:
        known, u = heappop(heap)
        if cost.get(u) != known:
            continue
        del cost[u]
        before, changed = done, 0
        done |= 1 << u
        for i in touched[u]:
            m = problem.memories[i]
            left[i] -= 1
            if left[i] == 1:
                changed |= m.touchers & ~done
            if m.starters >> u & 1 and not m.starters & before:
                changed |= m.starters
        now = problem.ready_after(done, ready, u)
        enter(bits(now & (changed | ~ready)))
        ready = now
        order.append(u)
    return tuple(order)


def _touched(problem: Problem) -> list[list[int]]:
    """`[n]` the memories that each step touches."""
    found: list[list[int]] = [[] for _ in range(problem.n)]
    for i, memory in enumerate(problem.memories):
        for u in bits(memory.touchers):
            found[u].append(i)
    return found


def _named(problem: Problem, order: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(problem.names[u] for u in order)
