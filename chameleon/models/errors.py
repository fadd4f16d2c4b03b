"""The error of a model that cannot be loaded, with a message for people. Does not need TVM."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator

from chameleon.errors import ChameleonError


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


def first_line(error: Exception) -> str:
    """The first line of an error's text that is not empty, at most 300 characters; operators of TVM by name only."""
    text = re.sub(r'ir\.Op\(.*?name="([^"]+)".*?support_level=\d+\)', r"\1", str(error), flags=re.DOTALL)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
