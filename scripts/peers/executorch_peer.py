#!/usr/bin/env python3
"""What ExecuTorch plans and takes for a network.

Its memory is planned when the program is made: offsets for all tensors of a program whose order is the exported one, inputs and
outputs included, by the `greedy` planner (the default) and by `naive`. The portable kernels run, not a delegate, whose memory
the program does not know. Measured is the heap while the program is loaded and run once: the planned buffers, what kernels
allocate, and the runtime's own structures (some 50 kB); the program with its weights is there before.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
from typing import Any

import common
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.exir.memory_planning import MemoryPlanningAlgorithmSuite, greedy, naive
from executorch.exir.passes import MemoryPlanningPass
from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer


def measure(network: common.Prepared) -> common.Peak:
    """Export, plan, load and run once."""
    programs = {name: _program(network, algorithm) for name, algorithm in (("greedy", greedy), ("naive", naive))}
    planned = {name: _planned(program) for name, program in programs.items()}
    buffer = programs["greedy"].buffer
    with common.counting() as counted:
        module = _load_for_executorch_from_buffer(buffer)
        outputs = module.run_method("forward", network.inputs, clone_outputs=False)  # they lie in the planned memory
    more = {"planned_by": planned}
    arrays = [output.numpy().copy() for output in outputs]
    return common.Peak(
        planned["greedy"], counted.heap_bytes, ("inputs", "outputs", "intermediates", "workspaces"), arrays, more
    )


def _program(network: common.Prepared, algorithm: Any) -> Any:
    planning = MemoryPlanningPass(
        memory_planning_algo=MemoryPlanningAlgorithmSuite([algorithm]), alloc_graph_input=True, alloc_graph_output=True
    )
    edge = to_edge(torch.export.export(network.module, network.inputs))
    return edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))


def _planned(program: Any) -> int:
    """Bytes of the buffers that the program asks for."""
    return sum(program.executorch_program.execution_plan[0].non_const_buffer_sizes)


if __name__ == "__main__":
    sys.exit(common.run("executorch", ("executorch",), measure))
