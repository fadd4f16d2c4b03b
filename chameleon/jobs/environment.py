"""What makes the times of one machine incomparable with those of another: the environment of a trial."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from chameleon.store.lines import canonical


@dataclass(frozen=True)
class Environment:
    """Where trials were measured. In another environment they are history to learn from, and measured again.

    Attributes:
        tvm: its version; None if it is not known.
        cpu: the name of the processor; of a device elsewhere the key under which it is asked for.
        vector: the vector extensions that code may use, by LLVM's names.
        threads: that a kernel runs with.
        flags: further options of the target that change the code.
    """

    tvm: str | None
    cpu: str
    vector: str = ""
    threads: int | None = None
    flags: str = ""

    @property
    def id(self) -> str:
        """A short name for the lines of its trials: a hash of all the rest."""
        return hashlib.sha256(canonical(asdict(self)).encode()).hexdigest()[:8]

    def to_line(self) -> dict[str, Any]:
        """The line that introduces it (docs/records.md)."""
        return {"kind": "environment", "environment": self.id, **asdict(self)}


def environment_text(line: Mapping[str, Any]) -> str:
    """An environment in a few words, from its line."""
    parts = [str(line.get("cpu") or "an unknown processor")]
    parts += [f"TVM {line['tvm']}"] if line.get("tvm") else []
    parts += [f"{line['threads']} threads"] if line.get("threads") else []
    return ", ".join(parts)
