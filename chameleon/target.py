"""The target that code is generated for: this machine, or what the user names."""

from __future__ import annotations

import json
from typing import Any

import tvm
from tvm.target import Target

from chameleon.cores import allowed_cores, usable_cores
from chameleon.errors import UsageError, unknown

__all__ = ["TVM_WITHOUT", "detect_target", "parse_target", "set_threads", "usable_cores"]

TVM_WITHOUT = ("torch",)
"""Packages that `import tvm` loads if they are installed, and that TVM does not need.

Loading them takes two thirds of the 2.8 s of CPU time of the import.
"""


def detect_target() -> Target:
    """The target for this machine's CPU, with all its usable cores."""
    cpu = str(tvm.target.codegen.llvm_get_system_cpu())
    return Target({"kind": "llvm", "mcpu": cpu, "num-cores": usable_cores()})


def parse_target(text: str) -> Target:
    """Make a target from what people write.

    Args:
        text: `native`, a kind (`llvm`, `cuda`), a tag (`nvidia/nvidia-a100`), a JSON object
            (`{"kind": "llvm", "mcpu": "znver4"}`) or the older form `llvm -mcpu=znver4 -num-cores=2`. Tuning needs
            `num-cores`: a CPU target without it gets the number of this machine. Plain `llvm` means this machine.

    Raises:
        UsageError: if the text names no target; the message has the nearest known names.
    """
    text = text.strip()
    if text in ("native", "local", "llvm"):
        return detect_target()
    if text.startswith("{"):
        return _from_options(_json_object(text))
    kind, *options = text.split() or [""]
    known = [*map(str, Target.list_kinds()), *map(str, tvm.target.list_tags() or ())]
    if kind not in known:
        raise unknown("target", kind, [*known, "native"])
    if options:
        return _from_options({"kind": kind, **_old_options(options, text)})
    return _with_cores(Target(kind))


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
        value = json.loads(text)
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


def _from_options(options: dict[str, Any]) -> Target:
    kind = options.get("kind")
    if kind is not None and kind not in Target.list_kinds():
        raise unknown("target kind", str(kind), map(str, Target.list_kinds()))
    try:
        return _with_cores(Target(options))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"TVM refuses the target {json.dumps(options)}: {error}") from error


def _with_cores(target: Target) -> Target:
    """The target with `num-cores`, which MetaSchedule needs on CPUs."""
    if "cpu" not in target.keys or "num-cores" in target.attrs:
        return target
    return Target({**target.export(), "num-cores": usable_cores()})
