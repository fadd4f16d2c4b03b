"""Refuse models with tensors that no memory of this machine holds: a small file may ask for any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from chameleon.cores import usable_memory_bytes
from chameleon.models.errors import ModelError


def check_size(name: str, what: str, shape: Sequence[int], item_bytes: int = 1) -> None:
    """Check that a tensor fits into the memory that this process may use.

    Args:
        name: of the model, for the message.
        what: the tensor, for the message.
        shape: its dimensions.
        item_bytes: bytes of an element; with 1, of a type that is not known, the check is weaker.

    Raises:
        ModelError: if it does not.
    """
    check_bytes(name, f"{what} has the shape {list(shape)} and", math.prod(shape) * item_bytes)


def check_bytes(name: str, what: str, size: int) -> None:
    """Check that so many bytes fit.

    Raises:
        ModelError: if they do not.
    """
    memory = usable_memory_bytes()
    if size > memory:
        raise ModelError(
            f"{name}: {what} takes {size / 2**30:,.1f} GiB, this machine has {memory / 2**30:.1f} GiB; "
            "give smaller shapes, or load it on a machine with more memory"
        )
