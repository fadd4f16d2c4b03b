#!/usr/bin/env python3
"""What ExecuTorch plans and takes for a network.

Its memory is planned when the program is made: offsets for all tensors of a program whose order is the exported one, inputs and
outputs included, by the default planner (`greedy`; the other, `naive`, reuses nothing). The portable kernels run, not a
delegate, whose memory the program does not know. It leaves batch norms as operators of their own; with them folded into the
convolutions first its plan is smaller for some networks and larger for others, so both are planned. Measured is the heap while
the program is loaded and run once: the planned buffers, what kernels allocate, and the runtime's own structures (some 50 kB);
the program with its weights is there before.
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
    """Export, plan, load and run once."""
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
