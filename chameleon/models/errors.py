"""The error of a model that cannot be loaded, with a message for people. Does not need TVM."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from chameleon.errors import ChameleonError, first_line

__all__ = ["ModelError", "explained", "first_line"]


class ModelError(ChameleonError):
    """A model cannot be loaded; the message says which, why and what to do."""


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn whatever PyTorch raises into a `ModelError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name}: PyTorch cannot build or export this network with this input shape: {first_line(error)}"
        ) from error
