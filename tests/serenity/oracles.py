"""Least peaks found in other ways than the solver's: all orders one by one, and an integer program."""

from __future__ import annotations

from chameleon.serenity.graph import Graph


def least_peak(graph: Graph) -> int:
    """The least peak of all orders.

    Each is simulated step by step, with names and sets as `chameleon.serenity.graph` tells it.
    """
    size = {node.name: node.output_bytes for node in graph.nodes}
    touches = {o: {*ms, *(r for m in ms for r in graph.consumers[m])} for o, ms in graph.members.items()}
    kept = {o for o, ms in graph.members.items() if set(ms) & set(graph.outputs)}
    best = [float("inf")]

    def go(done: frozenset[str], alive: frozenset[str], peak: int) -> None:
        if peak >= best[0]:
            return
        if len(done) == len(graph.nodes):
            best[0] = peak
            return
        in_use = sum(size[o] for o in alive)
        for name in graph.steps:
            node, owner = graph.by_name[name], graph.owner(name)
            if name in done or not done.issuperset(node.inputs):
                continue
            now = done | {name}
            grows = 0 if owner in alive else size[owner]
            if node.in_place:
                source = graph.owner(node.in_place)
                if source not in kept and source not in graph.inputs and touches[source] <= now:
                    grows = 0
            left = frozenset(o for o in alive | {owner} if o in kept or not touches[o] <= now)
            go(now, left, max(peak, in_use + grows + node.workspace_bytes))

    given = frozenset(graph.inputs)
    start = frozenset(o for o in given if graph.consumers[o] or o in graph.outputs)
    go(given, start, sum(size[o] for o in start))
    return int(best[0])


def fits(graph: Graph, budget: int, time_limit_s: float = 60.0) -> bool | None:
    """Whether some order keeps a budget, by CP-SAT; None if it does not find out.

    For tensors only: no sharing, no workspaces. `done[u, t]` says that step u is among the first t; a tensor is alive
    in step t if its node is done then and some reader was not done before.
    """
    from ortools.sat.python import cp_model

    model, steps = cp_model.CpModel(), graph.steps
    n = len(steps)
    done = {(u, t): model.new_bool_var("") for u in steps for t in range(n + 1)}
    done.update({(u, t): 1 for u in graph.inputs for t in range(n + 1)})
    for u in steps:
        model.add(done[u, 0] == 0)
        model.add(done[u, n] == 1)
        for t in range(n):
            model.add(done[u, t] <= done[u, t + 1])
            for source in graph.by_name[u].inputs:
                model.add(done[u, t + 1] <= done[source, t])
    for t in range(n + 1):
        model.add(sum(done[u, t] for u in steps) == t)
    for t in range(1, n + 1):
        total = []
        for node in graph.nodes:
            alive = model.new_bool_var("")
            total.append(node.output_bytes * alive)
            if node.name in graph.outputs or not graph.consumers[node.name]:
                before = 0 if node.name in graph.outputs else done[node.name, t - 1]
                model.add(alive >= done[node.name, t] - before)
            for reader in graph.consumers[node.name]:
                model.add(alive >= done[node.name, t] - done[reader, t - 1])
        model.add(sum(total) <= budget)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    return {cp_model.OPTIMAL: True, cp_model.FEASIBLE: True, cp_model.INFEASIBLE: False}.get(status)
