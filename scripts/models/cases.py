"""What each of the small models stands for and what should come of it: `tests/data/models/cases.yaml`.

    encoder_open.onnx:
      like: what people's reports are about
      arguments: [--dim, batch=1, --dim, sequence=10]   # what the command line needs
      high: 30                                          # integers are drawn below this; 2 where nothing is said
      inside: int8                                      # the coarsest type inside: outputs may be a step of it away
      expect: right

`expect` is `right` or `refused: "part of the reason"`, or one of these for each step; `others` are those not named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chameleon.errors import UsageError

FOLDER = Path(__file__).parents[2] / "tests/data/models"
CASES = FOLDER / "cases.yaml"
STEPS = ("import", "tune", "compile", "memory_aware", "memory", "bench")
RIGHT = "right"


@dataclass(frozen=True)
class Case:
    """A model and what is expected of it.

    Attributes:
        like: what kind of report it stands for.
        arguments: of every command.
        high: integers are drawn below this.
        inside: the coarsest type that it computes in, where inputs and outputs do not show it.
        expect: per step None where the result is right, else a part of the reason why it is refused.
    """

    like: str
    arguments: tuple[str, ...] = ()
    high: int = 2
    inside: str = ""
    expect: Mapping[str, str | None] = field(default_factory=lambda: dict.fromkeys(STEPS))


def read_cases(path: Path = CASES) -> dict[str, Case]:
    """The cases by file name.

    Raises:
        UsageError: if one has an unknown key or step.
    """
    return {name: _case(name, content) for name, content in (yaml.safe_load(path.read_text()) or {}).items()}


def _case(name: str, content: Mapping[str, Any]) -> Case:
    known = {"like", "arguments", "high", "inside", "expect"}
    if set(content) - known or "like" not in content:
        raise UsageError(f"{name}: expected like and perhaps {', '.join(sorted(known))}, got {', '.join(content)}")
    return Case(
        content["like"],
        tuple(map(str, content.get("arguments", ()))),
        content.get("high", 2),
        content.get("inside", ""),
        _expected(name, content.get("expect", RIGHT)),
    )


def _expected(name: str, content: Any) -> dict[str, str | None]:
    if not isinstance(content, Mapping) or "refused" in content:
        return dict.fromkeys(STEPS, _reason(name, content))
    if strangers := set(content) - {*STEPS, "others"}:
        raise UsageError(f"{name}: unknown steps {', '.join(sorted(strangers))}; there are {', '.join(STEPS)}")
    return {step: _reason(name, content.get(step, content.get("others", RIGHT))) for step in STEPS}


def _reason(name: str, content: Any) -> str | None:
    if content == RIGHT:
        return None
    if isinstance(content, Mapping) and list(content) == ["refused"]:
        return str(content["refused"])
    raise UsageError(f"{name}: expected `right` or `refused: ...`, got {content}")
