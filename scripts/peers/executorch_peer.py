#!/usr/bin/env python3
"""The memory that ExecuTorch plans for a network: `python scripts/peers/executorch_peer.py NETWORK...`.

Its default memory planning (greedy), portable kernels. The planned buffers hold inputs, intermediate tensors and outputs;
what kernels allocate besides is not in the plan.
"""

# Other environments than this project's have these packages:
# pyright: reportMissingImports=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

import torch
from common import main, max_error
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.runtime import Runtime

from chameleon.deploy.networks import Network


def need(network: Network, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """The sum of the planned buffers."""
    planning = MemoryPlanningPass(alloc_graph_input=True, alloc_graph_output=True)
    edge = to_edge(torch.export.export(network.module, inputs))
    program = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    planned = sum(program.executorch_program.execution_plan[0].non_const_buffer_sizes)
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    result = method.execute(list(inputs))[0].numpy()
    includes = ["inputs", "intermediates", "outputs"]
    return {
        "planned_bytes": int(planned),
        "measured_bytes": None,
        "includes": includes,
        "max_error": max_error(network, inputs, result),
    }


if __name__ == "__main__":
    main("executorch", need, ("executorch", "torch"))
