#!/usr/bin/env python3
"""What ExecuTorch plans and takes for a network.

Its memory is planned when the program is made: offsets for all tensors of a program whose order is the exported one, inputs and
outputs included, by the `greedy` planner (the default) and by `naive`. The portable kernels run, not a delegate, whose memory
the program does not know. Measured is the heap while the method is loaded and run once: planned buffers, and what the
portable kernels and the runtime allocate.
"""

from __future__ import annotations

import sys
from typing import Any

import common
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.exir.memory_planning import MemoryPlanningAlgorithmSuite, greedy, naive
from executorch.exir.passes import MemoryPlanningPass
from executorch.runtime import Runtime


def measure(network: common.Prepared) -> common.Peak:
    """Export, plan, load and run once."""
    programs = {name: _program(network, algorithm) for name, algorithm in (("greedy", greedy), ("naive", naive))}
    planned = {name: _planned(program) for name, program in programs.items()}
    loaded = Runtime.get().load_program(programs["greedy"].buffer)
    with common.counting() as counted:
        method = loaded.load_method("forward")
        outputs = method.execute(network.inputs)
    more = {"planned_by": planned}
    arrays = [output.numpy().copy() for output in outputs]
    return common.Peak(planned["greedy"], counted.heap_bytes, ("inputs", "outputs", "intermediates"), arrays, more)


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
