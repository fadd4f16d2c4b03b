"""Makes a MetaSchedule context without importing every tensor intrinsic, which takes long.

`ms.TuneContext()` imports `tvm.s_tir.tensor_intrin`: some sixty kernels for all kinds of hardware, most of them for
CUDA. Every process pays for it, even one that only wants the design spaces of a float convolution. Here the context is
made first. If the schedule rules of the target ask for intrinsics, only those of the target's own hardware are
imported.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import logging

import tvm_ffi
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.logging import get_logging_func
from tvm.target import Target

from chameleon.kernels.dots import takes_bytes
from chameleon.kernels.intrinsics import import_intrinsics

Generator = ms.SpaceGenerator.SpaceGeneratorType

X86_INTRINSICS = "dot_16x4"
"""Part of the names of the int8 dot products that the rules for x86 with VNNI or AVX-512 register.

No other data type can use them.
"""


INTRINSICS_OF = {"arm_cpu": "arm_cpu", "cpu": "x86", "riscv": "riscv_cpu", "rocm": "rocm", "metal": "metal"}
"""The part of the intrinsics that a target needs with this key, of this kind, or with this word in its triple."""


def tune_context(mod: IRModule, target: Target, space_generator: Generator, seed: int) -> ms.TuneContext:
    """Makes a context for generating design spaces; it gives the same spaces as `ms.TuneContext`.

    The rules for x86 differ from the plain rules of `llvm` only in the int8 dot products. So a workload without int8
    arguments gets the plain rules. So does any workload where these dot products do not compile: TVM 0.27 has LLVM 22,
    for which its intrinsics have the wrong types.

    Args:
        seed: seed of the generator's sampling, from 1 to 2^31 - 1.
    """
    try:
        return _without_import(mod, target, space_generator, seed)
    except Exception as error:  # TVM's own error class for this is not exported
        if "TensorIntrin" not in str(error):
            raise
        useful = _has_int8(mod) and not takes_bytes()
        if X86_INTRINSICS in str(error) and space_generator == "post-order-apply" and not useful:
            return _without_import(mod, target, ms.SpaceGenerator.create("llvm"), seed)  # type: ignore[arg-type]
    if parts := _parts_for(target):
        import_intrinsics(*parts)
    try:
        return _without_import(mod, target, space_generator, seed)
    except Exception as error:
        if "TensorIntrin" not in str(error):
            raise
    import_intrinsics()
    return _without_import(mod, target, space_generator, seed)


def bare_context(mod: IRModule, target: Target | None) -> ms.TuneContext:
    """Makes a context without design spaces, such as for the features of schedules that were made elsewhere."""
    return _without_import(mod, target, None, 1)


def _parts_for(target: Target) -> list[str]:
    """The parts of the package of intrinsics that are for the target's hardware; empty where there is none."""
    triple = str(target.attrs.get("mtriple", ""))
    return [p for key, p in INTRINSICS_OF.items() if key in (*target.keys, target.kind.name) or key in triple]


def _without_import(
    mod: IRModule, target: Target | None, space_generator: Generator | None, seed: int
) -> ms.TuneContext:
    """Does what `TuneContext.__init__` does, without its import."""
    generator = (
        space_generator
        if space_generator is None or isinstance(space_generator, ms.SpaceGenerator)
        else ms.SpaceGenerator.create(space_generator)  # type: ignore[arg-type]
    )
    log = get_logging_func(logging.getLogger(__name__))
    context = ms.TuneContext.__new__(ms.TuneContext)
    make = tvm_ffi.get_global_func("s_tir.meta_schedule.TuneContext")
    context.__init_handle_by_constructor__(make, mod, target, generator, None, "main", 1, seed, log)
    tvm_ffi.get_global_func("s_tir.meta_schedule.TuneContextInitialize")(context)
    return context


def _has_int8(mod: IRModule) -> bool:
    buffers = [b for _, f in mod.functions_items() for b in getattr(f, "buffer_map", {}).values()]
    return any("int8" in str(b.dtype) for b in buffers)
