"""For tests of the rewriting.

Random networks with concatenations, an interpreter that uses their memory, a solver by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon.serenity.accounting import lifetimes, peak_bytes
from chameleon.serenity.graph import Graph, Node

Array = NDArray[np.float64]
SIDE = 4  # tensors are [channels, SIDE, SIDE], a byte an element


@dataclass(frozen=True)
class Solved:
    """What a solver returns."""

    order: tuple[str, ...]
    peak_bytes: int


def least_peak(graph: Graph) -> Solved:
    """An order of least peak.

    By dynamic programming over what has run and which nodes took over their input's memory.
    """
    start = (frozenset(graph.inputs), frozenset())
    layer: dict[Any, tuple[int, tuple[str, ...]]] = {start: (_alive(graph, *start), ())}
    for _ in graph.steps:
        following: dict[Any, tuple[int, tuple[str, ...]]] = {}
        for (done, merged), (peak, order) in layer.items():
            for name in graph.steps:
                if name in done or not done.issuperset(graph.by_name[name].inputs):
                    continue
                after, now = done | {name}, merged
                if _takes_over(graph, name, after):
                    now = merged | {name}
                during = _alive(graph, done, now, running=name) + graph.by_name[name].workspace_bytes
                found = (max(peak, during, _alive(graph, after, now)), (*order, name))
                key = (after, now)
                if key not in following or found < following[key]:
                    following[key] = found
        layer = following
    peak, order = min(layer.values())
    return Solved(order, peak)


def _takes_over(graph: Graph, name: str, done: frozenset[str]) -> bool:
    taken = graph.by_name[name].in_place
    if not taken:
        return False
    source, others = graph.owner(taken), set(graph.members[graph.owner(name)]) - {name}
    bound = {graph.owner(n) for n in (*graph.inputs, *graph.outputs)}
    return source not in bound and done.isdisjoint(others) and not _needed(graph, source, done)


def _needed(graph: Graph, owner: str, done: frozenset[str]) -> bool:
    members = graph.members[owner]
    if any(m in graph.outputs for m in members):
        return True
    return not done.issuperset({*members, *(r for m in members for r in graph.consumers[m])})


def _alive(graph: Graph, done: frozenset[str], merged: frozenset[str], running: str = "") -> int:
    """Bytes in use; with `running` those while it runs after `done`."""
    touched = {graph.owner(n) for n in done} | ({graph.owner(running)} if running else set())
    alive = {o for o in touched if _needed(graph, o, done)}
    alive -= {o for o in alive if o in graph.inputs and not graph.consumers[o] and o not in graph.outputs}
    size = sum(graph.by_name[o].output_bytes for o in alive)
    return size - (graph.by_name[graph.owner(running)].output_bytes if running in merged else 0)


MIXED = ("conv", "depthwise", "unary", "affine", "pool", "concat", "concat", "concat", "add")
SUMS = ("add", "add", "add", "unary", "affine", "pool")


def random_network(seed: int, n: int = 7, ops: Sequence[str] = MIXED) -> Graph:
    """A random network of `n` operators; concatenations, where there are any, are read by what can be rewritten."""
    rng = np.random.default_rng(seed)
    channels = {"x": int(rng.integers(1, 4))}
    nodes = [_node("x", "", (), channels["x"])]
    for i in range(n):
        name, names = f"n{i}", list(channels)
        concats = [node.name for node in nodes if node.op == "concat"]
        source = str(rng.choice(concats[-1:] if concats and rng.random() < 0.6 else names))
        op = str(rng.choice(ops))
        sources: tuple[str, ...] = (source,)
        out, attrs = channels[source], {}
        if op == "concat":
            sources = tuple(str(s) for s in rng.choice(names, size=int(rng.integers(2, 4)), replace=len(names) < 4))
            attrs = {"channels": [channels[s] for s in sources]}
            out = sum(attrs["channels"])
        elif op == "conv":
            out = int(rng.integers(1, 4))
            attrs = {
                "kernel": int(rng.choice([1, 3])),
                "shape": [out, channels[source]],
                "bias": bool(rng.random() < 0.5),
            }
        elif op == "depthwise":
            out *= (multiplier := int(rng.choice([1, 1, 2])))
            attrs = {"multiplier": multiplier, "shape": [channels[source]]}
        elif op == "affine":
            attrs = {"shape": [channels[source]]}
        elif op == "unary":
            attrs = {"function": str(rng.choice(["relu", "exp"]))}
        elif op == "add":
            alike = [other for other in names if channels[other] == channels[source]]
            sources = (source, str(rng.choice(alike)))
        if op == "add" and rng.random() < 0.3:
            sources = (*sources, source)
        place = source if op in ("unary", "affine", "add") and rng.random() < 0.5 else ""
        work = out * SIDE if op in ("conv", "depthwise") and rng.random() < 0.3 else 0
        nodes.append(_node(name, op, sources, out, attrs, work, place))
        channels[name] = out
    read = {source for node in nodes for source in node.inputs}
    return Graph(tuple(nodes), ("x",), tuple(node.name for node in nodes if node.name not in read))


def _node(
    name: str, op: str, inputs: tuple[str, ...], out: int, attrs: Any = None, work: int = 0, place: str = ""
) -> Node:
    return Node(name, inputs, out * SIDE * SIDE, work, in_place=place, op=op, attrs=attrs or {})


def run(graph: Graph, order: Sequence[str], x: Array) -> dict[str, Array]:
    """What the graph's outputs hold at the end, `[channels, SIDE, SIDE]`; `x` is the input.

    Tensors lie where `lifetimes` says: those of one buffer share an array, new memory and memory that was freed holds
    NaN.
    """
    memory = _Memory(graph, order)
    memory.tensor("x")[...] = x
    written: set[str] = set()
    for t, name in enumerate(order):
        node = graph.by_name[name]
        value = _compute(node, [memory.tensor(s).copy() for s in node.inputs])
        out = memory.tensor(name)
        if node.op in ("add_conv", "add_term"):
            out[...] = value + (out if memory.home(name) in written else 0.0)
            written.add(memory.home(name))
        elif node.op == "sum":
            out[...] = _epilogue(node, out) if "bias" in node.attrs else out
        else:
            out[...] = value
        memory.forget(t)
    return {name: memory.tensor(name).copy() for name in graph.outputs}


class _Memory:
    def __init__(self, graph: Graph, order: Sequence[str]) -> None:
        self.graph = graph
        self.buffers = lifetimes(graph, order)
        self.arrays = {b.name: np.full((b.size_bytes // SIDE**2, SIDE, SIDE), np.nan) for b in self.buffers}
        self.buffer_of = {name: b.name for b in self.buffers for name in b.tensors}

    def home(self, name: str) -> str:
        """The sum that a term is added to."""
        (reader,) = self.graph.consumers[name]
        return reader

    def tensor(self, name: str) -> Array:
        node = self.graph.by_name[name]
        if not node.storage:
            return self.arrays[self.buffer_of[name]] if name in self.buffer_of else np.zeros((0, SIDE, SIDE))
        if node.op in ("add_conv", "add_term"):
            return self.tensor(self.home(name))
        for reader in (self.graph.by_name[r] for r in self.graph.consumers[name]):
            i = reader.inputs.index(name)
            if i in reader.attrs.get("placed", ()):
                ends = np.cumsum([0, *reader.attrs["channels"]])
                return self.tensor(reader.name)[ends[i] : ends[i + 1]]
        raise AssertionError(f"{name} has no place in {node.storage}")

    def forget(self, step: int) -> None:
        for b in self.buffers:
            if b.stop == step + 1 and b.tensors and not set(b.tensors) & set(self.graph.outputs):
                self.arrays[b.name][...] = np.nan


def _compute(node: Node, inputs: list[Array]) -> Array:
    attrs = node.attrs
    cut = slice(*attrs.get("slice", (None, None)))
    if node.op == "concat":
        return np.concatenate(inputs)
    if node.op == "add":
        return sum(inputs[1:], inputs[0])
    if node.op == "unary":
        return np.maximum(inputs[0], 0.0) if attrs["function"] == "relu" else np.exp(-np.abs(inputs[0]))
    if node.op == "pool":
        return _correlate(inputs[0][:, None], np.full((1, 1, 3, 3), 1 / 9)).reshape(inputs[0].shape)
    if node.op == "affine":
        scale, shift = (_weights(node, part, attrs["shape"])[cut] for part in (0, 1))
        return inputs[0] * scale[:, None, None] + shift[:, None, None]
    if node.op == "depthwise":
        multiplier = attrs["multiplier"]
        kernels = _weights(node, 0, [*attrs["shape"], multiplier, 1, 3, 3])[cut]
        return np.concatenate([_correlate(c[None, None], k)[0] for c, k in zip(inputs[0], kernels, strict=True)])
    if node.op == "sum":
        return inputs[0]
    if node.op in ("add_term", "partial_term"):
        value = inputs[0]
        for step in attrs["through"]:
            value = _compute(Node(step["of"], op=step["op"], attrs=step["attrs"]), [value])
        return value + (inputs[1] if len(inputs) > 1 else 0.0)
    out, into = attrs["shape"]
    kernel = _weights(node, 0, [out, into, attrs["kernel"], attrs["kernel"]])[:, cut]
    value = _correlate(inputs[0][None], kernel)[0]
    if node.op == "conv":
        return _epilogue(node, value)
    total = value + (inputs[1] if len(inputs) > 1 else 0.0)
    return _epilogue(node, total) if attrs.get("last") else total


def _epilogue(node: Node, value: Array) -> Array:
    if not node.attrs["bias"]:
        return value
    return np.maximum(value + _weights(node, 1, node.attrs["shape"][:1])[:, None, None], 0.0)


def _weights(node: Node, part: int, shape: Sequence[int]) -> Array:
    """Weights that depend on the name of the original node alone."""
    seed = [part, *node.attrs.get("of", node.name).encode()]
    return np.random.default_rng(seed).standard_normal(shape)


def _correlate(x: Array, kernel: Array) -> Array:
    """A convolution of `[n, channels, h, w]` with `[out, channels, k, k]`, padded to the same size."""
    k = kernel.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, kernel)


def check_same(before: Graph, after: Graph, order: Sequence[str]) -> None:
    """Assert that both graphs compute the same, the second one in this order."""
    channels = before.by_name["x"].output_bytes // SIDE**2
    x = np.random.default_rng(0).standard_normal((channels, SIDE, SIDE))
    expected = run(before, list(before.steps), x)
    found = run(after, order, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
    peak_bytes(after, order)  # a valid order
