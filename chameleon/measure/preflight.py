"""Builds, times and links one tiny kernel before the first candidate: what fails here would fail for all of them."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalSubscript=false
from __future__ import annotations

import shutil
import struct
import tempfile
from pathlib import Path

import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from chameleon.errors import UsageError
from chameleon.measure.builder import default_build
from chameleon.measure.link import Toolchain
from chameleon.measure.tiny import tiny_kernel
from chameleon.target import machine_of
from chameleon.workers.faults import EnvironmentFault, last_line
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


_ELF_MACHINES = {
    "x86_64": 62,
    "aarch64": 183,
    "riscv64": 243,
    "arm": 40,
    "i386": 3,
    "powerpc64le": 21,
    "s390x": 22,
    "loongarch64": 258,
}
"""The number of an architecture in the head of an ELF file (`e_machine`), by LLVM's name."""


def check_toolchain(toolchain: Toolchain, target: Target) -> None:
    """Link one tiny kernel for a target with the compiler that was named, and look at what comes out.

    Raises:
        UsageError: if there is no such compiler or folder, if it does not link, or links for another machine.
    """
    toolchain.check()
    host = target if target.kind.name == "llvm" else target.host
    if toolchain.compiler is None or host is None:
        return
    triple = str(host.attrs.get("mtriple", "") or tvm.target.codegen.llvm_get_system_triple())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.so"
        try:
            default_build(tiny_kernel(host), host).export_library(str(path), fcompile=toolchain.linker())
        except (ValueError, RuntimeError) as error:
            said = str(error).partition("\nCommand line:")[0].splitlines()
            words = last_line("\n".join(line for line in said if not line.startswith("collect2:")))
            raise UsageError(f"{toolchain.compiler} (--cc) does not link for {triple}: {words}") from error
        _check_machine(path.read_bytes()[:20], triple, str(toolchain.compiler))


def _check_machine(head: bytes, triple: str, compiler: str) -> None:
    expected = _ELF_MACHINES.get(machine_of(triple)[0])
    if expected is None or machine_of(triple)[1] not in ("linux", "android"):
        return
    order = ">" if head[5:6] == b"\2" else "<"
    found = struct.unpack(f"{order}H", head[18:20])[0] if head[:4] == b"\x7fELF" else None
    if found != expected:
        names = {number: name for name, number in _ELF_MACHINES.items()}
        made = "no ELF file" if found is None else f"code for {names.get(found, f'machine {found}')}"
        raise UsageError(f"{compiler} (--cc) makes {made}, and the target is {triple}; name a compiler for that")
