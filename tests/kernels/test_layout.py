"""Moving a network to its target's layout changes no output, however its operators count their axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

from chameleon.kernels import lower
from chameleon.kernels.axes import with_positive_axes
from chameleon.kernels.lower import to_target_layout
from tests.support.running import assert_same, outputs_of

pytestmark = pytest.mark.tvm
CPU = Target({"kind": "llvm", "num-cores": 1})
op = relax.op

AFTER: dict[str, Callable[[relax.Expr], relax.Expr]] = {
    "squeeze": lambda x: op.squeeze(x, [-2]),
    "expand_dims": lambda x: op.expand_dims(x, [-1]),
    "concat": lambda x: op.concat([x, x], -3),
    "stack": lambda x: op.stack([x, x], -1),
    "split": lambda x: op.split(x, 2, -1)[1],
    "flip": lambda x: op.flip(x, -1),
    "repeat": lambda x: op.repeat(x, 2, -3),
    "permute_dims": lambda x: op.permute_dims(x, [0, -1, -2, -3]),
    "sum": lambda x: op.sum(x, [-1, -3]),
    "argmax": lambda x: op.argmax(x, -1),
    "cumsum": lambda x: op.cumsum(x, -1),
    "softmax": lambda x: op.nn.softmax(x, -1),
    "log_softmax": lambda x: op.nn.log_softmax(x, -3),
    "prelu": lambda x: op.nn.prelu(x, relax.const(np.arange(4, dtype="float32")), -3),
    "take": lambda x: op.take(x, relax.const([1, 0]), -1),
    "gather_elements": lambda x: op.gather_elements(x, relax.const(np.ones((1, 4, 1, 6), "int64")), -1),
    "sort": lambda x: op.sort(x, -1),
    "layer_norm": lambda x: op.nn.layer_norm(
        x, relax.const(np.ones(6, "float32")), relax.const(np.ones(6, "float32")), [-1]
    ),
    "strided_slice": lambda x: op.strided_slice(x, [-1], [1], [4]),
}


def network(after: Callable[[relax.Expr], relax.Expr]) -> IRModule:
    """A convolution, and an operator on its result `[1, 4, 1, 6]`."""
    x = relax.Var("x", relax.TensorType((1, 3, 3, 8), "float32"))
    weight = relax.const(np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype("float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(op.nn.conv2d(x, weight))
            out = builder.emit_output(builder.normalize(after(y)))
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.parametrize("name", AFTER)
def test_operators_that_count_axes_from_the_end(name: str) -> None:
    mod = network(AFTER[name])
    x = np.random.default_rng(1).standard_normal((1, 3, 3, 8)).astype("float32")
    moved = to_target_layout(mod, CPU)
    if name != "stack":  # TVM cannot move it
        assert "NHWC" in moved.script(show_meta=False)  # not the fall-back
    assert_same(outputs_of(moved, [x]), outputs_of(mod, [x]))
    positive = with_positive_axes(mod).script(show_meta=False)
    assert "axis=-" not in positive
    assert "axis=[-" not in positive


def test_a_network_that_cannot_be_moved_keeps_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    mod = network(AFTER["flip"])

    def broken(_: object) -> Callable[[IRModule], IRModule]:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(lower.relax.transform, "ConvertLayout", broken)
    assert "NHWC" not in to_target_layout(mod, CPU).script(show_meta=False)
    monkeypatch.setattr(lower.relax.transform, "ConvertLayout", lambda _: lambda _: network(AFTER["squeeze"]))
    assert to_target_layout(mod, CPU)["main"].ret_ty.shape == mod["main"].ret_ty.shape
