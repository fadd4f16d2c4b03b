"""SERENITY on Relax: order and rewrite a network for the least memory, and put its tensors into one arena.

The public names below load TVM only when they are first used. So modules of this package that do not need TVM, such as
`chameleon.memory.measured_peak`, can be imported without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chameleon.memory.plan import MemoryAware, MemoryOptions, MemoryPlan, plan_memory

__all__ = ["MemoryAware", "MemoryOptions", "MemoryPlan", "plan_memory"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from chameleon.memory import plan

    return getattr(plan, name)
