"""Builds and times one tiny kernel before the first candidate: what fails here would fail for every candidate."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalSubscript=false
from __future__ import annotations

import shutil
from pathlib import Path

from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.measure.tiny import tiny_kernel
from chameleon.workers.faults import EnvironmentFault
from tuners.outcomes import environment_cause


def check_environment(target: Target, builder: ms.Builder, runner: ms.Runner) -> float:
    """Build and time one tiny kernel.

    Returns:
        The seconds that one run of it takes.

    Raises:
        EnvironmentFault: if it is not built or does not run.
    """
    mod = tiny_kernel(target)
    (built,) = builder.build([ms.builder.BuilderInput(mod, target)])
    if built.error_msg is not None:
        raise _fault("built", target, str(built.error_msg))
    args_info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)
    path = str(built.artifact_path)
    try:
        (future,) = runner.run([ms.runner.RunnerInput(path, target.kind.name, args_info)])
        result = future.result()
    finally:
        shutil.rmtree(Path(path).parent, ignore_errors=True)
    if result.error_msg is not None:
        raise _fault("run", target, str(result.error_msg))
    return float(result.run_secs[0])


def _fault(what: str, target: Target, message: str) -> EnvironmentFault:
    cause = environment_cause(message)
    if cause is None:
        cause = message.strip()[:500]
        if "SIGILL" in message:
            cause += " (the target's processor has instructions that this one lacks: see -mcpu)"
    return EnvironmentFault(f"not even a tiny kernel can be {what} for {target.kind.name}: {cause}")
