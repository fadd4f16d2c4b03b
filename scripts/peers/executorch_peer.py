#!/usr/bin/env python3
"""Measures how much memory ExecuTorch plans and takes for a network.

ExecuTorch plans its memory when the program is made. All tensors get offsets, inputs and outputs included, for the
order in which the program was exported. The default planner does it (`greedy`; the other one, `naive`, reuses
nothing).

The portable kernels run, not a delegate: the program does not know what a delegate allocates.

ExecuTorch leaves batch norms as operators of their own. If they are folded into the convolutions first, its plan is
smaller for some networks and larger for others. So both are planned.

The heap is measured while the program is loaded and run once. It holds the planned buffers, what kernels allocate, and
the runtime's own structures (some 50 kB). The program with its weights is loaded before and not counted.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer

from scripts.peers import common


def measure(network: common.Prepared, *, folded: bool) -> common.Peak:
    """Export and plan a network, then load it and run it once."""
    program = _program(network.module if folded else network.original, network.inputs)
    buffer = program.buffer
    with common.counting() as counted:
        module = _load_for_executorch_from_buffer(buffer)
        outputs = module.run_method("forward", network.inputs, clone_outputs=False)  # they lie in the planned memory
    arrays = [output.numpy().copy() for output in outputs]
    return common.Peak(_planned(program), counted.heap_bytes, common.EVERYTHING, arrays)


def _program(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    planning = MemoryPlanningPass(alloc_graph_input=True, alloc_graph_output=True)
    edge = to_edge(torch.export.export(module, inputs))
    return edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))


def _planned(program: Any) -> int:
    """Bytes of the buffers that the program asks for."""
    return sum(program.executorch_program.execution_plan[0].non_const_buffer_sizes)


if __name__ == "__main__":
    SETTINGS = {"folded": partial(measure, folded=True), "exported": partial(measure, folded=False)}
    sys.exit(common.run("executorch", ("executorch",), SETTINGS))
