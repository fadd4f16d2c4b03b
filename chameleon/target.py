"""The target that code is generated for: this machine, or what the user names."""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import tvm
from tvm.target import Target

from chameleon.cores import allowed_cores, usable_cores
from chameleon.errors import UsageError, unknown
from chameleon.files import parse_json

__all__ = [
    "TVM_WITHOUT",
    "check_runs_here",
    "detect_target",
    "machine_of",
    "parse_target",
    "runs_here",
    "set_threads",
    "usable_cores",
    "vector_features",
]

KINDS = ("llvm", "cuda", "rocm", "nvptx", "opencl", "vulkan", "metal")
"""Target kinds whose kernels this package can build and time, here or on a device at a tracker."""

TVM_WITHOUT = ("torch",)
"""Packages that `import tvm` loads if they are installed, and that TVM does not need.

Loading them takes two thirds of the 2.8 s of CPU time of the import.
"""


def detect_target() -> Target:
    """The target for this machine's CPU, with all its usable cores."""
    cpu = str(tvm.target.codegen.llvm_get_system_cpu())
    return Target({"kind": "llvm", "mcpu": cpu, "num-cores": usable_cores()})


def parse_target(text: str, *, cores: Callable[[], int] = usable_cores) -> Target:
    """Make a target from what people write.

    Args:
        text: `native`, a kind (`llvm`, `cuda`), a tag (`nvidia/nvidia-a100`), a JSON object
            (`{"kind": "llvm", "mcpu": "znver4"}`) or the older form `llvm -mcpu=znver4 -num-cores=2`. Tuning needs
            `num-cores`. Plain `llvm` means this machine.
        cores: says the number of cores for a CPU target without it.

    Raises:
        UsageError: if the text names no target, a processor that LLVM does not know, or a kind that cannot be built
            or timed; the message has the nearest known names.
    """
    text = text.strip()
    if text in ("native", "local", "llvm"):
        return detect_target()
    if text.startswith("{"):
        return _from_options(_json_object(text), cores)
    kind, *options = text.split() or [""]
    known = [*map(str, Target.list_kinds()), *map(str, tvm.target.list_tags() or ())]
    if kind not in known:
        raise unknown("target", kind, [*known, "native"])
    if options:
        return _from_options({"kind": kind, **_old_options(options, text)}, cores)
    return _with_cores(Target(kind), cores)


def runs_here(target: Target) -> bool:
    """Whether this machine's processor can run code for the target: the same architecture and operating system."""
    host = target if target.kind.name == "llvm" else target.host
    triple = str(host.attrs.get("mtriple", "")) if host is not None else ""
    return not triple or machine_of(triple) == machine_of(str(tvm.target.codegen.llvm_get_system_triple()))


def check_runs_here(target: Target) -> None:
    """Refuse to measure code on this machine that it cannot run.

    Raises:
        UsageError: if the target is of another architecture, or has vector instructions that this machine lacks.
    """
    if not runs_here(target):
        here = tvm.target.codegen.llvm_get_system_triple()
        raise UsageError(
            f"code for {target.attrs.get('mtriple', target)} does not run on this machine ({here}); measure on such a "
            "device with --tracker host:port --device-key KEY, or leave --target out to tune for this machine"
        )
    here = detect_target()
    if lacking := sorted(vector_features(target) - vector_features(here)):
        raise UsageError(
            f"this machine's processor ({here.attrs['mcpu']}) lacks instructions of {target.attrs['mcpu']}: "
            f"{', '.join(lacking[:8])}; use --target native, or measure on such a machine with --tracker"
        )


_VECTORS = ("avx", "fma", "f16c", "amx", "sve", "sme", "dotprod", "i8mm", "bf16", "fullfp16")


def vector_features(target: Target) -> set[str]:
    """The vector instructions that code for a processor may use, by LLVM's names; none for other targets."""
    if target.kind.name != "llvm" or "mcpu" not in target.attrs:
        return set()
    found = map(str, tvm.target.codegen.llvm_get_cpu_features(target))
    return {name for name in found if name.startswith(_VECTORS)}


def set_threads(n_threads: int) -> int:
    """Set how many threads TVM's kernels use when the current thread calls them.

    Call this before the thread runs its first kernel: a pool of threads that was already used keeps its size.

    By default TVM uses half of the logical cores of an x86 machine, as if the other half were hyper-threads, which is
    not always so. A kernel that was tuned for all cores then runs on half of them. TVM also binds the calling thread
    to one core. Here the threads share the allowed cores instead.

    Returns:
        The number of threads that there are now. It is smaller than asked for if there are fewer cores, or if this
        thread ran a kernel before.
    """
    cores = [str(core) for core in sorted(allowed_cores())[:n_threads]]
    share_all_cores = -3  # TVM's threading::ThreadGroup::kSpecifyThreadShareAllCore
    tvm.get_global_func("runtime.config_threadpool")(share_all_cores, len(cores), cores)
    return int(tvm.get_global_func("runtime.NumThreads")())


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"the target {text!r} begins like JSON but is not valid JSON: {error}") from None
    if not isinstance(value.get("kind", value.get("tag")), str):
        raise UsageError(
            f'a target in JSON needs a "kind", such as {{"kind": "llvm", "mcpu": "znver4"}}; got {text!r}'
        )
    return value


def _old_options(options: list[str], text: str) -> dict[str, Any]:
    """Read options of the older form, such as `-mcpu=znver4 -num-cores 2`, as a dictionary."""
    parsed: dict[str, Any] = {}
    words = iter(" ".join(options).replace("=", " ").split())
    for word in words:
        value = next(words, None)
        if not word.startswith("-") or value is None:
            raise UsageError(
                f'cannot read {word!r} in the target {text!r}; write JSON: {{"kind": "llvm", "mcpu": "znver4"}}'
            )
        name = word.lstrip("-")
        parsed[name] = int(value) if value.isdecimal() else value.split(",") if name == "mattr" else value
    return parsed


def _from_options(options: dict[str, Any], cores: Callable[[], int]) -> Target:
    kind = options.get("kind")
    if kind is not None and kind not in Target.list_kinds():
        raise unknown("target kind", str(kind), map(str, Target.list_kinds()))
    options = _complete(options)
    for processor in (options, options.get("host")):
        if isinstance(processor, dict) and processor.get("kind") == "llvm":
            _check_processor(str(processor.get("mcpu", "")), str(processor.get("mtriple", "")))
    try:
        return _with_cores(Target(options), cores)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"TVM refuses the target {json.dumps(options)}: {error}") from error


def _complete(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a target with what Linux on RISC-V has everywhere; LLVM alone would take a soft-float ABI.

    These are RV64GC and the ABI lp64d, as in Debian's port.
    """
    if options.get("kind") != "llvm" or machine_of(str(options.get("mtriple", ""))) != ("riscv64", "linux"):
        return options
    plain = (
        {} if {"mcpu", "mattr"} & set(options) else {"mcpu": "generic-rv64", "mattr": ["+m", "+a", "+f", "+d", "+c"]}
    )
    return {"mabi": "lp64d", **plain, **options}


def _with_cores(target: Target, cores: Callable[[], int]) -> Target:
    """The target with `num-cores`, which MetaSchedule needs on CPUs."""
    _check_kind(target)
    if int(target.attrs.get("num-cores", 1)) < 1:
        raise UsageError(f"num-cores of a target must be at least 1, got {target.attrs['num-cores']}")
    if "cpu" not in target.keys or "num-cores" in target.attrs:
        return target
    return Target({**target.export(), "num-cores": cores()})


def _check_kind(target: Target) -> None:
    kind = target.kind.name
    if kind not in KINDS:
        raise UsageError(
            f"there is no way to build and time kernels of the target kind {kind!r} here; use llvm for processors, "
            f"or one of {', '.join(KINDS[1:])}"
        )
    if tvm.get_global_func(f"target.build.{kind}", allow_missing=True) is None:
        raise UsageError(
            f"this TVM was built without {kind}; install a build that has it, or use another --target, such as llvm"
        )


def _check_processor(cpu: str, triple: str) -> None:
    """Refuse what LLVM does not know: it would take the plainest processor instead, with a line on stderr."""
    codegen = tvm.target.codegen
    triple = triple or str(codegen.llvm_get_system_triple())
    architecture = triple.partition("-")[0]
    if not codegen.llvm_is_valid_cpu("generic", triple):  # each architecture that LLVM knows has it
        raise unknown("architecture", architecture, [*map(str, codegen.llvm_get_targets()), *_SYNONYMS])
    if not cpu or codegen.llvm_is_valid_cpu(cpu, triple):
        return
    if cpu in ("host", "native"):
        here = codegen.llvm_get_system_cpu()
        raise UsageError(f"unknown processor {cpu!r}; this machine's is {here} (-mcpu={here}, or --target native)")
    names = codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", "mtriple": triple}))
    raise unknown(f"processor of {architecture}", cpu, map(str, names))


_SYNONYMS = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_SYSTEMS = ("android", "linux", "darwin", "macos", "ios", "windows", "win32", "freebsd", "wasi", "none")


def machine_of(triple: str) -> tuple[str, str]:
    """Architecture and operating system in a triple such as `aarch64-linux-gnu`; Linux where it names none."""
    arch, _, rest = triple.lower().partition("-")
    system = next((name for name in _SYSTEMS if name in rest), "linux")
    return _SYNONYMS.get(arch, arch), {"macos": "darwin", "win32": "windows"}.get(system, system)
