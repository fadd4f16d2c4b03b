"""How the tensors of convolutions lie in memory, by target."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

from chameleon.deploy.simplify import fold_transposes


def to_target_layout(mod: IRModule, target: Target) -> IRModule:
    """Move a network written in NCHW to the layout that its target tunes best in (docs/decisions/0006-nhwc-on-cpu.md).

    Operators that have no such layout (transposed convolutions, dense layers) keep theirs, between transposes.
    """
    if target.kind.name != "llvm":
        return mod
    wanted = {"relax.nn.conv2d": ["NHWC", "HWIO"], "relax.nn.conv2d_transpose": ["NCHW", "IOHW"]}
    mod = relax.transform.ConvertLayout(wanted)(mod)
    return fold_transposes(mod)
