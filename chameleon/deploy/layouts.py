"""How the tensors of convolutions lie in memory, by target."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.target import Target


def layout_passes(target: Target) -> list[tvm.transform.Pass]:
    """Passes that move a network written in NCHW to the layout that its target tunes best in."""
    if target.kind.name != "llvm":
        return []
    convert = relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "HWIO"]})
    return [convert, relax.transform.FoldConstant(), relax.transform.CanonicalizeBindings()]
