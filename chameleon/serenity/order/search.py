"""The exact dynamic program over downsets, to be read beside the paper (Ahn 2020, sec. 3.1 and 3.2).

A downset is the set of the steps that have run (`chameleon.serenity.order.problem`). The paper uses the zero-indegree
set as the key of its memo. We use the downset. Each of the two determines the other.

- `rounds` is the paper's program. Round i holds, for every reachable set of i steps, the least peak that gets there.
- `soft_budget` is the paper's search for the budget.
- `rise` is ours. It visits each downset at most once, and only those that a budget up to the optimum reaches.

**Safe moves.** A step u that can run in D is safe if it fits under the budget and does not add bytes, that is,
bytes(D + u) <= bytes(D). Then u may be the only step that is tried in D.

Proof: take any order from D to the end that keeps the budget, and bring u to its front. A set of steps E that this
order has run before u becomes E + u. `bytes` is submodular, so

    bytes(E + u) - bytes(E) <= bytes(D + u) - bytes(D) <= 0

And for the step that runs next, grow is no larger in E + u than in E. So no step needs more than before. u itself fits
in D. After the place that u came from, nothing has changed. So if there is an order under the budget, there is one
that begins with u.

The proof uses only what `chameleon.serenity.order.problem` shows for all graphs. So it holds for workspaces, shared
storage, in-place steps, and given and kept memory alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

from chameleon.serenity.order.lazy import Move, OutOfTimeError, events, moves, unfold
from chameleon.serenity.order.problem import Problem, bits

Flag = Literal["solution", "no solution", "timeout"]


@dataclass(frozen=True)
class Limits:
    """When to give up.

    Attributes:
        deadline_s: when to stop, in the time of `time.perf_counter`.
        states: the most downsets to hold.
        step_s: the most seconds for one round, the paper's T; 0 for no limit.
    """

    deadline_s: float = float("inf")
    states: int = 1 << 62
    step_s: float = 0.0


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """How a search for an order ended.

    Attributes:
        flag: as in the paper: an order was found, no order is under the budget, or a limit was reached.
        order: the steps, if there is a solution.
        peak: peak of the order; -1 if there is none.
        lower: no order has a smaller peak.
        states: how many downsets were visited.
    """

    flag: Flag
    order: tuple[int, ...] = field(default=(), repr=False)
    peak: int = -1
    lower: int = 0
    states: int = 0


def rounds(
    problem: Problem,
    *,
    budget: float = float("inf"),
    lower: int = 0,
    safe_moves: bool = False,
    width: int = 0,
    limits: Limits = NO_LIMITS,
) -> Outcome:
    """Run the paper's dynamic program: |V| rounds, where round i finds the least peak for every set of i steps.

    The order found is optimal without a budget, or under a budget that some order keeps, as long as `width` drops no
    sets.

    Args:
        problem: what to order.
        budget: sets that are reached only with a larger peak are dropped.
        lower: no order has a smaller peak. A larger value makes more moves count as safe.
        safe_moves: see the top of this module. Here the budget of a set is the peak that it was reached with, or
            `lower` if that is larger.
        width: how many sets a round keeps (a beam search); 0 for all. It keeps the sets with the least peak, then with
            the fewest bytes in use.
        limits: when to give up.
    """
    # memo: downset -> peak, bytes in use, zero-indegree set
    memo = {0: (problem.first_bytes, problem.first_bytes, problem.first_ready)}
    trail: list[dict[int, tuple[int, int]]] = []  # for every round: downset -> the downset before, the step
    states, dropped = 1, float("inf")
    for _ in range(problem.n):
        started = time.perf_counter()
        new: dict[int, tuple[int, int, int]] = {}
        came: dict[int, tuple[int, int]] = {}
        for count, (done, (peak, in_use, ready)) in enumerate(memo.items()):
            if not count % 256 and _late(started, limits):
                return Outcome("timeout", states=states + len(new))
            moves = [(u, *problem.run(done, in_use, u)) for u in bits(ready)]
            if safe_moves:
                moves = _safe_or_all(moves, in_use, max(peak, lower))
            for u, during, then in moves:
                reached = max(peak, during)
                if reached > budget:
                    dropped = min(dropped, reached)
                    continue
                key = done | 1 << u
                known = new.get(key)
                if known is None:
                    new[key] = (reached, then, problem.ready_after(key, ready, u))
                    came[key] = (done, u)
                elif reached < known[0]:
                    new[key] = (reached, then, known[2])
                    came[key] = (done, u)
        states += len(new)
        if states > limits.states:
            return Outcome("timeout", states=states)
        if not new:
            return Outcome("no solution", lower=int(dropped), states=states)
        if width and len(new) > width:
            new = {key: new[key] for key in sorted(new, key=lambda k: (*new[k][:2], k))[:width]}
        trail.append(came)
        memo = new
    peak = memo[problem.full][0]
    return Outcome("solution", _trace(problem.full, trail), peak, 0 if width else peak, states)


def soft_budget(solve: Callable[[float], Outcome], tau_max: int, lower: int) -> Outcome:
    """Run the paper's adaptive soft budgeting.

    It looks for a budget that is wide enough for a solution, and small enough for the time limit. As in the paper, the
    budget starts at the peak of Kahn's order. After a timeout it is halved. After "no solution" it moves to the
    middle.

    We differ in one point. The paper keeps the two last values, and these can go in circles. We keep a bracket: the
    largest budget without a solution, and the smallest one that timed out. When the bracket is closed, the result is
    "timeout". Then T is too small for this graph.

    Args:
        solve: runs the dynamic program under a budget.
        tau_max: the peak of Kahn's order.
        lower: no order has a smaller peak.
    """
    too_wide, tau, states = None, tau_max, 0
    while True:
        found = solve(tau)
        states += found.states
        if found.flag == "timeout":
            too_wide = tau
            if tau <= lower:
                return Outcome("timeout", lower=lower, states=states)
            tau = max(tau // 2, lower)
        elif found.flag == "no solution":
            lower = max(lower, found.lower)
            tau = (lower + (tau_max if too_wide is None else too_wide)) // 2
        else:
            return Outcome("solution", found.order, found.peak, found.lower, states)
        if too_wide is not None and tau >= too_wide:
            return Outcome("timeout", lower=lower, states=states)


def rise(
    problem: Problem,
    *,
    budget: int = 0,
    upper: int | None = None,
    safe_moves: bool = True,
    lazy: bool = True,
    limits: Limits = NO_LIMITS,
) -> Outcome:
    """Raise the budget from a lower bound until an order keeps it.

    Every downset is visited at most once. The paper tries budgets from above, and starts again for each of them. We
    search depth-first under a budget that is too low. We note where each set was stopped, and which budget it would
    need. Then we raise the budget to the least of these. What was visited stays valid. No set is visited that only a
    budget above the optimum reaches. When a limit is reached, the budget is a lower bound.

    Args:
        problem: what to order.
        budget: the budget to begin with. If no order has a smaller peak, an order found under it is optimal.
        upper: the peak of a known order; "no solution" means that this is the optimum. None if no order is known.
        safe_moves: see the top of this module. What is safe under a budget is safe under a larger one.
        lazy: move by several steps, up to the next event (`chameleon.serenity.order.lazy`), instead of one by one.
        limits: when to give up.
    """
    budget = max(budget, problem.first_bytes)
    try:
        table = events(problem, limits.deadline_s) if lazy else []
    except OutOfTimeError:
        return Outcome("timeout", lower=budget, states=1)
    trail: dict[int, int] = {0: 0}  # set -> the set before
    stack = [(0, problem.first_bytes, problem.first_ready)]
    stopped: list[tuple[int, int, int, int]] = []  # a heap: what the cheapest move that did not fit needs, the set
    count = 0
    while True:
        if not stack:
            budget = max(budget, stopped[0][0])
            if upper is not None and budget >= upper:
                return Outcome("no solution", lower=upper, states=len(trail))
            while stopped and stopped[0][0] <= budget:
                stack.append(heappop(stopped)[1:])
        done, in_use, ready = stack.pop()
        if done == problem.full:
            order = _follow(problem, trail)
            return Outcome("solution", order, problem.peak(order), budget, len(trail))
        count += 1
        if not count % 16 and (time.perf_counter() > limits.deadline_s or len(trail) > limits.states):
            return Outcome("timeout", lower=budget, states=len(trail))
        found = moves(problem, table, done, in_use) if lazy else _steps(problem, done, in_use, ready)
        if safe_moves:
            found = next(([m] for m in found if m.least and m.during <= budget and m.after <= in_use), found)
        over = [m.during for m in found if m.during > budget]
        if over:
            heappush(stopped, (min(over), done, in_use, ready))
        for m in sorted((m for m in found if m.during <= budget), key=lambda m: (-m.after, -m.steps)):
            key = done | m.steps
            if key not in trail:
                trail[key] = done
                stack.append((key, m.after, 0 if lazy else problem.ready_after(key, ready, m.steps.bit_length() - 1)))


def _steps(problem: Problem, done: int, in_use: int, ready: int) -> list[Move]:
    return [Move(1 << u, *problem.run(done, in_use, u), True) for u in bits(ready)]


def _late(started: float, limits: Limits) -> bool:
    now = time.perf_counter()
    return now > limits.deadline_s or (limits.step_s > 0 and now - started > limits.step_s)


def _safe_or_all(moves: list[tuple[int, int, int]], in_use: int, budget: int) -> list[tuple[int, int, int]]:
    """The first safe move alone, or all moves if none is safe."""
    for move in moves:
        if move[1] <= budget and move[2] <= in_use:
            return [move]
    return moves


def _trace(full: int, trail: list[dict[int, tuple[int, int]]]) -> tuple[int, ...]:
    """Find the order that the rounds took to the full set."""
    order, done = [], full
    for came in reversed(trail):
        done, u = came[done]
        order.append(u)
    return tuple(reversed(order))


def _follow(problem: Problem, trail: dict[int, int]) -> tuple[int, ...]:
    """Find the order that `rise` took to the full set."""
    order: list[int] = []
    done = problem.full
    while done:
        order[:0] = unfold(problem, trail[done], done & ~trail[done])
        done = trail[done]
    return tuple(order)
